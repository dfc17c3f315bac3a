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

ARMIJO, SHORTEST = 1e-4, 1e-3


@dataclass(frozen=True)
class LBFGSSettings:
    """What L-BFGS may be told. Lengths are fractions of half of each action's range.

    `starts`: the given plan and `starts` - 1 perturbed ones (std `perturbation`). `steps` trials of each.
    `memory`: pairs of steps and slope changes kept. `longest`: largest change of any action in one trial.
    `penalty`: weight of the summed constraint violations in the objective. `chunk`: starts differentiated at a time.
    """

    starts: int = 4
    steps: int = 20
    memory: int = 8
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
    point held, its objective and slope, the direction tried and its `length`, and the last `memory` pairs, newest
    last (zeros where there are none)."""

    box: Positions
    start: Float[Tensor, "b h a"]
    point: Float[Tensor, "b s d"] | None = None
    value: Float[Tensor, "b s"] | None = None
    slope: Float[Tensor, "b s d"] | None = None
    direction: Float[Tensor, "b s d"] | None = None
    length: Float[Tensor, "b s"] | None = None
    moves: Float[Tensor, "b s m d"] | None = None
    changes: Float[Tensor, "b s m d"] | None = None


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
        box = Positions.of(bounds)
        return LBFGSState(box, box.of_actions(init_actions))

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
        slope = (evaluation.slope * state.box.half).flatten(2)
        value = evaluation.cost + self.settings.penalty * evaluation.violation.sum(dim=-1)
        if state.point is None:
            empty = trial.new_zeros(*trial.shape[:2], self.settings.memory, trial.shape[2])
            fresh = replace(state, point=trial, value=value, slope=slope, moves=empty, changes=empty)
            return self._aimed(fresh, torch.ones_like(value, dtype=torch.bool))
        return self._advance(state, trial, value, slope)

    def _advance(
        self,
        state: LBFGSState,
        trial: Float[Tensor, "b n d"],
        value: Float[Tensor, "b n"],
        slope: Float[Tensor, "b n d"],
    ) -> LBFGSState:
        assert state.point is not None and state.value is not None and state.slope is not None
        assert state.length is not None and state.moves is not None and state.changes is not None
        count = trial.shape[1]
        if count < state.point.shape[1]:  # starts the budget no longer serves stay
            trial = torch.cat((trial, state.point[:, count:]), dim=1)
            value = torch.cat((value, torch.full_like(state.value[:, count:], torch.inf)), dim=1)
            slope = torch.cat((slope, state.slope[:, count:]), dim=1)
        move, change = trial - state.point, slope - state.slope
        promised = _dot(state.slope, move)
        taken = (value <= state.value + ARMIJO * promised.clamp(max=0)) & (value != torch.inf)
        # Only pairs along which the slope grows keep the approximation positive.
        curved = taken & (_dot(move, change) > 1e-10 * _dot(change, change))
        moves, changes = _appended(state.moves, move, curved), _appended(state.changes, change, curved)
        # A trial as short as this shows that the direction is no good: begin again with the slope.
        lost = ~taken & (state.length < SHORTEST)
        if bool(lost.any()):
            moves, changes = (torch.where(lost[:, :, None, None], 0.0, pairs) for pairs in (moves, changes))
        aimed = replace(
            state,
            point=torch.where(taken[:, :, None], trial, state.point),
            value=torch.where(taken, value, state.value),
            slope=torch.where(taken[:, :, None], slope, state.slope),
            length=state.length / 2,
            moves=moves,
            changes=changes,
        )
        return self._aimed(aimed, taken | lost)

    def _aimed(self, state: LBFGSState, which: Bool[Tensor, "b s"]) -> LBFGSState:
        """New directions for `which`: -H g on the free variables, no action changed by more than `longest`."""
        assert state.point is not None and state.slope is not None
        assert state.moves is not None and state.changes is not None
        held = ((state.point <= -1) & (state.slope > 0)) | ((state.point >= 1) & (state.slope < 0))
        parts = zip(state.slope, state.moves, state.changes, strict=True)
        if bool(held.any()):
            free = (~held).to(state.slope)
            masked = (
                _direction(slope * mask, moves * mask[:, None], changes * mask[:, None]) * mask
                for (slope, moves, changes), mask in zip(parts, free, strict=True)
            )
            direction = torch.stack(list(masked))
        else:
            direction = torch.stack([_direction(*part) for part in parts])
        largest = direction.abs().amax(dim=2, keepdim=True)
        direction = direction * (self.settings.longest / largest.clamp(min=self.settings.longest))
        if state.direction is not None and state.length is not None:
            direction = torch.where(which[:, :, None], direction, state.direction)
            length = torch.where(which, 1.0, state.length)
        else:
            length = torch.ones_like(state.slope[:, :, 0])
        return replace(state, direction=direction, length=length)

    def final(self, state: LBFGSState) -> Float[Tensor, "b s h a"]:
        """The point each start holds."""
        if state.point is None:
            return state.box.actions(state.start[:, None])
        return state.box.actions(state.point.unflatten(2, state.start.shape[1:]))


def _appended(
    pairs: Float[Tensor, "b s m d"], newest: Float[Tensor, "b s d"], where: Bool[Tensor, "b s"]
) -> Float[Tensor, "b s m d"]:
    """The pairs with one more, and the oldest gone, of the starts `where` it counts."""
    longer = torch.cat((pairs[:, :, 1:], newest[:, :, None]), dim=2)
    return longer if bool(where.all()) else torch.where(where[:, :, None, None], longer, pairs)


def _dot(a: Float[Tensor, "b s d"], b: Float[Tensor, "b s d"]) -> Float[Tensor, "b s"]:
    """Problem by problem: sums over different shapes may differ in the last bit."""
    return torch.stack([(x * y).sum(dim=-1) for x, y in zip(a, b, strict=True)])


def _direction(
    slope: Float[Tensor, "s d"], moves: Float[Tensor, "s m d"], changes: Float[Tensor, "s m d"]
) -> Float[Tensor, "s d"]:
    """The two-loop recursion for one problem's starts. Without any pair: the slope, a tenth of a range long."""
    curvature = (moves * changes).sum(dim=-1)  # [s, m]
    known = curvature > 0
    inverse = torch.where(known, 1 / torch.where(known, curvature, 1.0), 0.0).unbind(1)
    steps, turns = moves.unbind(1), changes.unbind(1)
    used = [pair for pair, some in enumerate(known.any(dim=0).tolist()) if some]  # the others would add nothing
    q, shares = slope, []
    for pair in reversed(used):
        share = inverse[pair] * (steps[pair] * q).sum(dim=-1)
        shares.append(share)
        q = q - share[:, None] * turns[pair]
    newest = (turns[-1] * turns[-1]).sum(dim=-1)
    plain = 0.2 / slope.abs().amax(dim=-1).clamp(min=1e-12)
    scale = torch.where(known[:, -1], curvature[:, -1] / torch.where(newest > 0, newest, 1.0), plain)
    q = q * scale[:, None]
    for pair, share in zip(used, reversed(shares), strict=True):
        back = inverse[pair] * (turns[pair] * q).sum(dim=-1)
        q = q + (share - back)[:, None] * steps[pair]
    descends = (q * slope).sum(dim=-1, keepdim=True) > 0
    return -torch.where(descends, q, plain[:, None] * slope)


class LBFGS(SearchPlanner[LBFGSState]):
    """Projected L-BFGS from several starts inside `bounds` (action units). Evaluations as `GradientPlanner`."""

    def __init__(self, bounds: Bounds, settings: LBFGSSettings | None = None) -> None:
        self.settings = settings or LBFGSSettings()
        super().__init__(bounds, LBFGSProposal(self.settings), chunk=self.settings.chunk)
