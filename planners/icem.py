"""iCEM: the improved cross-entropy method for real-time planning (Pinneri et al. 2020, arXiv:2008.06389).

Coloured noise, a population that decays, elites kept from iteration to iteration and (shifted, as
suggestions) from one control step to the next, and the mean among the last candidates: algorithm 1 of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Bounds, Evaluation
from vjepa_mpc.planners.cem import CEMProposal, CEMSettings, CEMState
from vjepa_mpc.planners.search import Proposal, SearchPlanner


@dataclass(frozen=True)
class ICEMSettings:
    """What iCEM may be told, named as in the paper's table where it names it.

    `samples` candidates in the first iteration, fewer by the factor `decay` in each later one, but no less
    than twice the `elites`. `momentum` (alpha): the share of mean and std kept. `std_fraction` (sigma_init):
    initial std as a fraction of half of each action's range. `keep_fraction` (xi): the share of the elites
    kept. `noise_exponent` (beta): the noise's power is 1/f^beta. `chunk`: candidates evaluated at a time.
    """

    samples: int = 128
    elites: int = 10
    iterations: int = 6
    decay: float = 1.25
    momentum: float = 0.1
    std_fraction: float = 0.5
    keep_fraction: float = 0.3
    noise_exponent: float = 2.0
    chunk: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.decay < float("inf"):
            raise InputError(f"iCEM's decay is {self.decay}; it must be at least 1 (1 keeps the population).")
        self.cem()  # refuses the rest

    def cem(self) -> CEMSettings:
        """The part that plain CEM knows. No std floor: the paper has none."""
        return CEMSettings(
            samples=self.samples,
            elites=self.elites,
            iterations=self.iterations,
            momentum_mean=self.momentum,
            momentum_std=self.momentum,
            std_fraction=self.std_fraction,
            std_floor=0.0,
            mean_candidate=False,
            keep_fraction=self.keep_fraction,
            noise_exponent=self.noise_exponent,
            chunk=self.chunk,
        )


@dataclass(frozen=True)
class ICEMState:
    """CEM's state, and how many iterations are left."""

    cem: CEMState
    left: int


class ICEMProposal(Proposal[ICEMState]):
    """iCEM as a proposal of the search loop."""

    def __init__(self, settings: ICEMSettings) -> None:
        self.settings = settings
        self._cem = CEMProposal(settings.cem())

    def sizes(self) -> tuple[int, ...]:
        """N_i = max(N * decay^-i, 2 K)."""
        first, least = self.settings.samples, 2 * self.settings.elites
        return tuple(max(int(first * self.settings.decay**-i), least) for i in range(self.settings.iterations))

    def init(self, init_actions: Float[Tensor, "b h a"], bounds: Bounds, iterations: int) -> ICEMState:
        """CEM's Gaussian around the start."""
        return ICEMState(self._cem.init(init_actions, bounds, iterations), iterations)

    def sample(self, state: ICEMState, n: int, generators: Sequence[torch.Generator]) -> Float[Tensor, "b n h a"]:
        """Coloured noise around the mean; in the last iteration the mean is one of the candidates."""
        if state.left > 1 or n < 2 or state.cem.kept is None:
            return self._cem.sample(state.cem, n, generators)
        return torch.cat((self._cem.sample(state.cem, n - 1, generators), state.cem.mean[:, None]), dim=1)

    def update(self, state: ICEMState, samples: Float[Tensor, "b n h a"], evaluation: Evaluation) -> ICEMState:
        """As CEM: the elites stay as many when the population decays, kept ones compete without a new evaluation."""
        count = min(self.settings.elites, max(1, samples.shape[1] // 2))
        return replace(state, cem=self._cem.move(state.cem, samples, evaluation, count), left=state.left - 1)

    def final(self, state: ICEMState) -> Float[Tensor, "b 1 h a"]:
        """The mean."""
        return self._cem.final(state.cem)

    def others(self, state: ICEMState) -> Float[Tensor, "b m h a"] | None:
        """The elites kept: for the next control step, which shifts them."""
        return state.cem.kept_actions


class ICEM(SearchPlanner[ICEMState]):
    """iCEM inside `bounds` (action units)."""

    def __init__(self, bounds: Bounds, settings: ICEMSettings | None = None) -> None:
        self.settings = settings or ICEMSettings()
        super().__init__(bounds, ICEMProposal(self.settings), chunk=self.settings.chunk)
