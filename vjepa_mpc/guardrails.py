"""Guardrails that a plan must keep: regions and boxes for poses, pictures to stay away from.

A guardrail is a setting; at each control step it is made into a `Constraint` (`vjepa_mpc/costs.py`) for the pose
of that moment. Poses are integrated, never predicted, and looked at along the whole way: straight from the pose
before each action to the one after it, which is how a controller with guardrails moves
(`vjepa_mpc.governors.straight_step`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import Constraint, latent_distance
from vjepa_mpc.rollout import Rollout
from vjepa_mpc.states import StateSpace

Place = Callable[[Float[Tensor, "*n s"]], Float[Tensor, "*n d"]]
"""Where the end effector is, m, at robot states; differentiable."""


@dataclass(frozen=True)
class Situation:
    """What guardrails are told of the moment: the robot's `pose` now (its units), how its states follow from
    actions, and how many points of the way to look at for each action."""

    pose: Float[Tensor, "s"]
    space: StateSpace
    points: int

    def way(self, actions: Float[Tensor, "b n h a"]) -> Float[Tensor, "b n q s"]:
        """The poses gone through, q = h * points, the present one left out."""
        here = self.pose.to(actions).expand(*actions.shape[:2], -1)
        corners = [here]
        for action in actions.unbind(2):
            corners.append(self.space.integrate(corners[-1].flatten(0, 1), action.flatten(0, 1)).view_as(here))
        line = torch.stack(corners, dim=2)
        share = torch.arange(1, self.points + 1, device=actions.device) / self.points
        moves = (line[:, :, 1:] - line[:, :, :-1])[:, :, :, None]
        return (line[:, :, :-1, None] + share[:, None].to(actions) * moves).flatten(2, 3)


@runtime_checkable
class Guardrail(Protocol):
    """A named thing that a plan must keep."""

    @property
    def name(self) -> str: ...

    def constraint(self, situation: Situation) -> Constraint:
        """The constraint for plans that begin in this situation."""
        ...


@runtime_checkable
class PoseRail(Guardrail, Protocol):
    """A guardrail that looks at poses alone, and so can judge the next motion without a world model."""

    def depth(self, poses: Float[Tensor, "*n s"]) -> Float[Tensor, "*n"]:
        """How far each pose is past what is allowed; 0 where it is allowed."""
        ...


@dataclass(frozen=True)
class AlongTheWay:
    """How far a plan's way is past what `rail` allows, averaged over the way: from a pose past it already the
    plan that leaves soonest is the best, and 0 means that no pose of the way is past it."""

    rail: PoseRail
    situation: Situation

    @property
    def name(self) -> str:
        return self.rail.name

    def __call__(self, rollout: Rollout, actions: Float[Tensor, "b n h a"]) -> Float[Tensor, "b n"]:
        return self.rail.depth(self.situation.way(actions)).mean(dim=-1)


@dataclass(frozen=True)
class KeepOut:
    """The end effector stays `margin` m clear of a ball (a disc, where `place` is in the plane)."""

    place: Place
    centre: tuple[float, ...]
    radius: float
    margin: float = 0.0
    name: str = "keep_out"

    def __post_init__(self) -> None:
        if not (0 < self.radius < math.inf and 0 <= self.margin < math.inf):
            raise InputError(f"A keep-out region needs a positive radius and a margin >= 0, got {self.radius} m.")

    def depth(self, poses: Float[Tensor, "*n s"]) -> Float[Tensor, "*n"]:
        away = self.place(poses) - torch.tensor(self.centre).to(poses)
        square = away.square().sum(dim=-1).clamp(min=1e-12)  # a root has no slope at zero
        return (self.radius + self.margin - square.sqrt()).clamp(min=0)

    def constraint(self, situation: Situation) -> Constraint:
        return AlongTheWay(self, situation)


@dataclass(frozen=True)
class Workspace:
    """The end effector stays in a box, m."""

    place: Place
    low: tuple[float, ...]
    high: tuple[float, ...]
    name: str = "workspace"

    def __post_init__(self) -> None:
        _check_box("workspace", self.low, self.high)

    def depth(self, poses: Float[Tensor, "*n s"]) -> Float[Tensor, "*n"]:
        return _excess(self.place(poses), self.low, self.high)

    def constraint(self, situation: Situation) -> Constraint:
        return AlongTheWay(self, situation)


@dataclass(frozen=True)
class PoseBox:
    """Joints (or whatever the state is made of) stay in a box, in the state's units; infinite where free."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    name: str = "pose_box"

    def __post_init__(self) -> None:
        _check_box("pose box", self.low, self.high)

    def depth(self, poses: Float[Tensor, "*n s"]) -> Float[Tensor, "*n"]:
        return _excess(poses, self.low, self.high)

    def constraint(self, situation: Situation) -> Constraint:
        return AlongTheWay(self, situation)


@dataclass(frozen=True)
class StateLimits:
    """The robot's own joint limits or workspace box, along the whole way."""

    space: StateSpace
    name: str = "state_box"

    def depth(self, poses: Float[Tensor, "*n s"]) -> Float[Tensor, "*n"]:
        return self.space.excess(poses)

    def constraint(self, situation: Situation) -> Constraint:
        return AlongTheWay(self, situation)


@dataclass(frozen=True)
class AvoidPictures:
    """Imagined views stay at least `threshold` from every picture's latents: what those show is to be avoided.

    The threshold is a model's own measure of "the same place" (`vjepa_mpc.thresholds`, made by `vjepa-mpc
    calibrate`). Violation: by how much the nearest comes closer, over the imagined frames the largest.
    """

    latents: Float[Tensor, "m p d"]
    threshold: float
    name: str = "avoid"

    def __post_init__(self) -> None:
        if not 0 < self.threshold < math.inf:
            raise InputError(f"The distance to keep from pictures must be positive, got {self.threshold}.")

    def constraint(self, situation: Situation) -> Constraint:
        return self

    def __call__(self, rollout: Rollout, actions: Float[Tensor, "b n h a"]) -> Float[Tensor, "b n"]:
        near = [latent_distance(rollout.latents, picture) for picture in self.latents.to(rollout.latents)]
        return (self.threshold - torch.stack(near).amin(dim=0)).clamp(min=0).amax(dim=-1)


def _check_box(what: str, low: Sequence[float], high: Sequence[float]) -> None:
    if len(low) != len(high) or not all(a <= b for a, b in zip(low, high, strict=True)):
        raise InputError(f"The {what} needs as many low as high values, low first, got {low} and {high}.")


def _excess(
    values: Float[Tensor, "*n d"], low: Sequence[float], high: Sequence[float]
) -> Float[Tensor, "*n"]:
    over = (values - torch.tensor(high).to(values)).clamp(min=0)
    return (over + (torch.tensor(low).to(values) - values).clamp(min=0)).sum(dim=-1)
