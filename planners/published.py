"""The planner of V-JEPA 2-AC as published: its cross-entropy method to the letter, and what that returns.

Assran et al. 2025, arXiv:2506.09985, section 4, with the settings of the published code: a Gaussian around zero,
whatever came before; every sample clipped to the bounds; mean and (unbiased) deviation of the elites, with
momentum, and no floor. The answer is the last mean, be it better or worse than what was sampled, with small
values of some actions (the gripper) rounded to zero. `CEM` is what to use where nothing is to be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Bounds, Evaluation
from vjepa_mpc.planners.evaluation import rank, take
from vjepa_mpc.planners.noise import draw
from vjepa_mpc.planners.search import Proposal, SearchPlanner


@dataclass(frozen=True)
class PublishedSettings:
    """`samples` an iteration, of which the `elites` best count; `momentum` in [0, 1): the share of the old mean and
    deviation that is kept. `std`: the first deviation, one an action in its unit (None: the upper bounds).
    `dead_zone`: answers nearer to zero than this become zero, one an action (None: none). `chunk`: candidates
    judged at a time (None: all)."""

    samples: int = 800
    elites: int = 10
    iterations: int = 10
    momentum: float = 0.15
    std: tuple[float, ...] | None = None
    dead_zone: tuple[float, ...] | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.iterations < 1 or not 2 <= self.elites <= self.samples:
            raise InputError(
                f"The published planner needs 1 iteration or more and 2 to {self.samples} elites (a deviation is taken "
                f"of them), got {self.iterations} and {self.elites}."
            )
        if not 0 <= self.momentum < 1:
            raise InputError(f"The momentum is {self.momentum}; it must lie in [0, 1).")
        for name, values in (("std", self.std), ("dead_zone", self.dead_zone)):
            if values is not None and not all(0 <= value < float("inf") for value in values):
                raise InputError(f"The published planner's {name} is {values}; each must be a finite number >= 0.")


@dataclass(frozen=True)
class PublishedState:
    """The Gaussian, and below what size its answer's values become zero."""

    mean: Float[Tensor, "b h a"]
    std: Float[Tensor, "b h a"]
    dead_zone: Float[Tensor, "b 1 a"]


@dataclass(frozen=True)
class PublishedProposal(Proposal[PublishedState]):
    """The published method as a proposal of the search loop."""

    settings: PublishedSettings
    final_is_the_answer: ClassVar[bool] = True

    def sizes(self) -> tuple[int, ...]:
        return (self.settings.samples,) * self.settings.iterations

    def init(self, init_actions: Float[Tensor, "b h a"], bounds: Bounds, iterations: int) -> PublishedState:
        """A Gaussian around zero: the start, a plan carried over, has no part in it."""
        std = _each(self.settings.std, bounds.high, "std")
        dead = _each(self.settings.dead_zone, torch.zeros_like(bounds.high), "dead_zone")
        zero = torch.zeros_like(init_actions)
        return PublishedState(zero, zero + std, zero[:, :1] + dead)

    def sample(
        self, state: PublishedState, n: int, generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "b n h a"]:
        return state.mean[:, None] + state.std[:, None] * draw(n, state.mean, generators)

    def update(
        self, state: PublishedState, samples: Float[Tensor, "b n h a"], evaluation: Evaluation
    ) -> PublishedState:
        """Towards the elites' mean and deviation (a population cut to one sample by the budget moves nothing)."""
        elites = take(samples, rank(evaluation)[:, : self.settings.elites])
        if elites.shape[1] < 2:
            return state
        kept = self.settings.momentum
        return PublishedState(
            kept * state.mean + (1 - kept) * elites.mean(dim=1),
            kept * state.std + (1 - kept) * elites.std(dim=1),
            state.dead_zone,
        )

    def final(self, state: PublishedState) -> Float[Tensor, "b 1 h a"]:
        """The mean, its small values in the dead zone rounded to zero."""
        return torch.where(state.mean.abs() < state.dead_zone, 0.0, state.mean)[:, None]


def _each(values: tuple[float, ...] | None, default: Tensor, name: str) -> Tensor:
    """One value an action."""
    if values is None:
        return default
    if len(values) != default.numel():
        raise InputError(f"The published planner's {name} has {len(values)} values for {default.numel()} actions.")
    return torch.tensor(values).to(default)


class PublishedCEM(SearchPlanner[PublishedState]):
    """V-JEPA 2-AC's planner inside `bounds` (action units).

    The one planner that keeps the contract but for two promises: what it returns may be worse than its start and
    than what it sampled, and it does not begin at its start. The cost it returns is its answer's own.
    """

    def __init__(self, bounds: Bounds, settings: PublishedSettings | None = None) -> None:
        self.settings = settings or PublishedSettings()
        super().__init__(bounds, PublishedProposal(self.settings), chunk=self.settings.chunk)
