"""Model predictive path integral control (Williams et al. 2017, "Information theoretic MPC for model-based
reinforcement learning", ICRA): the mean moves to all candidates, each weighed by exp(-cost / temperature).

In their notation alpha = 1: no control cost beside what the cost function says. Their one update a control step
is `iterations=1`; more refine it, with the spread adapted to the weighed candidates if wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Bounds, Evaluation
from vjepa_mpc.planners.evaluation import merit
from vjepa_mpc.planners.noise import draw
from vjepa_mpc.planners.search import Proposal, SearchPlanner

SMOOTHING_ORDER = 2


@dataclass(frozen=True)
class MPPISettings:
    """What MPPI may be told.

    `samples` candidates an iteration. `temperature` (lambda) in units of the population's own spread, the
    standard deviation of its finite costs: the paper's is in units of the cost, which differ from model to
    model. Low ones follow the best candidate alone. `std_fraction`: initial std as a fraction of half of
    each action's range; `momentum_std`: the share of the old std kept (1: never adapted, as in the
    paper), down to `std_floor` of the initial one. `smoothing`: window, in steps, of the Savitzky-Golay
    filter (order 2, as in the paper) over the plan; 0 is none. `noise_exponent`: noise power 1/f^exponent.
    """

    samples: int = 128
    iterations: int = 6
    temperature: float = 0.2
    std_fraction: float = 0.5
    momentum_std: float = 0.3
    std_floor: float = 0.01
    smoothing: int = 0
    noise_exponent: float = 0.0
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 1 or self.iterations < 1:
            raise InputError(f"MPPI needs samples and iterations >= 1; got {self.samples} and {self.iterations}.")
        for name in ("temperature", "std_fraction"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"MPPI's {name} is {getattr(self, name)}; it must be positive.")
        for name in ("momentum_std", "std_floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"MPPI's {name} is {getattr(self, name)}; it must lie in [0, 1].")
        if self.smoothing < 0 or (self.smoothing and self.smoothing % 2 == 0):
            raise InputError(f"MPPI's smoothing window is {self.smoothing}; give an odd number of steps, or 0.")
        if not 0 <= self.noise_exponent < 20:
            raise InputError(f"MPPI's noise_exponent is {self.noise_exponent}; it must lie in [0, 20).")


def savitzky_golay(horizon: int, window: int, like: Tensor) -> Float[Tensor, "h h"]:
    """The matrix that fits a parabola to the `window` steps around each step and takes its value there (Savitzky
    and Golay 1964). At the ends the first and last windows serve. Plans of up to order 2 are left as they are."""
    window = min(window, horizon)
    matrix = torch.zeros(horizon, horizon, dtype=torch.float64)
    for step in range(horizon):
        begin = min(max(step - window // 2, 0), horizon - window)
        times = torch.arange(begin, begin + window, dtype=torch.float64) - step
        powers = times[:, None] ** torch.arange(min(SMOOTHING_ORDER, window - 1) + 1)
        matrix[step, begin : begin + window] = torch.linalg.pinv(powers)[0]
    return matrix.to(like)


@dataclass(frozen=True)
class MPPIState:
    """A Gaussian with independent steps, and its smallest std."""

    mean: Float[Tensor, "b h a"]
    std: Float[Tensor, "b h a"]
    floor: Float[Tensor, "b 1 a"]


class MPPIProposal(Proposal[MPPIState]):
    """MPPI as a proposal of the search loop."""

    def __init__(self, settings: MPPISettings) -> None:
        self.settings = settings

    def sizes(self) -> tuple[int, ...]:
        """`iterations` populations of `samples`."""
        return (self.settings.samples,) * self.settings.iterations

    def init(self, init_actions: Float[Tensor, "b h a"], bounds: Bounds, iterations: int) -> MPPIState:
        """A Gaussian around the start."""
        std = self.settings.std_fraction * (bounds.high / 2 - bounds.low / 2)
        floor = (self.settings.std_floor * std).expand_as(init_actions[:, :1])
        return MPPIState(init_actions, std.expand_as(init_actions), floor)

    def sample(self, state: MPPIState, n: int, generators: Sequence[torch.Generator]) -> Float[Tensor, "b n h a"]:
        """Gaussian candidates."""
        return state.mean[:, None] + state.std[:, None] * draw(n, state.mean, generators, self.settings.noise_exponent)

    def update(self, state: MPPIState, samples: Float[Tensor, "b n h a"], evaluation: Evaluation) -> MPPIState:
        """Mean and std of the weighed candidates. Where all are rejected nothing moves."""
        settings = self.settings
        weight = torch.stack([weights(row, settings.temperature) for row in merit(evaluation)])
        some = weight.sum(dim=1)[:, None, None] > 0
        mean = (weight[:, :, None, None] * samples).sum(dim=1)
        variance = (weight[:, :, None, None] * (samples - mean[:, None]).square()).sum(dim=1)
        std = settings.momentum_std * state.std + (1 - settings.momentum_std) * variance.sqrt()
        if settings.smoothing > SMOOTHING_ORDER + 1 and samples.shape[2] > 1:
            mean = savitzky_golay(samples.shape[2], settings.smoothing, mean) @ mean
        # One candidate has no spread: the std stays.
        std = torch.where(some & (samples.shape[1] > 1), std.maximum(state.floor), state.std)
        return replace(state, mean=torch.where(some, mean, state.mean), std=std)

    def final(self, state: MPPIState) -> Float[Tensor, "b 1 h a"]:
        """The mean."""
        return state.mean[:, None]


def weights(merit: Float[Tensor, "n"], temperature: float) -> Float[Tensor, "n"]:
    """softmax(-merit / (temperature * std of the finite merits)); all 0 where none is finite. Taken problem by
    problem: sums over different shapes may differ in the last bit."""
    finite = merit[merit != torch.inf]
    if not len(finite):
        return torch.zeros_like(merit)
    scale = temperature * finite.std(correction=0)
    above = merit - finite.min()
    share = (above == 0).to(merit) if scale == 0 else (-above / scale).exp()  # equals share
    return share / share.sum()


class MPPI(SearchPlanner[MPPIState]):
    """MPPI inside `bounds` (action units)."""

    def __init__(self, bounds: Bounds, settings: MPPISettings | None = None) -> None:
        self.settings = settings or MPPISettings()
        super().__init__(bounds, MPPIProposal(self.settings), chunk=self.settings.chunk)
