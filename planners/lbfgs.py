"""L-BFGS through the cost function, projected onto the bounds, from several starts at once.

Two-loop recursion of Nocedal (1980; Nocedal and Wright 2006, algorithm 7.4) on the free variables of each step
(those not held by a bound, as in Bertsekas 1982, "Projected Newton methods for optimization problems with simple
constraints"), with Armijo's condition along the projection arc. Every iteration judges one trial a start: a trial
that does not bring enough is halved in the next one.
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
from vjepa_mpc.planners.gradient import around, descents
from vjepa_mpc.planners.positions import Positions
from vjepa_mpc.planners.search import Proposal, Schedule, SearchPlanner
from vjepa_mpc.planners.slopes import penalised

ARMIJO, SHORTEST, FLAT = 1e-4, 1e-3, 1e-10
Pairs = tuple[tuple[Float[Tensor, "s d"], Float[Tensor, "s d"]], ...]


@dataclass(frozen=True)
class LBFGSSettings:
    """What L-BFGS may be told. Lengths are fractions of half of each action's range.

    `starts`: the given plan and `starts` - 1 perturbed ones (std `perturbation`). `steps` trials of each.
    `memory`: trials whose moves and slope changes are kept. `longest`: largest change of any action in one trial.
    `penalty`: weight of the summed constraint violations in the objective. `chunk`: starts differentiated at a time.
    """

    starts: int = 4
    steps: int = 20
    memory: int = 10
    longest: float = 0.5
    perturbation: float = 0.5
    penalty: float = 10.0
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.starts < 1 or self.steps < 1 or self.memory < 1:
            raise InputError(
                f"L-BFGS needs starts, steps and memory >= 1; got {self.starts}, {self.steps} and {self.memory}."
            )
        if not 0 < self.longest < math.inf:
            raise InputError(f"L-BFGS's longest step is {self.longest}; it must be positive.")
        for name in ("perturbation", "penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"L-BFGS's {name} is {getattr(self, name)}; it must be >= 0.")


@dataclass(frozen=True)
class LBFGSState:
    """Of each start (s of them, each a point of d numbers in [-1, 1]; None before the first judgement): the
    point held, its objective and slope, the direction tried and its `length`. Of each problem, the last `memory` pairs
    of a move and the slope's change, oldest first, scaled so that their product is 1. A start without a pair from a
    trial that gave others one has the one before again (twice is the same as once), or zeros, which add nothing."""

    box: Positions
    start: Float[Tensor, "b h a"]
    pairs: tuple[Pairs, ...]
    point: Float[Tensor, "b s d"] | None = None
    value: Float[Tensor, "b s"] | None = None
    slope: Float[Tensor, "b s d"] | None = None
    direction: Float[Tensor, "b s d"] | None = None
    length: Float[Tensor, "b s"] | None = None


class LBFGSProposal(Proposal[LBFGSState]):
    """L-BFGS as a proposal of the search loop: its candidates are the starts' trials."""

    def __init__(self, settings: LBFGSSettings) -> None:
        self.settings, self.penalty = settings, settings.penalty

    def sizes(self) -> tuple[int, ...]:
        """Every start at every step."""
        return (self.settings.starts,) * self.settings.steps

    def schedule(self, left: int) -> Schedule:
        """Slopes, and at the end every start again without them."""
        return descents(self.settings.starts, self.settings.steps, left)

    def init(self, init_actions: Float[Tensor, "b h a"], bounds: Bounds, iterations: int) -> LBFGSState:
        """One start so far."""
        box = Positions.of(bounds, init_actions.shape[1])
        return LBFGSState(box, box.of_actions(init_actions), ((),) * len(init_actions))

    def sample(self, state: LBFGSState, n: int, generators: Sequence[torch.Generator]) -> Float[Tensor, "b n h a"]:
        """The given plan and perturbed ones; later each start's trial."""
        if state.point is None:
            return state.box.actions(around(state.start, n, self.settings.perturbation, generators))
        assert state.direction is not None and state.length is not None
        trial = state.point + state.length[:, :, None] * state.direction
        return state.box.actions(trial[:, :n].unflatten(2, state.start.shape[1:]).clamp(-1, 1))

    def update(self, state: LBFGSState, samples: Float[Tensor, "b n h a"], evaluation: Evaluation) -> LBFGSState:
        """Take the trials that bring enough, halve the others; new directions where points moved."""
        assert evaluation.slope is not None
        trial = state.box.of_actions(samples).flatten(2)
        slope = state.box.slope(evaluation.slope).flatten(2)
        value = penalised(evaluation, self.settings.penalty)
        if state.point is None:
            direction = self._directions(trial, slope, state.pairs)
            ones = torch.ones_like(value)
            return replace(state, point=trial, value=value, slope=slope, direction=direction, length=ones)
        return self._advance(state, trial, value, slope)

    def _advance(
        self,
        state: LBFGSState,
        trial: Float[Tensor, "b n d"],
        value: Float[Tensor, "b n"],
        slope: Float[Tensor, "b n d"],
    ) -> LBFGSState:
        assert state.point is not None and state.value is not None and state.slope is not None
        assert state.direction is not None and state.length is not None
        count = trial.shape[1]
        if count < state.point.shape[1]:  # starts the budget no longer serves stay
            trial = torch.cat((trial, state.point[:, count:]), dim=1)
            value = torch.cat((value, torch.full_like(state.value[:, count:], torch.inf)), dim=1)
            slope = torch.cat((slope, state.slope[:, count:]), dim=1)
        move, change = trial - state.point, slope - state.slope
        promised = _dot(state.slope, move)
        taken = (value <= state.value + ARMIJO * promised.clamp(max=0)) & (value != torch.inf)
        curvature = _dot(move, change)
        # Only pairs along which the slope grows keep the approximation positive.
        curved = taken & (curvature > FLAT * _lengths(move, change))
        scale = _scale(curvature)[:, :, None]
        # A trial as short as this shows that the direction is no good: begin again with the slope.
        lost = ~taken & (state.length < SHORTEST)
        news = zip(state.pairs, move * scale, change * scale, curved, lost, strict=True)
        pairs = tuple(self._appended(*of_one) for of_one in news)
        point = torch.where(taken[:, :, None], trial, state.point)
        slope = torch.where(taken[:, :, None], slope, state.slope)
        new = taken | lost
        return replace(
            state,
            pairs=pairs,
            point=point,
            value=torch.where(taken, value, state.value),
            slope=slope,
            direction=torch.where(new[:, :, None], self._directions(point, slope, pairs), state.direction),
            length=torch.where(new, 1.0, state.length / 2),
        )

    def _directions(
        self, point: Float[Tensor, "b s d"], slope: Float[Tensor, "b s d"], pairs: tuple[Pairs, ...]
    ) -> Float[Tensor, "b s d"]:
        """-H g on the free variables, no action changed by more than `longest`."""
        held = point.trunc() * slope  # negative where a bound holds an action, 0 inside
        least = held.flatten(1).amin(dim=1).tolist()
        directions = (
            _free(slope[row], pairs[row], held[row] >= 0) if least[row] < 0 else _direction(slope[row], pairs[row])
            for row in range(len(pairs))
        )
        direction = torch.stack(list(directions))
        largest = direction.abs().amax(dim=2, keepdim=True)
        return direction * (self.settings.longest / largest.clamp(min=self.settings.longest))

    def _appended(
        self,
        pairs: Pairs,
        move: Float[Tensor, "s d"],
        change: Float[Tensor, "s d"],
        curved: Bool[Tensor, "s"],
        lost: Bool[Tensor, "s"],
    ) -> Pairs:
        """One problem's pairs with one more for the starts where it is `curved`, and none for those `lost`."""
        if bool(curved.any()):
            here = curved[:, None]
            before = pairs[-1] if pairs else (torch.zeros_like(move), torch.zeros_like(change))
            newest = torch.where(here, move, before[0]), torch.where(here, change, before[1])
            pairs = (*pairs, newest)[-self.settings.memory :]
        if bool(lost.any()):
            keep = ~lost[:, None]
            pairs = tuple((move * keep, change * keep) for move, change in pairs)
        return pairs

    def final(self, state: LBFGSState) -> Float[Tensor, "b s h a"]:
        """The point each start holds."""
        if state.point is None:
            return state.box.actions(state.start[:, None])
        return state.box.actions(state.point.unflatten(2, state.start.shape[1:]))


def _dot(a: Float[Tensor, "b s d"], b: Float[Tensor, "b s d"]) -> Float[Tensor, "b s"]:
    """Problem by problem: sums over different shapes may differ in the last bit."""
    return torch.stack([(x * y).sum(dim=-1) for x, y in zip(a, b, strict=True)])


def _lengths(move: Float[Tensor, "b s d"], change: Float[Tensor, "b s d"]) -> Float[Tensor, "b s"]:
    """The product of both lengths, in whatever unit the cost is: where squares of slopes are too large or too small for
    their type, by a wider one."""
    squares = _dot(move, move) * _dot(change, change)
    least, most = torch.aminmax(squares)
    if not (float(least) > torch.finfo(squares.dtype).tiny and math.isfinite(float(most))):
        squares = _dot(move, move).double() * _dot(change.double(), change.double())
    return squares.sqrt()


def _scale(curvature: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """What makes the product of a move and its slope change 1; 0 where the slope did not grow along the move."""
    return torch.where(curvature > 0, curvature.rsqrt(), 0.0)


def _free(slope: Float[Tensor, "s d"], pairs: Pairs, free: Bool[Tensor, "s d"]) -> Float[Tensor, "s d"]:
    """`_direction` on the free variables alone."""
    if pairs:
        moves, changes = (torch.stack(parts) * free for parts in zip(*pairs, strict=True))
        scale = _scale((moves * changes).sum(dim=-1))[:, :, None]
        pairs = tuple(zip(moves * scale, changes * scale, strict=True))
    return _direction(slope * free, pairs) * free


def _direction(slope: Float[Tensor, "s d"], pairs: Pairs) -> Float[Tensor, "s d"]:
    """-H g by the two-loop recursion for one problem's starts; the product of a pair's move and change is 1, so that
    nothing divides by it. Without any pair: the slope, a tenth of a range long."""
    plain = 0.2 / slope.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(slope.dtype).tiny)
    if not pairs:
        return -plain * slope
    q, shares = slope.clone(), []
    for move, change in reversed(pairs):
        shares.append((move * q).sum(dim=-1, keepdim=True))
        q.addcmul_(shares[-1], change, value=-1)
    newest = (pairs[-1][1] * pairs[-1][1]).sum(dim=-1, keepdim=True)
    q *= torch.where(newest > 0, 1 / newest, plain)
    for (move, change), share in zip(pairs, reversed(shares), strict=True):
        q.addcmul_(share - (change * q).sum(dim=-1, keepdim=True), move)
    descends = (q * slope).sum(dim=-1, keepdim=True) > 0
    return -(q if bool(descends.all()) else torch.where(descends, q, plain * slope))


class LBFGS(SearchPlanner[LBFGSState]):
    """Projected L-BFGS from several starts inside `bounds` (action units). Evaluations as `GradientPlanner`."""

    def __init__(self, bounds: Bounds, settings: LBFGSSettings | None = None) -> None:
        self.settings = settings or LBFGSSettings()
        super().__init__(bounds, LBFGSProposal(self.settings), chunk=self.settings.chunk)
