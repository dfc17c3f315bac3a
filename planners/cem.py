"""The cross-entropy method: sample around a mean, move mean and spread to the elites, again.

Rubinstein 1999; as V-JEPA 2-AC uses it (Assran et al. 2025, arXiv:2506.09985) with momentum on both, and
with iCEM's coloured noise and kept elites (Pinneri et al. 2020, arXiv:2008.06389). Steps and actions are drawn
independently of each other but for one direction, if asked for: the path that the mean has come, as in the rank-one
update of CMA-ES (Hansen and Ostermeier 2001, "Completely derandomized self-adaptation in evolution strategies").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Bounds, Evaluation
from vjepa_mpc.planners.evaluation import join, rank, take
from vjepa_mpc.planners.noise import draw
from vjepa_mpc.planners.search import Proposal, SearchPlanner
from vjepa_mpc.planners.units import each_in_units


@dataclass(frozen=True)
class CEMSettings:
    """What CEM may be told.

    `samples` candidates an iteration, the best `elites` of which make the next distribution.
    `momentum_mean`, `momentum_std` in [0, 1): the share of the old value kept.
    `std_fraction`: initial std as a fraction of half of each action's range; `std`, if given, is that std
    itself, in action units, one value an action. `std_floor`: no std falls below this fraction of its
    initial value. `mean_candidate`: evaluate the mean, too. `keep_fraction`: the share of the elites that
    stays among the candidates of the next iteration, at no evaluation. `noise_exponent`: 0 draws each
    step by itself, larger ones draw moves correlated over the horizon (power 1/f^exponent). `path_share` in [0, 1):
    the share of a candidate's variance that lies along the path of the mean: in a valley askew to the axes most of
    what was gained lay there. `chunk`: candidates given to the cost function at a time (None = all).
    """

    samples: int = 128
    elites: int = 16
    iterations: int = 6
    momentum_mean: float = 0.1
    momentum_std: float = 0.1
    std_fraction: float = 0.75
    std: tuple[float, ...] | None = None
    std_floor: float = 0.01
    mean_candidate: bool = True
    keep_fraction: float = 0.3
    noise_exponent: float = 0.0
    path_share: float = 0.0
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.elites < 1 or self.iterations < 1:
            raise InputError(f"CEM needs elites and iterations >= 1; got {self.elites} and {self.iterations}.")
        if self.samples < self.elites:
            raise InputError(
                f"CEM cannot pick {self.elites} elites from {self.samples} samples; "
                f"give at least {self.elites} samples or fewer elites."
            )
        for name in ("momentum_mean", "momentum_std", "path_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"CEM's {name} is {getattr(self, name)}; it must lie in [0, 1).")
        for name in ("std_floor", "keep_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"CEM's {name} is {getattr(self, name)}; it must lie in [0, 1].")
        if not 0 < self.std_fraction < float("inf"):
            raise InputError(f"CEM's std_fraction is {self.std_fraction}; it must be positive.")
        if self.std is not None and not all(0 <= value < float("inf") for value in self.std):
            raise InputError(f"CEM's std is {self.std}; each action's must be a finite number >= 0.")
        if not 0 <= self.noise_exponent < 20:
            raise InputError(f"CEM's noise_exponent is {self.noise_exponent}; it must lie in [0, 20).")
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"CEM's chunk is {self.chunk}; give at least 1 candidate, or None for all.")


@dataclass(frozen=True)
class CEMState:
    """A Gaussian with independent steps, its smallest `floor`, the elites kept with their evaluation, and the path of
    the mean, as long as one candidate is expected to lie from it (None where none is followed)."""

    mean: Float[Tensor, "b h a"]
    std: Float[Tensor, "b h a"]
    floor: Float[Tensor, "b 1 a"]
    kept_actions: Float[Tensor, "b m h a"]
    kept: Evaluation | None  # None before the first update
    path: Float[Tensor, "b h a"] | None = None


@dataclass(frozen=True)
class CEMProposal(Proposal[CEMState]):
    """CEM as a proposal of the search loop."""

    settings: CEMSettings

    def in_units(self, unit: Float[Tensor, "a"]) -> CEMProposal:
        """`std` in these units."""
        return replace(self, settings=replace(self.settings, std=each_in_units(self.settings.std, unit)))

    def sizes(self) -> tuple[int, ...]:
        """`iterations` populations of `samples`."""
        return (self.settings.samples,) * self.settings.iterations

    def init(self, init_actions: Float[Tensor, "b h a"], bounds: Bounds, iterations: int) -> CEMState:
        """A Gaussian around the start, as wide as the settings say."""
        std = self.settings.std_fraction * (bounds.high / 2 - bounds.low / 2)
        if self.settings.std is not None:
            std = torch.tensor(self.settings.std).to(init_actions)
            if std.shape != bounds.low.shape:
                raise InputError(
                    f"CEM's std has {std.numel()} values for {bounds.low.numel()} actions; give one each (std=0.1,0.2)."
                )
        return CEMState(
            init_actions,
            std.expand_as(init_actions),
            (self.settings.std_floor * std).expand_as(init_actions[:, :1]),
            init_actions[:, None][:, :0],
            None,
            torch.zeros_like(init_actions) if self.settings.path_share else None,
        )

    def sample(self, state: CEMState, n: int, generators: Sequence[torch.Generator]) -> Float[Tensor, "b n h a"]:
        """Gaussian candidates; after the first update one of them is the mean (before, that is the start)."""
        with_mean = self.settings.mean_candidate and state.kept is not None and n > 1
        noise = draw(n - with_mean, state.mean, generators, self.settings.noise_exponent)
        away = state.std[:, None] * noise
        if state.path is not None:
            share = self.settings.path_share
            along = draw(n - with_mean, state.mean[:, :1, :1], generators)
            away = math.sqrt(1 - share) * away + math.sqrt(share) * along * state.path[:, None]
        samples = state.mean[:, None] + away
        return torch.cat((state.mean[:, None], samples), dim=1) if with_mean else samples

    def update(self, state: CEMState, samples: Float[Tensor, "b n h a"], evaluation: Evaluation) -> CEMState:
        """Move to the elites. A population cut short by the budget has fewer: the same quantile, not the same
        number."""
        kept, settings = state.kept_actions.shape[1] if state.kept is not None else 0, self.settings
        count = settings.elites * (samples.shape[1] + kept) // settings.samples
        return self.move(state, samples, evaluation, min(settings.elites, max(1, count)))

    def move(
        self, state: CEMState, samples: Float[Tensor, "b n h a"], evaluation: Evaluation, count: int
    ) -> CEMState:
        """Move to the best `count`, those kept among them. Rejected candidates (+inf) are no elites: where they
        fill places the old spread stays in their share, and where all are rejected nothing moves."""
        settings = self.settings
        if state.kept is not None:
            samples = torch.cat((state.kept_actions, samples), dim=1)
            evaluation = join((state.kept, evaluation))
        best = rank(evaluation)[:, :count]
        mean, std = _fit(take(samples, best), evaluation.cost.gather(1, best) != torch.inf, state)

        kept = best[:, : int(settings.keep_fraction * settings.elites)]
        return CEMState(
            settings.momentum_mean * state.mean + (1 - settings.momentum_mean) * mean,
            (settings.momentum_std * state.std + (1 - settings.momentum_std) * std).maximum(state.floor),
            state.floor,
            take(samples, kept),
            Evaluation(evaluation.cost.gather(1, kept), take(evaluation.violation, kept), evaluation.names),
            None if state.path is None else _longer(state.path, mean - state.mean, count),
        )

    def final(self, state: CEMState) -> Float[Tensor, "b 1 h a"]:
        """The Gaussian's mean."""
        return state.mean[:, None]


def _longer(path: Float[Tensor, "b h a"], step: Float[Tensor, "b h a"], elites: int) -> Float[Tensor, "b h a"]:
    """The path with one more step of the elites' mean. The mean of `elites` candidates moves by the square root of
    that less than one of them; memory and weight are those of Hansen and Ostermeier 2001, section 5."""
    rate = 4 / (path[0].numel() + 4)
    return (1 - rate) * path + math.sqrt(rate * (2 - rate) * elites) * step


def _fit(
    elites: Float[Tensor, "b e h a"], usable: Bool[Tensor, "b e"], state: CEMState
) -> tuple[Float[Tensor, "b h a"], Float[Tensor, "b h a"]]:
    """Mean and std of the usable elites. Places taken by unusable ones keep their share of the old variance,
    and a single elite, which has no spread, keeps all of it.

    Both ways below give the same bits for a problem whose elites are all usable, so that its plan does
    not depend on which other problems are in the batch.
    """
    count = elites.shape[1]
    if count > 1 and bool(usable.all()):
        mean = elites.sum(dim=1) / count
        return mean, ((elites - mean[:, None]).square().sum(dim=1) / count).sqrt()
    mask = usable[:, :, None, None]
    found = usable.sum(dim=1)[:, None, None]
    divisor = found.clamp(min=1)
    mean = torch.where(mask, elites, 0.0).sum(dim=1) / divisor
    mean = torch.where(found > 0, mean, state.mean)
    variance = torch.where(mask, (elites - mean[:, None]).square(), 0.0).sum(dim=1) / divisor
    share = (found / count).to(elites)
    std = (share * variance + (1 - share) * state.std.square()).sqrt()
    return mean, torch.where(found > 1, std, state.std)


class CEM(SearchPlanner[CEMState]):
    """The cross-entropy method inside `bounds` (action units)."""

    def __init__(self, bounds: Bounds, settings: CEMSettings | None = None) -> None:
        self.settings = settings or CEMSettings()
        super().__init__(bounds, CEMProposal(self.settings), chunk=self.settings.chunk)
