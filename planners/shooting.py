"""The two plainest searches: random shooting and predictive sampling. Floors for every other planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Bounds, Evaluation
from vjepa_mpc.planners.evaluation import Best
from vjepa_mpc.planners.noise import draw
from vjepa_mpc.planners.search import Proposal, Schedule, SearchPlanner, spread


@dataclass(frozen=True)
class ShootingSettings:
    """`iterations` populations of `samples` uniform candidates; `chunk`: candidates evaluated at a time."""

    samples: int = 128
    iterations: int = 6
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 1 or self.iterations < 1:
            raise InputError(f"Shooting needs samples and iterations >= 1; got {self.samples} and {self.iterations}.")


@dataclass(frozen=True)
class ShootingState:
    """The box, and the start."""

    start: Float[Tensor, "b h a"]
    low: Float[Tensor, "b 1 a"]
    high: Float[Tensor, "b 1 a"]


class ShootingProposal(Proposal[ShootingState]):
    """Uniform candidates, whatever came before (random shooting, as Nagabandi et al. 2018,
    arXiv:1708.02596, plan through a learned model)."""

    def __init__(self, settings: ShootingSettings) -> None:
        self.settings = settings

    def sizes(self) -> tuple[int, ...]:
        """`iterations` populations of `samples`."""
        return (self.settings.samples,) * self.settings.iterations

    def init(self, init_actions: Float[Tensor, "b h a"], bounds: Bounds, iterations: int) -> ShootingState:
        """The box."""
        like = init_actions[:, :1]
        return ShootingState(init_actions, bounds.low.expand_as(like), bounds.high.expand_as(like))

    def sample(self, state: ShootingState, n: int, generators: Sequence[torch.Generator]) -> Float[Tensor, "b n h a"]:
        """Uniform in the box."""
        parts = []
        for generator in generators:
            part = torch.rand(
                n, *state.start.shape[1:], generator=generator, dtype=state.start.dtype, device=generator.device
            )
            parts.append(part.to(state.start.device))
        return state.low[:, None] + (state.high - state.low)[:, None] * torch.stack(parts)

    def update(
        self, state: ShootingState, samples: Float[Tensor, "b n h a"], evaluation: Evaluation
    ) -> ShootingState:
        """Nothing is learned."""
        return state

    def schedule(self, left: int) -> Schedule:
        """Populations alone: there is nothing to add at the end."""
        return spread(self.sizes(), left, final=0)

    def final(self, state: ShootingState) -> Float[Tensor, "b 0 h a"]:
        """Nothing."""
        return state.start[:, None][:, :0]


@dataclass(frozen=True)
class PredictiveSettings:
    """`iterations` populations of `samples` around the best plan so far. `std_fraction`: the noise's std as a
    fraction of half of each action's range; `noise_exponent`: its power is 1/f^exponent over the horizon."""

    samples: int = 128
    iterations: int = 6
    std_fraction: float = 0.2
    noise_exponent: float = 0.0
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 1 or self.iterations < 1:
            raise InputError(
                f"Predictive sampling needs samples and iterations >= 1; got {self.samples} and {self.iterations}."
            )
        if not 0 < self.std_fraction < float("inf"):
            raise InputError(f"Predictive sampling's std_fraction is {self.std_fraction}; it must be positive.")
        if not 0 <= self.noise_exponent < 20:
            raise InputError(f"Predictive sampling's noise_exponent is {self.noise_exponent}; it must lie in [0, 20).")


@dataclass(frozen=True)
class PredictiveState:
    """The nominal plan with what it cost (None before anything was judged), and the noise's std."""

    nominal: Float[Tensor, "b h a"]
    std: Float[Tensor, "b 1 a"]
    best: Best | None = None


class PredictiveProposal(Proposal[PredictiveState]):
    """Noise around the best plan so far, which moves to the best candidate (predictive sampling: Howell et al.
    2022, arXiv:2212.00541; there one population a control step, of splines, which
    `vjepa_mpc.planners.knots` gives)."""

    def __init__(self, settings: PredictiveSettings) -> None:
        self.settings = settings

    def sizes(self) -> tuple[int, ...]:
        """`iterations` populations of `samples`."""
        return (self.settings.samples,) * self.settings.iterations

    def init(self, init_actions: Float[Tensor, "b h a"], bounds: Bounds, iterations: int) -> PredictiveState:
        """Around the start."""
        std = self.settings.std_fraction * (bounds.high / 2 - bounds.low / 2)
        return PredictiveState(init_actions, std.expand_as(init_actions[:, :1]))

    def sample(
        self, state: PredictiveState, n: int, generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "b n h a"]:
        """Gaussian candidates around the nominal plan; the nominal plan itself, until it has been judged here."""
        own = state.best is None and n > 1
        noise = draw(n - own, state.nominal, generators, self.settings.noise_exponent)
        samples = state.nominal[:, None] + state.std[:, None] * noise
        return torch.cat((state.nominal[:, None], samples), dim=1) if own else samples

    def update(
        self, state: PredictiveState, samples: Float[Tensor, "b n h a"], evaluation: Evaluation
    ) -> PredictiveState:
        """Move to the best plan so far."""
        best = state.best or Best(samples[:, 0], evaluation.cost[:, 0], evaluation.violation[:, 0])
        best = best.improved_by(samples, evaluation)
        return replace(state, nominal=best.actions, best=best)

    def final(self, state: PredictiveState) -> Float[Tensor, "b 1 h a"]:
        """The nominal plan."""
        return state.nominal[:, None]


class RandomShooting(SearchPlanner[ShootingState]):
    """Uniform candidates inside `bounds` (action units)."""

    def __init__(self, bounds: Bounds, settings: ShootingSettings | None = None) -> None:
        self.settings = settings or ShootingSettings()
        super().__init__(bounds, ShootingProposal(self.settings), chunk=self.settings.chunk)


class PredictiveSampling(SearchPlanner[PredictiveState]):
    """Noise around the best plan so far, inside `bounds` (action units)."""

    def __init__(self, bounds: Bounds, settings: PredictiveSettings | None = None) -> None:
        self.settings = settings or PredictiveSettings()
        super().__init__(bounds, PredictiveProposal(self.settings), chunk=self.settings.chunk)
