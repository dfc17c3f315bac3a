"""Plans by a few knots: blocks, lines and splines over the horizon, for any planner.

A planner over knots searches fewer numbers, and its plans are smooth. The knots' curve is a matrix with
non-negative rows that sum to 1, so that every action lies between knots and thus inside a box that the knots keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import ActionPlan, Bounds, Budget, CostFunction, Ending, Evaluation, Planner
from vjepa_mpc.planners.evaluation import Best, Ledger, check_task

Curve = Callable[[int], Float[Tensor, "h k"]]
"""From the horizon to the matrix that turns k knots into h actions."""


@dataclass(frozen=True)
class Blocks:
    """One decision held over `steps` steps; the last block may be shorter."""

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"A block of {self.steps} steps decides nothing; give at least 1.")

    def __call__(self, horizon: int) -> Float[Tensor, "h k"]:
        """Ones where a step belongs to a block."""
        block = torch.arange(horizon) // self.steps
        return (block[:, None] == torch.arange(int(block[-1]) + 1)).double()


@dataclass(frozen=True)
class Lines:
    """`knots` decisions, joined by straight lines; the first and last are the first and last action."""

    knots: int

    def __post_init__(self) -> None:
        if self.knots < 1:
            raise InputError(f"A plan of {self.knots} knots decides nothing; give at least 1.")

    def __call__(self, horizon: int) -> Float[Tensor, "h k"]:
        """Hat functions. More knots than steps are not used."""
        knots = min(self.knots, horizon)
        place = torch.linspace(0, knots - 1, horizon, dtype=torch.float64)
        return (1 - (place[:, None] - torch.arange(knots)).abs()).clamp(min=0)


@dataclass(frozen=True)
class Splines:
    """`knots` control points of a clamped uniform cubic B-spline (de Boor 1978): twice continuously
    differentiable over the horizon, and never outside the hull of its points. Fewer than 4 lower the degree."""

    knots: int

    def __post_init__(self) -> None:
        if self.knots < 1:
            raise InputError(f"A spline of {self.knots} knots decides nothing; give at least 1.")

    def __call__(self, horizon: int) -> Float[Tensor, "h k"]:
        """B-spline bases by the Cox-de Boor recursion."""
        count = min(self.knots, horizon)
        degree = min(3, count - 1)
        inner = torch.linspace(0, 1, count - degree + 1, dtype=torch.float64)
        knots = torch.cat((inner[:1].expand(degree), inner, inner[-1:].expand(degree)))
        at = torch.linspace(0, 1, horizon, dtype=torch.float64)
        # The last interval that is no point is closed on the right.
        begins = (at[:, None] >= knots[:-1]) & (knots[:-1] < knots[1:])
        interval = begins.double().cumsum(1).argmax(dim=1)
        basis = torch.nn.functional.one_hot(interval, len(knots) - 1).double()
        for order in range(1, degree + 1):
            rise, fall = knots[order:-1] - knots[: -order - 1], knots[order + 1 :] - knots[1:-order]
            left = torch.where(rise > 0, (at[:, None] - knots[: -order - 1]) / rise, 0.0)
            right = torch.where(fall > 0, (knots[order + 1 :] - at[:, None]) / fall, 0.0)
            basis = left * basis[:, :-1] + right * basis[:, 1:]
        return basis


@dataclass(frozen=True)
class KnotSettings:
    """The curve, as `Lines(knots=4)`, and the settings of the planner that chooses its knots."""

    curve: str
    planner: object


class ByKnots:
    """A planner whose decisions are knots of a curve over the horizon.

    The start, and what is suggested, are judged as they are; the search begins at the knots that come nearest to the
    start (least squares). The best of all is returned, so a start that no curve can follow is not lost; the records'
    best, too, is of all that was judged, but where there are constraints of curves alone (what the best of a record
    breaks is not told). Bounds hold for knots and actions alike: rates of `Limits` from knot to knot, too.
    """

    def __init__(self, planner: Planner, curve: Curve) -> None:
        self.planner, self.curve = planner, curve
        self.bounds: Bounds = planner.bounds
        self.settings = KnotSettings(repr(curve), getattr(planner, "settings", None))

    def plan(
        self,
        cost_fn: CostFunction,
        init: Float[Tensor, "b h a"],
        *,
        budget: Budget,
        generators: Sequence[torch.Generator],
        suggestions: Float[Tensor, "b m h a"] | None = None,
        previous: Float[Tensor, "#b a"] | None = None,
    ) -> ActionPlan:
        """The best curve found, or the start. Raises what the planner raises."""
        ledger = Ledger(cost_fn, replace(budget, deadline_s=None))
        bounds = check_task(init, self.bounds, budget, generators, suggestions, previous)
        start = bounds.clip(init)
        matrix = self.curve(init.shape[1])
        problems = torch.arange(len(start), device=start.device)
        with torch.no_grad():  # the start by itself: a cost that keeps the best of a call could reject it beside others
            first = ledger.evaluate(start[:, None], problems)
            kept = Best(start, first.cost[:, 0], first.violation[:, 0])
            off_curve = self._off_curve(start, bounds, budget, suggestions, matrix)
            in_time = budget.deadline_s is None or 2 * ledger.seconds < budget.deadline_s  # another call like this
            if off_curve.shape[1] and in_time:
                kept = kept.improved_by(off_curve, ledger.evaluate(off_curve, problems))
        before_s, count = ledger.seconds, ledger.evaluations
        late = budget.deadline_s is not None and before_s >= budget.deadline_s
        met = kept.meets(budget.target)
        if bool(met.all()) or late or budget.max_evaluations == count:
            why = "deadline" if late else "max_evaluations"
            ends = tuple(Ending(count, "target" if done else why) for done in met.tolist())
            return ActionPlan(
                kept.actions, kept.cost, kept.violation, first.names, count, before_s, ends[0].stopped, (), ends
            )
        to_actions, to_knots = matrix.to(init), torch.linalg.pinv(matrix).to(init)
        rest = replace(
            budget,
            max_evaluations=None if budget.max_evaluations is None else budget.max_evaluations - count,
            deadline_s=None if budget.deadline_s is None else max(0.0, budget.deadline_s - before_s),
        )
        found = self.planner.plan(
            _Unrolled(cost_fn, to_actions, bounds, kept, met),
            _knots(to_knots, start),
            budget=rest,
            generators=generators,
            suggestions=None if suggestions is None else _knots(to_knots, suggestions.to(init)),
            previous=previous,
        )
        plan = _better(kept, found, bounds, to_actions, before_s, count)
        done = zip(met.tolist(), plan.endings, strict=True)
        ends = tuple(Ending(count, "target") if start else ending for start, ending in done)
        return replace(plan, endings=ends, stopped=max(ends, key=lambda ending: ending.evaluations).stopped)

    def _off_curve(
        self,
        start: Float[Tensor, "b h a"],
        bounds: Bounds,
        budget: Budget,
        suggestions: Float[Tensor, "b m h a"] | None,
        matrix: Float[Tensor, "h k"],
    ) -> Float[Tensor, "b s h a"]:
        """The suggestions that are judged as they are, since a curve comes near to them only: for half of the
        evaluations at most. None where there are as many knots as steps."""
        if suggestions is None or matrix.shape[0] <= matrix.shape[1]:
            return start[:, None][:, :0]
        room = suggestions.shape[1] if budget.max_evaluations is None else (budget.max_evaluations - 1) // 2
        return bounds.clip(suggestions[:, :room].to(start))


@dataclass(frozen=True)
class _Unrolled:
    """The cost of knots: that of the actions they stand for. Of a problem where what was judged first `met` the target
    nothing is asked any more: all its knots cost what that does, so that the planner is done with it at once."""

    cost_fn: CostFunction
    to_actions: Float[Tensor, "h k"]
    bounds: Bounds
    start: Best
    met: Bool[Tensor, "b"]

    def __call__(self, actions: Float[Tensor, "b n k a"], problems: Int[Tensor, "b"]) -> Evaluation:
        left = (~self.met[problems]).nonzero()[:, 0]
        asked = problems[left]
        found = self.cost_fn(self.bounds.rows(asked).clip(self.to_actions @ actions[left]), asked)
        if len(left) == len(problems):
            return found
        count = actions.shape[1]
        cost = self.start.cost[problems][:, None].repeat(1, count).index_copy(0, left, found.cost)
        violation = self.start.violation[problems][:, None].repeat(1, count, 1).index_copy(0, left, found.violation)
        return Evaluation(cost, violation, found.names)


def _knots(
    to_knots: Float[Tensor, "k h"], actions: Float[Tensor, "*batch h a"]
) -> Float[Tensor, "*batch k a"]:
    """The knots that come nearest to these actions. They may lie outside the box, and where that is very wide beyond
    what is a number: sums are taken of numbers sixteen times as small."""
    most = torch.finfo(actions.dtype).max
    return (16 * (to_knots @ (actions / 16))).clamp(-most, most)


def _better(
    kept: Best, found: ActionPlan, bounds: Bounds, to_actions: Float[Tensor, "h k"], before_s: float, count: int
) -> ActionPlan:
    """The plan found, unrolled, or what was `kept` where that is better; with the `count` evaluations before counted.
    """
    unrolled = bounds.clip(to_actions @ found.actions)
    best = kept.improved_by(
        unrolled[:, None], Evaluation(found.cost[:, None], found.violation[:, None], found.names)
    )
    others, costs = None, (torch.inf,) * len(kept.cost) if found.names else tuple(kept.cost.tolist())
    if found.others is not None:
        others = torch.stack([bounds.clip(to_actions @ plan) for plan in found.others.unbind(1)], dim=1)
    return replace(
        found,
        actions=best.actions,
        cost=best.cost,
        violation=best.violation,
        evaluations=found.evaluations + count,
        seconds=found.seconds + before_s,
        iterations=tuple(
            replace(
                record,
                best=tuple(map(min, record.best, costs)),
                evaluations=record.evaluations + count,
                seconds=record.seconds + before_s,
            )
            for record in found.iterations
        ),
        endings=tuple(replace(ending, evaluations=ending.evaluations + count) for ending in found.endings),
        others=others,
    )
