"""Constraints for planners that descend: the augmented Lagrangian, around any of them.

Hestenes 1969 and Powell 1969, as in Nocedal and Wright 2006, framework 17.3: each round lowers
cost + sum over constraints of (multiplier * v + weight / 2 * v^2), v >= 0 being how far a constraint is broken; the
multiplier then grows by weight * v, and the weight where v did not fall enough. A last round asks for constraints
kept to the bit, with a penalty that is exact because it exceeds the multipliers found (theorem 17.3 there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import ActionPlan, Bounds, Budget, CostFunction, Ending, Evaluation, Planner
from vjepa_mpc.planners.evaluation import Best, Ledger, check_task
from vjepa_mpc.planners.lbfgs import LBFGS, LBFGSSettings

SHORTEST_ROUND = 24
"""Evaluations, and times that of judging a plan, below which more rounds lead less far."""


@dataclass(frozen=True)
class LagrangianSettings:
    """`rounds` of the planner within (settings `planner`), the last of which keeps the constraints exactly. `weight`:
    of v^2 / 2 at first; it grows by `growth` where a round leaves more than `shrink` of the violation."""

    rounds: int
    weight: float
    growth: float
    shrink: float
    planner: object


class AugmentedLagrangian:
    """A descending planner, round after round on what its constraints are found to be worth.

    What a fixed penalty cannot know, the price of a constraint in units of the cost, is learned: constraints in any
    unit are kept. Evaluations are shared out evenly among the rounds, which are fewer where there are few of them; the
    answer is the best of the start and of what the rounds ended at, each judged by the true cost, feasible first.
    """

    def __init__(
        self, planner: Planner, rounds: int = 5, weight: float = 10.0, growth: float = 4.0, shrink: float = 0.5
    ) -> None:
        if rounds < 2 or not (0 < weight < float("inf") and growth >= 1 and 0 <= shrink <= 1):
            raise InputError(
                "An augmented Lagrangian needs at least 2 rounds, a positive weight, growth >= 1 and shrink in "
                f"[0, 1]; got {rounds}, {weight}, {growth} and {shrink}."
            )
        self.planner, self.rounds, self.weight, self.growth, self.shrink = planner, rounds, weight, growth, shrink
        self.bounds: Bounds = planner.bounds
        self.settings: object = LagrangianSettings(rounds, weight, growth, shrink, getattr(planner, "settings", None))

    def plan(
        self,
        cost_fn: CostFunction,
        init: Float[Tensor, "b h a"],
        *,
        budget: Budget,
        generators: Sequence[torch.Generator],
        suggestions: Float[Tensor, "b m h a"] | None = None,
    ) -> ActionPlan:
        """The best plan found. Raises what the planner within raises."""
        ledger = Ledger(cost_fn, budget)
        bounds = check_task(init, self.bounds, budget, generators, suggestions)
        start = bounds.clip(init)
        with torch.no_grad():
            first = ledger.evaluate(start[:, None], torch.arange(len(start), device=start.device))
        if not first.names:  # nothing to be kept: the planner by itself
            return self._plain(cost_fn, start, first, ledger, budget, generators, suggestions)
        best = Best(start, first.cost[:, 0], first.violation[:, 0])
        if bool(best.meets(budget.target).all()):  # the start is an answer already
            ends = (Ending(1, "target"),) * len(start)
            return ActionPlan(
                start, best.cost, best.violation, first.names, 1, ledger.seconds, "target", (), ends
            )
        judging_s = ledger.seconds
        found, best = best, self._with_suggested(best, ledger, bounds, suggestions)
        price = _Price(torch.zeros_like(best.violation), torch.full_like(best.violation, self.weight))
        spent, records, stopped = ledger.evaluations, [], "iterations"
        each = [spent] * len(start)
        rounds = _rounds(self.rounds, budget, spent, ledger.seconds, judging_s)
        for left in range(rounds, 0, -1):
            begun_s = ledger.seconds
            part = _share(budget, spent, begun_s, left, judging_s)
            if isinstance(part, str):
                stopped = part
                break
            exact = left == 1
            inner = self.planner.plan(
                _Priced(cost_fn, price, exact), found.actions, budget=part, generators=generators,
                suggestions=suggestions if left == rounds else None,
            )  # fmt: skip
            if not inner.iterations and ledger.late():  # it came no further than its start, which is judged already
                spent, each, stopped = spent + inner.evaluations, [n + inner.evaluations for n in each], "deadline"
                break
            with torch.no_grad():
                judged = ledger.evaluate(inner.actions[:, None], torch.arange(len(start), device=start.device))
            records += [
                replace(record, evaluations=record.evaluations + spent, seconds=record.seconds + begun_s)
                for record in inner.iterations
            ]
            spent += inner.evaluations + 1
            each = [count + ending.evaluations + 1 for count, ending in zip(each, inner.endings, strict=True)]
            before, found = found, Best(inner.actions, judged.cost[:, 0], judged.violation[:, 0])
            best = best.improved_by(inner.actions[:, None], judged)
            price = price.after(before.violation, found.violation, self.growth, self.shrink)
            stopped = inner.stopped
            if budget.target is not None and bool(best.meets(budget.target).all()):
                stopped = "target"
                break
        return ActionPlan(
            best.actions, best.cost, best.violation, first.names, spent, ledger.seconds, stopped,
            tuple(records), tuple(Ending(count, stopped) for count in each),
        )  # fmt: skip

    def _with_suggested(
        self, best: Best, ledger: Ledger, bounds: Bounds, suggestions: Float[Tensor, "b m h a"] | None
    ) -> Best:
        """The best, with suggestions judged by the true cost: what is best for a round, which prices constraints, may
        break one, and what it began with is forgotten. They take a round's share of the evaluations at most."""
        if suggestions is None or ledger.late():
            return best
        room = ledger.affordable(suggestions.shape[1] * self.rounds) // self.rounds
        given = bounds.clip(suggestions[:, :room].to(best.actions))
        if not given.shape[1]:
            return best
        with torch.no_grad():
            judged = ledger.evaluate(given, torch.arange(len(given), device=given.device))
        return best.improved_by(given, judged)

    def _plain(
        self,
        cost_fn: CostFunction,
        start: Float[Tensor, "b h a"],
        first: Evaluation,
        ledger: Ledger,
        budget: Budget,
        generators: Sequence[torch.Generator],
        suggestions: Float[Tensor, "b m h a"] | None,
    ) -> ActionPlan:
        """The planner's own answer where there are no constraints, with the evaluation that showed it counted."""
        if ledger.affordable(1) < 1 or ledger.late():
            why = "deadline" if ledger.late() else "max_evaluations"
            ends = (Ending(1, why),) * len(start)
            return ActionPlan(
                start, first.cost[:, 0], first.violation[:, 0], first.names, 1, ledger.seconds, why, (), ends
            )
        rest = replace(
            budget,
            max_evaluations=None if budget.max_evaluations is None else budget.max_evaluations - 1,
            deadline_s=None if budget.deadline_s is None else budget.deadline_s - ledger.seconds,
        )
        begun_s = ledger.seconds
        found = self.planner.plan(cost_fn, start, budget=rest, generators=generators, suggestions=suggestions)
        return replace(
            found,
            evaluations=found.evaluations + 1,
            seconds=ledger.seconds,
            iterations=tuple(
                replace(record, evaluations=record.evaluations + 1, seconds=record.seconds + begun_s)
                for record in found.iterations
            ),
            endings=tuple(replace(ending, evaluations=ending.evaluations + 1) for ending in found.endings),
        )


@dataclass(frozen=True)
class _Price:
    """What a unit of each constraint's violation costs now: multipliers and weights [b, k]."""

    multiplier: Float[Tensor, "b k"]
    weight: Float[Tensor, "b k"]

    def after(
        self, before: Float[Tensor, "b k"], now: Float[Tensor, "b k"], growth: float, shrink: float
    ) -> _Price:
        """The prices of the next round."""
        stuck = now > shrink * before
        rise = torch.where(now == torch.inf, 0.0, self.weight * now)  # which says nothing of a price
        return _Price(
            self.multiplier + rise, torch.where(stuck & (now > 0), growth * self.weight, self.weight)
        )


@dataclass(frozen=True)
class _Priced:
    """The cost with its constraints priced in. Smooth rounds show the planner no constraint; the exact one shows them,
    priced at twice their multipliers: a kink that holds at the boundary."""

    cost_fn: CostFunction
    price: _Price
    exact: bool

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        found = self.cost_fn(actions, problems)
        multiplier, weight = self.price.multiplier[problems][:, None], self.price.weight[problems][:, None]
        broken = found.violation.clamp(max=torch.finfo(found.violation.dtype).max)  # 0 times infinity is no number
        if self.exact:
            priced = ((2 * multiplier + weight) * broken).sum(dim=-1)
            return replace(found, cost=found.cost + priced)
        priced = (multiplier * broken + weight / 2 * broken.square()).sum(dim=-1)
        return Evaluation(found.cost + priced, broken[..., :0])


def _rounds(wanted: int, budget: Budget, spent: int, spent_s: float, judging_s: float) -> int:
    """As many rounds as there is something to be done in, at least the exact one."""
    if budget.max_evaluations is not None:
        wanted = min(wanted, (budget.max_evaluations - spent) // SHORTEST_ROUND)
    if budget.deadline_s is not None and judging_s > 0:
        wanted = int(min(wanted, (budget.deadline_s - spent_s) / (SHORTEST_ROUND * judging_s)))
    return max(1, wanted)


def _share(budget: Budget, spent: int, spent_s: float, rounds: int, judging_s: float) -> Budget | str:
    """An even share of what is left for one of `rounds`, with an evaluation and its time kept for judging it; where
    there is nothing left to share, why not. Targets are of the true cost, which a round does not see."""
    evaluations, seconds = None, None
    if budget.max_evaluations is not None:
        evaluations = (budget.max_evaluations - spent) // rounds - 1
        if evaluations < 1:
            return "max_evaluations"
    if budget.deadline_s is not None:
        seconds = (budget.deadline_s - spent_s) / rounds - judging_s
        if seconds <= 0:
            return "deadline"
    return replace(budget, max_evaluations=evaluations, deadline_s=seconds, target=None)


@dataclass(frozen=True)
class LagrangianLBFGSSettings(LBFGSSettings):
    """L-BFGS's settings (for each round), and those of `AugmentedLagrangian`."""

    rounds: int = 5
    weight: float = 10.0
    growth: float = 4.0
    shrink: float = 0.5


class LagrangianLBFGS(AugmentedLagrangian):
    """L-BFGS in an augmented Lagrangian, inside `bounds` (action units)."""

    def __init__(self, bounds: Bounds, settings: LagrangianLBFGSSettings | None = None) -> None:
        given = settings or LagrangianLBFGSSettings()
        super().__init__(LBFGS(bounds, given), given.rounds, given.weight, given.growth, given.shrink)
        self.settings = given
