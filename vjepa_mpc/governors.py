"""What stands between a decision and the robot: each governor may slow or stop the action, never add to it, but
`ChangeLimits`, which goes over from one action to the next and so may still send what is no longer wanted.

They are asked in order at every control step. What one remembers from step to step is a value, kept in the
controller's state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import latent_distance
from vjepa_mpc.guardrails import Guardrail, PoseRail, Situation
from vjepa_mpc.planners.base import Bounds
from vjepa_mpc.planners.limits import StepLimits, control_steps
from vjepa_mpc.rollout import Context, Rollout
from vjepa_mpc.states import StateSpace
from vjepa_mpc.world_model import WorldModel

LOOKS = 24  # points of the next motion that are looked at
SHARES = (1.0, 0.5, 0.25, 0.0)


@dataclass(frozen=True)
class Moment:
    """What a governor sees: the view's latents and its distance to the goal, whether it counts as there, the pose,
    the context of the step before (None at first) and the actions sent since the start, newest last (two at most)."""

    model: WorldModel
    latent: Float[Tensor, "1 p d"]
    latent_cost: float
    near: bool
    pose: Float[Tensor, "s"]
    before: Context | None
    sent: tuple[Float[np.ndarray, "a"], ...]


@dataclass(frozen=True)
class Verdict:
    """The action that may be sent, what to remember, and whether the governor slowed or stopped anything."""

    action: Float[np.ndarray, "a"]
    memory: Any = None
    held: bool = False


@runtime_checkable
class Governor(Protocol):
    """`begin` gives the memory of an episode's start; a call judges one action."""

    @property
    def name(self) -> str: ...

    def begin(self) -> Any: ...

    def __call__(
        self, action: Float[np.ndarray, "a"], moment: Moment, memory: Any
    ) -> Verdict: ...


@dataclass(frozen=True)
class Surprise:
    """Slows to half where the view is further from what the model expected after the last action than `slow`,
    and stops where it is further than `stop`: latent distances, quantiles of held-out data (`vjepa-mpc calibrate`)."""

    slow: float
    stop: float
    name: str = "surprise"

    def __post_init__(self) -> None:
        if not 0 < self.slow <= self.stop < math.inf:
            raise InputError(f"Surprise needs 0 < slow <= stop, got {self.slow} and {self.stop}.")

    def begin(self) -> Any:
        return None

    def __call__(
        self, action: Float[np.ndarray, "a"], moment: Moment, memory: Any
    ) -> Verdict:
        if moment.before is None or not moment.sent:
            return Verdict(action)
        error = surprise(moment.model, moment.before, moment.sent[-1], moment.latent)
        share = 1.0 if error <= self.slow else 0.5 if error <= self.stop else 0.0
        return Verdict(share * action, held=share < 1)


@torch.no_grad()
def surprise(
    model: WorldModel, before: Context, action: Float[np.ndarray, "a"], seen: Float[Tensor, "1 p d"]
) -> float:
    """Latent distance of a view to what `model` expected to see after `action` (one control step's)."""
    return float(latent_distance(expected(model, before, action).latents[0, 0, :1], seen))


@torch.no_grad()
def expected(model: WorldModel, before: Context, action: Float[np.ndarray, "a"]) -> Rollout:
    """The one frame that `model` expected after `action` (one control step's): one problem, candidate and step."""
    given = torch.as_tensor(action, dtype=before.states.dtype, device=before.states.device)
    return model.rollout(before, given[None, None, None])


@dataclass(frozen=True)
class Watchdog:
    """Stops for good after `patience` steps in which the view came no nearer to the goal than before by more than
    `least` of that distance. At the goal it sleeps."""

    patience: int
    least: float = 0.01
    name: str = "watchdog"

    def __post_init__(self) -> None:
        if self.patience < 1 or not 0 <= self.least < 1:
            raise InputError(f"The watchdog needs a patience of at least 1 step, got {self.patience}.")

    def begin(self) -> tuple[float, int]:
        """The nearest so far, and steps since."""
        return math.inf, 0

    def __call__(
        self, action: Float[np.ndarray, "a"], moment: Moment, memory: tuple[float, int]
    ) -> Verdict:
        nearest, idle = memory
        if idle >= self.patience:
            return Verdict(np.zeros_like(action), memory, True)
        nearer = moment.near or moment.latent_cost < nearest * (1 - self.least)
        memory = (min(nearest, moment.latent_cost), 0 if nearer else idle + 1)
        tired = memory[1] >= self.patience
        return Verdict(np.zeros_like(action) if tired else action, memory, tired)


@dataclass(frozen=True)
class ChangeLimits:
    """The action sent changes by at most `rate` from one control step to the next, and that change by at most
    `acceleration` (action units a step; one value an action, +inf for none). A robot at rest has sent zeros.
    Changes begin to end in time: an action that stays wanted is not overshot, a stop above all, unless it came to be
    wanted only when it was too late for that."""

    rate: tuple[float, ...]
    acceleration: tuple[float, ...]
    name: str = "change"

    def __post_init__(self) -> None:
        if len(self.rate) != len(self.acceleration) or not all(v > 0 for v in (*self.rate, *self.acceleration)):
            raise InputError(f"Rates and accelerations must be positive, got {self.rate} and {self.acceleration}.")

    def begin(self) -> Any:
        return None

    def __call__(
        self, action: Float[np.ndarray, "a"], moment: Moment, memory: Any
    ) -> Verdict:
        rest = np.zeros_like(action)
        earlier, last = (rest, rest, *moment.sent)[-2:]
        rate, bend = np.array(self.rate), np.array(self.acceleration)
        away = action - last
        change = np.sign(away) * np.minimum(np.minimum(np.abs(away), rate), last_that_ends(np.abs(away), bend))
        old = np.clip(last - earlier, -rate, rate)
        sent = last + np.clip(change, old - bend, old + bend)
        return Verdict(sent, held=not np.allclose(sent, action, atol=1e-12, rtol=0))


def last_that_ends(
    away: Float[np.ndarray, "a"], bend: Float[np.ndarray, "a"], within: float = math.inf
) -> Float[np.ndarray, "a"]:
    """The largest change after which, `bend` less at each step, the changes of `within` steps, or of those to zero, sum
    to no more than `away`: c + (c - b) + (c - 2b) + ... over n steps is n c - b n (n - 1) / 2."""
    with np.errstate(invalid="ignore"):  # inf * 0 where nothing limits it
        steps = np.minimum(within, np.maximum(1, np.ceil((np.sqrt(1 + 8 * away / bend) - 1) / 2 - 1e-9)))
        return np.where(np.isinf(bend), away, away / steps + bend * (steps - 1) / 2)


@dataclass(frozen=True)
class LastLook:
    """The next motion by itself, against every guardrail for poses: the largest share of it is sent that takes the
    robot no further past any of them than it is now. Whatever was planned, this is what holds."""

    rails: tuple[PoseRail, ...]
    space: StateSpace
    name: str = "last_look"

    def begin(self) -> Any:
        return None

    def __call__(
        self, action: Float[np.ndarray, "a"], moment: Moment, memory: Any
    ) -> Verdict:
        situation = Situation(moment.pose, self.space, LOOKS)
        tried = torch.as_tensor(np.array([share * action for share in SHARES])).to(moment.pose)
        way = situation.way(tried[None, :, None])[0]
        kept = torch.ones(len(SHARES), dtype=torch.bool, device=way.device)
        for rail in self.rails:
            kept &= rail.depth(way).amax(dim=-1) <= rail.depth(moment.pose) + 1e-6
        kept[-1] = True  # holding still, whatever is known of the pose
        share = SHARES[int(kept.int().argmax())]
        return Verdict(share * action, held=share < 1)


@dataclass(frozen=True)
class Guards:
    """Guardrails for plans, and governors of what is sent. Empty: nothing is guarded but what `ControlSettings`
    ask for. Guardrails for poses are looked at once more before each action (`LastLook`)."""

    rails: tuple[Guardrail, ...] = ()
    governors: tuple[Governor, ...] = ()

    def __post_init__(self) -> None:
        names = [rail.name for rail in self.rails] + [governor.name for governor in self.governors]
        if len(set(names)) != len(names):
            raise InputError(f"Guardrails need distinct names, got {names}; give each its own.")

    def all_governors(self, space: StateSpace) -> tuple[Governor, ...]:
        """The governors, and the last look where there are guardrails for poses."""
        poses = tuple(rail for rail in self.rails if isinstance(rail, PoseRail))
        return (*self.governors, LastLook(poses, space)) if poses else self.governors

    def check_limits(self, limits: StepLimits) -> None:
        """Refuse limits that a governor would break: one that changes each action by itself leaves balls of several."""
        if limits.balls and any(isinstance(governor, ChangeLimits) for governor in self.governors):
            raise InputError(
                "A limit on each action's own change (--change-limit, --acceleration-limit) can lead out of a --ball "
                "on the way from one action to the next; use --rate-limit, which keeps it, or leave one of them out."
            )


def straight_step(
    legs: Float[Tensor, "h a"], step: Bounds, least: float = 0.1
) -> tuple[Float[Tensor, "a"], Float[Tensor, "h a"]]:
    """One control step, of the bounds `step`, along the first of `legs`, in a straight line at full speed, and the legs
    without those left out. Legs shorter than `least` of a control step are left out, unless nothing longer follows."""
    steps = control_steps(legs, step)
    long = (steps >= least).nonzero()
    first = int(long[0]) if len(long) else 0
    rest = torch.cat([legs[first:], torch.zeros_like(legs[:first])])
    if not len(long):
        rest = torch.cat([legs.sum(0, keepdim=True), torch.zeros_like(legs[1:])])
        steps = control_steps(rest[:1], step)
    return rest[0] / max(1, math.ceil(float(steps[first if len(long) else 0]) - 1e-6)), rest
