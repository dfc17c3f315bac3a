"""The planner of V-JEPA 2-AC as published: its cross-entropy method to the letter, and what that returns.

Assran et al. 2025, arXiv:2506.09985, section 4, with the settings of the published code: a Gaussian around zero,
whatever came before; every sample clipped to the bounds; mean and (unbiased) deviation of the elites, with
momentum, and no floor. The answer is the last mean, be it better or worse than what was sampled, with small
values of some actions (the gripper) rounded to zero. `CEM` is what to use where nothing is to be compared.

Rejected plans, constraints and targets, which the published code does not have, are kept here as by every planner:
rejected samples are no elites, and a mean that is rejected, breaks a constraint or misses the target that ended the
search gives way to the best that was judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Bounds, Evaluation
from vjepa_mpc.planners.evaluation import rank, take
from vjepa_mpc.planners.noise import draw
from vjepa_mpc.planners.search import Proposal, SearchPlanner
from vjepa_mpc.planners.units import each_in_units


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

    def in_units(self, unit: Float[Tensor, "a"]) -> PublishedProposal:
        """`std` and `dead_zone` in these units."""
        std, dead = (each_in_units(values, unit) for values in (self.settings.std, self.settings.dead_zone))
        return replace(self, settings=replace(self.settings, std=std, dead_zone=dead))

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
        """Towards the elites' mean and deviation. Fewer than two (of a population cut to one sample by the budget, or
        one of rejected samples) move nothing."""
        best = rank(evaluation)[:, : self.settings.elites]
        if best.shape[1] < 2:
            return state
        usable = _usable(evaluation, best)
        mean, std = _fit(take(samples, best), usable)
        kept, enough = self.settings.momentum, (usable.sum(dim=1) >= 2)[:, None, None]
        return PublishedState(
            torch.where(enough, kept * state.mean + (1 - kept) * mean, state.mean),
            torch.where(enough, kept * state.std + (1 - kept) * std, state.std),
            state.dead_zone,
        )

    def final(self, state: PublishedState) -> Float[Tensor, "b 1 h a"]:
        """The mean, its small values in the dead zone rounded to zero."""
        return torch.where(state.mean.abs() < state.dead_zone, 0.0, state.mean)[:, None]


def _usable(evaluation: Evaluation, best: Int[Tensor, "b e"]) -> Bool[Tensor, "b e"]:
    """Which of the ranked candidates may be elites: none that is rejected, and of those that break a constraint none
    where two or more keep all of them."""
    finite = evaluation.cost.gather(1, best) != torch.inf
    keeps = finite & (take(evaluation.violation, best).sum(dim=-1) == 0)
    return torch.where(keeps.sum(dim=1, keepdim=True) >= 2, keeps, finite)


def _fit(
    elites: Float[Tensor, "b e h a"], usable: Bool[Tensor, "b e"]
) -> tuple[Float[Tensor, "b h a"], Float[Tensor, "b h a"]]:
    """Mean and unbiased deviation of the usable elites. A problem whose elites all are has the same bits beside any
    other."""
    mean, std = elites.mean(dim=1), elites.std(dim=1)
    if bool(usable.all()):
        return mean, std
    mask, found = usable[:, :, None, None], usable.sum(dim=1)[:, None, None]
    some_mean = torch.where(mask, elites, 0.0).sum(dim=1) / found.clamp(min=1)
    squares = torch.where(mask, (elites - some_mean[:, None]).square(), 0.0).sum(dim=1)
    some_std = (squares / (found - 1).clamp(min=1)).sqrt()
    whole = mask.all(dim=1)
    return torch.where(whole, mean, some_mean), torch.where(whole, std, some_std)


def _each(values: tuple[float, ...] | None, default: Tensor, name: str) -> Tensor:
    """One value an action."""
    if values is None:
        return default
    if len(values) != default.numel():
        raise InputError(f"The published planner's {name} has {len(values)} values for {default.numel()} actions.")
    return torch.tensor(values).to(default)


class PublishedCEM(SearchPlanner[PublishedState]):
    """V-JEPA 2-AC's planner inside `bounds` (action units).

    The one planner that keeps the contract but for this: what it returns may be worse than its start, than what was
    suggested and than what it sampled, and it begins at zero, not at its start. The cost it returns is its answer's
    own. It never returns a rejected plan, or one that breaks a constraint, where a better was judged, and
    `stopped="target"` means that what it returns meets the target.
    """

    def __init__(self, bounds: Bounds, settings: PublishedSettings | None = None) -> None:
        self.settings = settings or PublishedSettings()
        super().__init__(bounds, PublishedProposal(self.settings), chunk=self.settings.chunk)
