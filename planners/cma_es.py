"""CMA-ES (Hansen 2016, arXiv:1604.00772) through the `cma` package, full or separable (Ros and Hansen 2008).

The package works on positions in [-1, 1] (so that one step size suits every unit), keeps them there with its own
boundary transformation, and draws from each problem's generator alone: its seed option, which would seed numpy's
global generator, is switched off. It is told ranks, not costs: CMA-ES uses no more, and so constraints come first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Bounds, Evaluation
from vjepa_mpc.planners.evaluation import rank
from vjepa_mpc.planners.positions import Positions
from vjepa_mpc.planners.search import Proposal, SearchPlanner


@dataclass(frozen=True)
class CMASettings:
    """What CMA-ES may be told.

    `samples` candidates an iteration, few: the covariance is learned over many iterations. `std_fraction`:
    initial step size as a fraction of half of each action's range. `separable`: a diagonal covariance, for
    many dimensions: time and memory then grow linearly with them. `chunk`: candidates evaluated at a time.
    """

    samples: int = 16
    iterations: int = 48
    std_fraction: float = 0.3
    separable: bool = False
    chunk: int | None = None

    @property
    def elites(self) -> int:
        """Candidates that the next distribution is made of: the package's own half."""
        return self.samples // 2

    def __post_init__(self) -> None:
        if self.samples < 2 or self.iterations < 1:
            raise InputError(
                f"CMA-ES needs at least 2 samples and 1 iteration; got {self.samples} and {self.iterations}."
            )
        if not 0 < self.std_fraction < float("inf"):
            raise InputError(f"CMA-ES's std_fraction is {self.std_fraction}; it must be positive.")


class _Optimiser:
    """The package's optimiser for one problem, what it draws from, and what it asked last."""

    def __init__(self, position: Float[Tensor, "n"], settings: CMASettings) -> None:
        import cma

        self.generator: torch.Generator | None = None
        self.asked: list[Any] = []
        self.sent: Float[Tensor, "n h a"] | None = None
        options: dict[str, Any] = {
            "bounds": [-1, 1], "popsize": settings.samples, "CMA_diagonal": settings.separable,
            "seed": float("nan"), "randn": self._noise, "verbose": -9,
        }  # fmt: skip
        start = np.resize(position.double().cpu().numpy(), max(2, position.numel()))  # one number alone is not taken
        self.size = position.numel()
        self.search: Any = cma.CMAEvolutionStrategy(start, settings.std_fraction, options)

    def _noise(self, *shape: int) -> Any:
        assert self.generator is not None
        drawn = torch.randn(*shape, generator=self.generator, dtype=torch.float64, device=self.generator.device)
        return drawn.cpu().numpy()

    def ask(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        """`n` positions."""
        self.generator = generator
        self.asked = self.search.ask(n)
        return torch.from_numpy(np.concatenate(self.asked).reshape(n, -1)[:, : self.size])

    def tell(self, points: Any, order: list[int]) -> None:
        """Learn from positions, as arrays, and their ranks."""
        ranks = np.empty(len(order))
        ranks[order] = np.arange(len(order))
        self.search.tell(points, ranks.tolist())

    def judged(self, samples: Float[Tensor, "n h a"], positions: Callable[[], Float[Tensor, "n d"]]) -> list[Any]:
        """The positions judged, as arrays: those that were asked for are known in full precision."""
        assert self.sent is not None
        same = (self.sent == samples[: len(self.sent)]).flatten(1).all(dim=1).tolist()
        if all(same) and len(same) == len(samples):
            return self.asked
        points = positions().double().cpu().numpy()
        padded = np.repeat(points, 2, axis=1) if self.size == 1 else points
        return [self.asked[i] if i < len(same) and same[i] else point for i, point in enumerate(padded)]

    @property
    def favourite(self) -> Float[Tensor, "d"]:
        """The mean of the distribution, inside the box."""
        return torch.from_numpy(np.array(self.search.result.xfavorite)[: self.size])


@dataclass(frozen=True)
class CMAState:
    """One optimiser of the package a problem (changed as they are used: the one state here that is not a value),
    and the actions it was last asked for. Actions without range stay at the start's."""

    box: Positions
    start: Float[Tensor, "b h a"]
    optimisers: tuple[_Optimiser | None, ...]


class CMAProposal(Proposal[CMAState]):
    """CMA-ES as a proposal of the search loop."""

    def __init__(self, settings: CMASettings) -> None:
        self.settings = settings

    def sizes(self) -> tuple[int, ...]:
        """`iterations` populations of `samples`."""
        return (self.settings.samples,) * self.settings.iterations

    def init(self, init_actions: Float[Tensor, "b h a"], bounds: Bounds, iterations: int) -> CMAState:
        """A distribution around the start for each problem."""
        box = Positions.of(bounds)
        free = box.half > 0
        starts = box.of_actions(init_actions)[:, :, free].flatten(1)
        some = bool(free.any())
        optimisers = tuple(_Optimiser(start, self.settings) if some else None for start in starts)
        return CMAState(box, init_actions, optimisers)

    def sample(self, state: CMAState, n: int, generators: Sequence[torch.Generator]) -> Float[Tensor, "b n h a"]:
        """What the package asks for."""
        parts = []
        for row, (optimiser, generator) in enumerate(zip(state.optimisers, generators, strict=True)):
            if optimiser is None:
                parts.append(state.start[row].expand(n, -1, -1))
            else:
                optimiser.sent = self._actions(state, row, optimiser.ask(n, generator))
                parts.append(optimiser.sent)
        return torch.stack(parts)

    def update(self, state: CMAState, samples: Float[Tensor, "b n h a"], evaluation: Evaluation) -> CMAState:
        """Tell the package. A population cut short teaches nothing, nor does one that is rejected as a whole."""
        if samples.shape[1] < self.settings.samples:
            return state
        order = rank(evaluation)
        usable = (evaluation.cost != torch.inf).any(dim=1)
        for row, optimiser in enumerate(state.optimisers):
            if optimiser is not None and bool(usable[row]):
                positions = partial(self._positions, state, samples[row])
                optimiser.tell(optimiser.judged(samples[row], positions), order[row].tolist())
        return state

    def final(self, state: CMAState) -> Float[Tensor, "b 1 h a"]:
        """The mean."""
        parts = []
        for row, optimiser in enumerate(state.optimisers):
            parts.append(
                state.start[row][None] if optimiser is None else self._actions(state, row, optimiser.favourite[None])
            )
        return torch.stack(parts)

    def _positions(self, state: CMAState, actions: Float[Tensor, "n h a"]) -> Float[Tensor, "n d"]:
        """Where the free actions of one problem's candidates are."""
        return state.box.of_actions(actions)[:, :, state.box.half > 0].flatten(1)

    def _actions(self, state: CMAState, row: int, positions: Float[Tensor, "n d"]) -> Float[Tensor, "n h a"]:
        """Positions of the free actions of one problem as actions, the others as in the start."""
        start = state.start[row]
        whole, free = positions.to(start).unflatten(1, (len(start), -1)), state.box.half > 0
        if not bool(free.all()):
            searched, whole = whole, state.box.of_actions(start).expand(len(positions), -1, -1).clone()
            whole[:, :, free] = searched
        bounds = state.box.bounds.rows(torch.tensor([row], device=start.device))  # its own step before the first
        return bounds.clip((state.box.centre + state.box.half * whole)[None])[0]


class CMAES(SearchPlanner[CMAState]):
    """CMA-ES inside `bounds` (action units)."""

    def __init__(self, bounds: Bounds, settings: CMASettings | None = None) -> None:
        import cma  # noqa: F401  (takes a second or two: here, not in the first plan)

        self.settings = settings or CMASettings()
        super().__init__(bounds, CMAProposal(self.settings), chunk=self.settings.chunk)
