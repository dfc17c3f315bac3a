"""Constraints for planners that descend: the augmented Lagrangian, around any of them.

Hestenes 1969 and Powell 1969, as in Nocedal and Wright 2006, framework 17.3: each round lowers
cost + sum over constraints of (multiplier * v + weight / 2 * v^2), v >= 0 being how far a constraint is broken; the
multiplier then grows by weight * v, and the weight where v did not fall enough. A last round asks for constraints
kept to the bit, with a penalty that is exact because it exceeds the multipliers found (theorem 17.3 there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import (
    ActionPlan,
    Bounds,
    Budget,
    CostFunction,
    Ending,
    Evaluation,
    IterationStatistics,
    Planner,
)
from vjepa_mpc.planners.evaluation import Best, Ledger, check_task
from vjepa_mpc.planners.lbfgs import LBFGS, LBFGSSettings
from vjepa_mpc.planners.prices import Price, Priced
from vjepa_mpc.planners.search import of_problems

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
        previous: Float[Tensor, "#b a"] | None = None,
    ) -> ActionPlan:
        """The best plan found. Raises what the planner within raises."""
        ledger = Ledger(cost_fn, budget)
        bounds = check_task(init, self.bounds, budget, generators, suggestions, previous)
        start = bounds.clip(init)
        with torch.no_grad():
            first = ledger.evaluate(start[:, None], torch.arange(len(start), device=start.device))
        if not first.names:  # nothing to be kept: the planner by itself
            return self._plain(cost_fn, start, first, ledger, budget, generators, suggestions, previous)
        best = Best(start, first.cost[:, 0], first.violation[:, 0])
        rounds = _Rounds(self, cost_fn, ledger, budget, tuple(generators), best, first.names, previous)
        live = rounds.live()
        if live:
            best = self._with_suggested(best, ledger, bounds, suggestions, torch.tensor(live, device=start.device))
            rounds.run(best, suggestions)
        return rounds.plan()

    def _with_suggested(
        self,
        best: Best,
        ledger: Ledger,
        bounds: Bounds,
        suggestions: Float[Tensor, "b m h a"] | None,
        problems: Int[Tensor, "r"],
    ) -> Best:
        """The best, with suggestions for these problems judged by the true cost: what is best for a round, which prices
        constraints, may break one, and what it began with is forgotten. They take a round's share of the evaluations
        at most."""
        if suggestions is None or ledger.late():
            return best
        room = ledger.affordable(suggestions.shape[1] * self.rounds) // self.rounds
        given = bounds.clip(suggestions[:, :room].to(best.actions))[problems]
        if not given.shape[1]:
            return best
        with torch.no_grad():
            judged = ledger.evaluate(given, problems)
        return _put(best, problems, of_problems(best, problems).improved_by(given, judged))

    def _plain(
        self,
        cost_fn: CostFunction,
        start: Float[Tensor, "b h a"],
        first: Evaluation,
        ledger: Ledger,
        budget: Budget,
        generators: Sequence[torch.Generator],
        suggestions: Float[Tensor, "b m h a"] | None,
        previous: Float[Tensor, "#b a"] | None,
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
        found = self.planner.plan(
            cost_fn, start, budget=rest, generators=generators, suggestions=suggestions, previous=previous
        )
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


class _Rounds:
    """The rounds of one call of `plan`, and where each problem stands: its answer, prices, evaluations and ending.

    Problems that are done are not asked about, and what the others get depends on none of them: a round is planned
    once for all problems whose shares are the same. Those differ where patience left some with more than others.
    """

    def __init__(
        self,
        settings: AugmentedLagrangian,
        cost_fn: CostFunction,
        ledger: Ledger,
        budget: Budget,
        generators: tuple[torch.Generator, ...],
        start: Best,
        names: tuple[str, ...],
        previous: Float[Tensor, "#b a"] | None,
    ) -> None:
        self.previous = previous
        self.settings, self.cost_fn, self.ledger, self.budget = settings, cost_fn, ledger, budget
        self.generators, self.names = generators, names
        self.best = self.found = start  # `found`: where the last round ended
        self.price = Price(torch.zeros_like(start.violation), torch.full_like(start.violation, settings.weight))
        met, costs = start.meets(budget.target).tolist(), tuple(start.cost.tolist())
        self.endings = [Ending(ledger.evaluations, "target" if done else "iterations") for done in met]
        self.done = met
        self.records: list[IterationStatistics] = []
        self.begun = IterationStatistics(costs, costs, (0.0,) * len(costs), ledger.evaluations, 0.0)
        self.judging_s = ledger.seconds

    def live(self) -> list[int]:
        """The problems that are not done."""
        return [problem for problem, done in enumerate(self.done) if not done]

    def run(self, best: Best, suggestions: Float[Tensor, "b m h a"] | None) -> None:
        """All rounds from the starts; `best` is what is known by now."""
        self.best, spent = best, self.ledger.evaluations
        for problem in self.live():
            self.endings[problem] = Ending(spent, "iterations")
        rounds = _rounds(self.settings.rounds, self.budget, spent, self.ledger.seconds, self.judging_s)
        for left in range(rounds, 0, -1):
            groups = self._groups(left)
            for number, (evaluations, problems) in enumerate(groups):
                turns = left * len(groups) - number  # in which what is left of the time is to be spent
                self._round(problems, evaluations, turns, left == 1, suggestions if left == rounds else None)

    def _groups(self, rounds: int) -> list[tuple[int | None, list[int]]]:
        """The problems to go on with, by their even share of what each has left for one of `rounds`, with an evaluation
        kept for judging it. Those with nothing left to share are done."""
        groups: dict[int | None, list[int]] = {}
        for problem in self.live():
            share = None
            if self.budget.max_evaluations is not None:
                share = (self.budget.max_evaluations - self.endings[problem].evaluations) // rounds - 1
                if share < 1:
                    self._stop([problem], "max_evaluations")
                    continue
            groups.setdefault(share, []).append(problem)
        return list(groups.items())

    def _round(
        self,
        problems: list[int],
        evaluations: int | None,
        turns: int,
        exact: bool,
        suggestions: Float[Tensor, "b m h a"] | None,
    ) -> None:
        """One round of these problems, and what it teaches."""
        begun_s, seconds = self.ledger.seconds, None
        if self.budget.deadline_s is not None:
            seconds = (self.budget.deadline_s - begun_s) / turns - self.judging_s
            if seconds <= 0:
                return self._stop(problems, "deadline")
        part = replace(self.budget, max_evaluations=evaluations, deadline_s=seconds, target=None)
        inner, priced = self._descend(problems, part, exact, suggestions)
        spent = [inner.endings[problem].evaluations for problem in problems]
        if not inner.iterations and self.ledger.late():  # it came no further than its start, which is judged already
            self._spend(problems, spent)
            return self._stop(problems, "deadline")
        self._note(problems, inner.iterations, begun_s)
        self._spend(problems, spent)
        self._learn(problems, inner, priced)

    def _descend(
        self, problems: list[int], part: Budget, exact: bool, suggestions: Float[Tensor, "b m h a"] | None
    ) -> tuple[ActionPlan, Priced]:
        """What the planner within finds for these problems, and the cost it was shown. It is handed all of them, since
        its bounds are of all: the others cost its target, so that it is done with them at once, and draws nothing from
        their generators."""
        chosen, generators = torch.zeros_like(self.best.cost, dtype=torch.bool), self.generators
        chosen[problems] = True
        least = torch.finfo(self.best.cost.dtype).min
        if not bool(chosen.all()):
            part = replace(part, target=least)
            generators = tuple(
                own if problem in problems else torch.Generator(own.device) for problem, own in enumerate(generators)
            )
        priced = Priced(self.cost_fn, self.price, exact, chosen, least)
        plan = self.settings.planner.plan(
            priced, self.found.actions, budget=part, generators=generators, suggestions=suggestions,
            previous=self.previous,
        )  # fmt: skip
        return plan, priced

    def _judge(self, problems: list[int], actions: Float[Tensor, "r h a"], priced: Priced) -> Evaluation:
        """Where a round ended, by the true cost. After the deadline no call is made for it where the planner within has
        judged it already: what was said then is the answer."""
        known = priced.judged(actions, problems) if self.ledger.late() else None
        if known is not None:
            return Evaluation(*known, self.names)
        with torch.no_grad():
            judged = self.ledger.evaluate(actions[:, None], torch.tensor(problems, device=actions.device))
        self._spend(problems, [1] * len(problems))
        return judged

    def _learn(self, problems: list[int], inner: ActionPlan, priced: Priced) -> None:
        """Judge where the round ended; new prices, and an end for what meets the target."""
        rows = torch.tensor(problems, device=inner.actions.device)
        actions = inner.actions[rows]
        judged = self._judge(problems, actions, priced)
        before, now = of_problems(self.found, rows), Best(actions, judged.cost[:, 0], judged.violation[:, 0])
        price = of_problems(self.price, rows).after(
            before.violation, now.violation, self.settings.growth, self.settings.shrink
        )
        best = of_problems(self.best, rows).improved_by(actions[:, None], judged)
        self.found, self.price = _put(self.found, rows, now), _put(self.price, rows, price)
        self.best = _put(self.best, rows, best)
        for problem, met in zip(problems, best.meets(self.budget.target).tolist(), strict=True):
            self.endings[problem] = replace(self.endings[problem], stopped=inner.endings[problem].stopped)
            if met:
                self._stop([problem], "target")

    def _spend(self, problems: list[int], counts: list[int]) -> None:
        for problem, count in zip(problems, counts, strict=True):
            ending = self.endings[problem]
            self.endings[problem] = replace(ending, evaluations=ending.evaluations + count)

    def _stop(self, problems: list[int], why: str) -> None:
        for problem in problems:
            self.endings[problem] = replace(self.endings[problem], stopped=why)
            self.done[problem] = True

    def _note(self, problems: list[int], records: Sequence[IterationStatistics], begun_s: float) -> None:
        """A round's records as the plan's: evaluations are of these problems, the others keep their last values."""
        spent = max(self.endings[problem].evaluations for problem in problems)
        chosen, last = set(problems), self.records[-1] if self.records else self.begun
        for record in records:
            best, mean_cost, std = (
                tuple(value[problem in chosen] for problem, value in enumerate(zip(old, new, strict=True)))
                for old, new in ((last.best, record.best), (last.mean_cost, record.mean_cost), (last.std, record.std))
            )
            self.records.append(
                IterationStatistics(best, mean_cost, std, record.evaluations + spent, record.seconds + begun_s)
            )

    def plan(self) -> ActionPlan:
        """The answers."""
        longest = max(self.endings, key=lambda ending: ending.evaluations)
        return ActionPlan(
            self.best.actions, self.best.cost, self.best.violation, self.names, longest.evaluations,
            self.ledger.seconds, longest.stopped, tuple(self.records), tuple(self.endings),
        )  # fmt: skip


Rows = TypeVar("Rows", Best, Price)


def _put(whole: Rows, problems: Int[Tensor, "r"], part: Rows) -> Rows:
    """The whole with these problems' rows replaced by the part's."""
    news = {
        name.name: getattr(whole, name.name).index_copy(0, problems, getattr(part, name.name))
        for name in fields(whole)
    }
    return replace(whole, **news)


def _rounds(wanted: int, budget: Budget, spent: int, spent_s: float, judging_s: float) -> int:
    """As many rounds as there is something to be done in, at least the exact one."""
    if budget.max_evaluations is not None:
        wanted = min(wanted, (budget.max_evaluations - spent) // SHORTEST_ROUND)
    if budget.deadline_s is not None and judging_s > 0:
        wanted = int(min(wanted, (budget.deadline_s - spent_s) / (SHORTEST_ROUND * judging_s)))
    return max(1, wanted)


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
