"""Gradient descent through the cost function, from several starts at once.

Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1) on actions, projected onto the bounds after each step;
planning by gradient through a latent world model as in the gradient-descent planner of DINO-WM (Zhou et al.
2024, arXiv:2411.04983).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Bounds, Evaluation
from vjepa_mpc.planners.noise import draw
from vjepa_mpc.planners.positions import Positions
from vjepa_mpc.planners.search import Proposal, Schedule, SearchPlanner
from vjepa_mpc.planners.units import power_of_two

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
SMALL = 100 * EPSILON
"""Slopes below which Adam's epsilon, which is for slopes near 1, would hold a start back."""


@dataclass(frozen=True)
class GradientSettings:
    """What the gradient planner may be told. Lengths are fractions of half of each action's range.

    `starts`: the given plan and `starts` - 1 perturbed ones (std `perturbation`). `steps` of Adam with
    `learning_rate`, falling to 0 along a half cosine. `gradient_clip`: largest norm of one start's
    gradient over horizon and actions. `action_noise`: std of noise added after each step to the last start, which
    falls to 0 along a half cosine over the first `noise_share` of the steps: early it shakes a start out of shallow
    valleys, later nothing is in the way (annealed as in Neelakantan et al. 2015, arXiv:1511.06807). The starts before
    have evenly less, the first one, the given plan, none: a ladder of temperatures (as in Geyer 1991, "Markov chain
    Monte Carlo maximum likelihood", but without exchanges), so that some explore and some arrive. One start alone has
    all of it. `penalty`: weight of the summed constraint violations in the objective descended (ranking stays
    feasibility first). `chunk`: starts differentiated at a time (None = all).
    """

    starts: int = 4
    steps: int = 20
    learning_rate: float = 0.2
    perturbation: float = 0.5
    gradient_clip: float = 1.0
    action_noise: float = 0.0
    noise_share: float = 1.0
    penalty: float = 10.0
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.starts < 1 or self.steps < 1:
            raise InputError(f"Gradient planning needs starts and steps >= 1; got {self.starts} and {self.steps}.")
        for name in ("learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"The gradient planner's {name} is {getattr(self, name)}; it must be positive.")
        if not 0 < self.noise_share <= 1:
            raise InputError(f"The gradient planner's noise_share is {self.noise_share}; it must lie in (0, 1].")
        for name in ("perturbation", "action_noise", "penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"The gradient planner's {name} is {getattr(self, name)}; it must be >= 0.")


def descents(starts: int, steps: int, left: int) -> Schedule:
    """Each start's slope at every step, then, judged without slopes, the best seen and where each start ended.
    With little budget fewer starts are used, and the last step may serve only some of them. All of it is spent: what
    one step of fewer starts would leave over is the slope of another start, whose end is not judged."""
    fewer = min(starts, max(1, (left - 1) // 2))
    final = min(fewer + 1, max(1, left - 1), left)
    spent = min(left - final, starts * steps)
    size = spent if steps == 1 else fewer
    populations = tuple(min(size, spent - done) for done in range(0, spent, size or 1))
    return Schedule(populations, final, cut=left < starts * steps + starts + 1)


def around(
    start: Float[Tensor, "b h a"], n: int, spread: float, generators: Sequence[torch.Generator]
) -> Float[Tensor, "b n h a"]:
    """The position `start` and n - 1 perturbed ones."""
    positions = start[:, None].repeat(1, n, 1, 1)
    if n > 1:
        positions[:, 1:] += spread * draw(n - 1, start, generators)
    return positions.clamp(-1, 1)


def clipped(slope: Float[Tensor, "b n h a"], largest: float | Float[Tensor, "b"]) -> Float[Tensor, "b n h a"]:
    """Shorten each start's gradient to the norm `largest` (one for all, or one a problem). The norm is taken problem by
    problem: sums over different shapes may differ in the last bit. Where squares overflow it is taken in units of the
    largest number, powers of two."""
    longest = torch.as_tensor(largest, dtype=slope.dtype, device=slope.device).clamp(max=torch.finfo(slope.dtype).max)
    longest = longest.expand(len(slope))[:, None]
    norms = _norms(slope)
    if math.isfinite(float(norms.sum())):
        return slope * (longest / norms.maximum(longest))[:, :, None, None]
    unit = torch.where(norms.isfinite(), 1.0, power_of_two(slope.abs().flatten(2).amax(dim=2)))
    slope, longest = slope / unit[:, :, None, None], longest / unit
    return slope * (unit * longest / _norms(slope).maximum(longest))[:, :, None, None]


def _norms(slope: Float[Tensor, "b n h a"]) -> Float[Tensor, "b n"]:
    return torch.stack([part.flatten(1).square().sum(dim=1).sqrt() for part in slope])


def ladder(n: int, starts: int, like: Float[Tensor, "b h a"]) -> Float[Tensor, "n 1 1"]:
    """What share of the noise each of the first n of so many starts has: evenly from 0 to 1, and 1 for one alone."""
    shares = torch.linspace(0, 1, starts, dtype=like.dtype, device=like.device) if starts > 1 else like.new_ones(1)
    return shares[:n, None, None]


def half_cosine(done: float) -> float:
    """From 1 at 0 down to 0 at 1."""
    return (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class AdamState:
    """Where each start is (in [-1, 1]; None before the first update), Adam's moments, steps done and to do. `unit`: the
    slopes that Adam takes for 1 where a problem's first ones are all `SMALL`, else 1 (0 while they are all 0)."""

    box: Positions
    start: Float[Tensor, "b h a"]
    steps: int
    step: int = 0
    position: Float[Tensor, "b n h a"] | None = None
    first: Float[Tensor, "b n h a"] | None = None
    second: Float[Tensor, "b n h a"] | None = None
    unit: Float[Tensor, "b"] | None = None


class AdamProposal(Proposal[AdamState]):
    """Adam as a proposal of the search loop: its candidates are where the starts are."""

    def __init__(self, settings: GradientSettings) -> None:
        self.settings, self.penalty = settings, settings.penalty

    def sizes(self) -> tuple[int, ...]:
        """Every start at every step."""
        return (self.settings.starts,) * self.settings.steps

    def schedule(self, left: int) -> Schedule:
        """Slopes, and at the end every start again without them."""
        return descents(self.settings.starts, self.settings.steps, left)

    def init(self, init_actions: Float[Tensor, "b h a"], bounds: Bounds, iterations: int) -> AdamState:
        """One start so far."""
        box = Positions.of(bounds, init_actions.shape[1])
        return AdamState(box, box.of_actions(init_actions), iterations)

    def sample(self, state: AdamState, n: int, generators: Sequence[torch.Generator]) -> Float[Tensor, "b n h a"]:
        """The given plan and perturbed ones, later where they are, with noise if asked for."""
        if state.position is None:
            return state.box.actions(around(state.start, n, self.settings.perturbation, generators))
        position = state.position[:, :n]
        done = state.step / (state.steps * self.settings.noise_share)
        if self.settings.action_noise and done < 1:
            std = self.settings.action_noise * half_cosine(done)
            share = ladder(n, state.position.shape[1], state.start)
            position = (position + std * share * draw(n, state.start, generators)).clamp(-1, 1)
        return state.box.actions(position)

    def update(self, state: AdamState, samples: Float[Tensor, "b n h a"], evaluation: Evaluation) -> AdamState:
        """One step of each start. Those the budget no longer serves get no slope and coast to rest.

        Sums, products, roots and quotients one by one: fused forms may round differently in a batch.
        """
        assert evaluation.slope is not None
        settings, here = self.settings, state.box.of_actions(samples)
        slope, unit = self._followed(state.box.slope(evaluation.slope), state.unit)
        if state.position is not None and state.position.shape[1] > here.shape[1]:
            rest = state.position[:, here.shape[1] :]
            here, slope = torch.cat((here, rest), dim=1), torch.cat((slope, torch.zeros_like(rest)), dim=1)
        old_first = torch.zeros_like(here) if state.first is None else state.first
        old_second = torch.zeros_like(here) if state.second is None else state.second
        first = BETA_1 * old_first + (1 - BETA_1) * slope
        second = BETA_2 * old_second + (1 - BETA_2) * (slope * slope)
        step = state.step + 1
        rate = settings.learning_rate * half_cosine(state.step / state.steps)
        move = (first / (1 - BETA_1**step)) / ((second / (1 - BETA_2**step)).sqrt() + EPSILON)
        position = state.box.project(here - rate * move)
        return replace(state, step=step, position=position, first=first, second=second, unit=unit)

    def _followed(
        self, slope: Float[Tensor, "b n h a"], unit: Float[Tensor, "b"] | None
    ) -> tuple[Float[Tensor, "b n h a"], Float[Tensor, "b"]]:
        """The slopes in their unit, clipped, so short that their squares are numbers; and that unit."""
        largest = math.sqrt(torch.finfo(slope.dtype).max) / 2
        least = 0.0 if unit is None else float(unit.min())
        if least == 0:
            steepest = slope.abs().flatten(1).amax(dim=1)
            found = torch.where(steepest < SMALL, power_of_two(steepest), 1.0)
            found = torch.where(steepest > 0, found, 0.0)
            unit = found if unit is None else torch.where(unit > 0, unit, found)
            least = float(unit.min())
        assert unit is not None
        if least == 1:  # none is larger
            return clipped(slope, min(self.settings.gradient_clip, largest)), unit
        divisor = torch.where(unit > 0, unit, 1.0)
        most = torch.finfo(slope.dtype).max
        slope = (slope / divisor[:, None, None, None]).clamp(-most, most)
        return clipped(slope, (self.settings.gradient_clip / divisor).clamp(max=largest)), unit

    def final(self, state: AdamState) -> Float[Tensor, "b n h a"]:
        """Where each start ended."""
        return state.box.actions(state.start[:, None] if state.position is None else state.position)


class GradientPlanner(SearchPlanner[AdamState]):
    """Projected Adam from several starts inside `bounds` (action units).

    Each problem spends 1 + steps * starts + (starts + 1) evaluations, or exactly
    `budget.max_evaluations` if that is less: the start; every start's gradient at every step (one
    evaluation each); and, under no_grad, where the starts ended and the best seen on the way.
    """

    def __init__(self, bounds: Bounds, settings: GradientSettings | None = None) -> None:
        self.settings = settings or GradientSettings()
        super().__init__(bounds, AdamProposal(self.settings), chunk=self.settings.chunk)
