"""The actor: what to do at a frame to come to a goal picture, at once and without planning.

A policy learned from logs in hindsight. By itself it is Mode-1 of LeCun's architecture (2022, "A path towards
autonomous machine intelligence", section 3.1.1), perception to action; what it proposes is where Mode-2, planning, may
begin (sections 3.1.2 and 3.1.3). There are several ways to a goal, whose mean may be none: so a mixture of Gaussians
(Bishop 1994, "Mixture density networks").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.goal_network import GoalNetwork, GoalNetworkConfig

LEAST_SCALE = 0.05
"""The least standard deviation, in units of the step limits: an action that the logs hold exactly, such as none, would
otherwise be worth any likelihood."""


@dataclass(frozen=True)
class ObjectView:
    """How an object that is pushed about on a plane is read and acted on (`ObjectActor`). `place`: where x and y of the
    robot are among the values of its state, `push` where those of its displacement are among its actions. Turned by
    `same_after_rad` the object looks the same. `middle` and `spread` of the object's x and y and of the robot's state,
    in physical units. `within`: m and rad that poses read from two pictures may be apart where the object has not moved
    (None: not known)."""

    place: tuple[int, int]
    push: tuple[int, int]
    same_after_rad: float
    middle: tuple[float, ...]
    spread: tuple[float, ...]
    within: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.within is not None and not (all(map(math.isfinite, self.within)) and min(self.within) > 0):
            raise InputError(f"Two readings of one pose are apart by numbers above 0, not {self.within}.")
        pairs = self.place, self.push
        if any(len(pair) != 2 or len(set(pair)) != 2 or min(pair) < 0 for pair in pairs):
            raise InputError("An object on a plane takes an x and a y of the robot's state and of its actions.")
        numbers = all(map(math.isfinite, (*self.middle, *self.spread))) and min(self.spread, default=0) > 0
        if len(self.middle) != len(self.spread) or len(self.middle) < 3 + max(self.place) or not numbers:
            raise InputError("An object's x and y and the robot's state need a finite middle and a spread above 0.")
        if self.folds < 1 or abs(self.folds * self.same_after_rad - 2 * math.pi) > 1e-6:
            raise InputError(
                f"An object looks the same after a whole turn or a whole share of one, not {self.same_after_rad:g} rad."
            )

    @property
    def folds(self) -> int:
        """How often it looks the same in a turn."""
        return round(2 * math.pi / self.same_after_rad) if 0 < self.same_after_rad < 7 else 0


@dataclass(frozen=True)
class ActorConfig(GoalNetworkConfig):
    """Sizes of an actor: of `actions` values it says the next `ahead` control steps, as `components` Gaussians.
    `object`: by the pose of what it pushes (None: by latents side by side)."""

    actions: int = field(kw_only=True)
    ahead: int = 8
    components: int = 4
    object: ObjectView | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.object is not None and max(self.object.push) >= self.actions:
            raise InputError(f"An actor of {self.actions} actions cannot push by those numbered {self.object.push}.")
        if min(self.actions, self.ahead, self.components) < 1:
            raise InputError(
                f"An actor says at least 1 control step ahead with at least 1 component, not {self.ahead} and "
                f"{self.components}."
            )


@dataclass(frozen=True)
class Mixture:
    """A mixture of k Gaussians over the actions of the next t control steps, in units of the step limits: how likely
    each component is (logarithms, summing to one), its means and standard deviations. `axes`: the columns are those
    along which means and deviations are, orthonormal (None: the robot's own); what goes in and out is the robot's."""

    log_weights: Float[Tensor, "*n k"]
    means: Float[Tensor, "*n k t a"]
    scales: Float[Tensor, "*n k t a"]
    axes: Float[Tensor, "*n a a"] | None = None

    def log_likelihood(self, actions: Float[Tensor, "*n t a"]) -> Float[Tensor, "*n"]:
        """Of whole sequences, in nats."""
        along = actions if self.axes is None else actions @ self.axes
        away = (along.unsqueeze(-3) - self.means) / self.scales
        each = -0.5 * away.square() - self.scales.log() - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(self.log_weights + each.sum(dim=(-2, -1)), dim=-1)

    def in_order(self) -> Float[Tensor, "*n k t a"]:
        """The components' means, the likeliest component first."""
        order = self.log_weights.argsort(dim=-1, descending=True, stable=True)
        return self._outward(self.means.gather(-3, order[..., None, None].expand_as(self.means)))

    def drawn_means(self, generators: Sequence[torch.Generator]) -> Float[Tensor, "b t a"]:
        """The mean of one component for each of b problems, drawn as likely as it is; by `generators[i]` only."""
        each = zip(self.log_weights.exp(), generators, strict=True)
        which = [torch.multinomial(weights, 1, generator=generator) for weights, generator in each]
        rows = torch.arange(len(which), device=self.means.device)
        return self._outward(self.means[rows, torch.cat(which)].unsqueeze(-3))[:, 0]

    def proposals(self, count: int, generators: Sequence[torch.Generator]) -> Float[Tensor, "b m t a"]:
        """`count` sequences of each of b problems: the components' means, the likeliest first, then draws; problem i
        draws from `generators[i]` only, and only where means are not enough."""
        means, more = self.in_order()[:, :count], count - self.means.shape[1]
        if more <= 0:
            return means
        drawn = []
        for row, generator in enumerate(generators):
            which = torch.multinomial(self.log_weights[row].exp(), more, replacement=True, generator=generator)
            noise = torch.randn(more, *self.means.shape[2:], generator=generator, device=self.means.device)
            drawn.append(self.means[row, which] + self.scales[row, which] * noise)
        return torch.cat([means, self._outward(torch.stack(drawn))], dim=1)

    def _outward(self, sequences: Float[Tensor, "*n m t a"]) -> Float[Tensor, "*n m t a"]:
        return sequences if self.axes is None else sequences @ self.axes.mT.unsqueeze(-3)


def mixture_of(
    said: Float[Tensor, "*n o"], config: ActorConfig, axes: Float[Tensor, "*n a a"] | None = None
) -> Mixture:
    """What the last layer of an actor says, as a mixture."""
    said = said.unflatten(-1, (config.components, -1))
    logits, rest = said[..., 0], said[..., 1:]
    means, scales = rest.unflatten(-1, (2, config.ahead, config.actions)).unbind(-3)
    return Mixture(logits.log_softmax(dim=-1), means, LEAST_SCALE + F.softplus(scales), axes)


class Actor(GoalNetwork):
    """Actions of the next control steps from a frame, with the robot's state, to a goal picture."""

    config: ActorConfig

    def __init__(self, config: ActorConfig) -> None:
        super().__init__(config)
        self.read = nn.Linear(config.width, config.components * (1 + 2 * config.ahead * config.actions))

    def forward(
        self,
        latents: Float[Tensor, "*n p d"],
        features: Float[Tensor, "*n f"],
        goal: Float[Tensor, "*#n p d"],
        states: Float[Tensor, "*n s"],
    ) -> Mixture:
        """A mixture in float32. `features`: of the `states`, as `StateSpace.state_features` gives them; the states
        themselves are not looked at."""
        hidden = self.compared(latents, features, goal)
        with torch.autocast(hidden.device.type, enabled=False):
            return mixture_of(self.read(hidden.float()), self.config)
