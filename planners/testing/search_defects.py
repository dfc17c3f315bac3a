"""Defects in what all planners share: the search loop, the ledger, ranking, and what a plan tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from vjepa_mpc.planners import evaluation as judging
from vjepa_mpc.planners import search
from vjepa_mpc.planners.base import ActionPlan, Bounds, Evaluation
from vjepa_mpc.planners.evaluation import Best, Ledger
from vjepa_mpc.planners.testing.worlds import Plant


def dropped_clip(plant: Plant) -> None:
    """Actions are not projected into the bounds."""
    plant(Bounds, "clip", lambda self, actions: actions)


def nan_ranked_first(plant: Plant) -> None:
    """NaN becomes a number, and the best one."""
    original = Ledger._call

    def forgiving(self: Ledger, actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        with mock.patch.object(judging, "check_evaluation", lambda *_: None):
            found = original(self, actions, problems)
        return Evaluation(found.cost.nan_to_num(nan=-1e10), found.violation.nan_to_num(nan=0.0), found.names)

    plant(Ledger, "_call", forgiving)


def off_by_one_step(plant: Plant) -> None:
    """Candidates are judged one step early: what the planner calls step t is done at step t - 1."""
    _with_actions(plant, lambda actions: actions.roll(1, dims=2))


def last_step_is_noise(plant: Plant) -> None:
    """The last action never reaches the cost function, and so is never optimised."""
    _with_actions(plant, lambda actions: torch.cat((actions[:, :, :-1], actions[:, :, -1:] * 0), dim=2))


def _with_actions(plant: Plant, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    original = Ledger._call
    plant(Ledger, "_call", lambda self, actions, problems: original(self, change(actions), problems))


def suggestions_of_another_problem(plant: Plant) -> None:
    """What is suggested for one problem is judged by another's cost."""
    original = search._Search._iterate

    def iterate(self: Any, live: Any, n: int, suggestions: Any) -> Any:
        return original(self, live, n, None if suggestions is None else suggestions.roll(1, 0))

    plant(search._Search, "_iterate", iterate)


def deadline_between_iterations_only(plant: Plant) -> None:
    """Within an iteration, however long, the clock is not looked at."""
    original = Ledger._in_chunks

    def in_chunks(self: Ledger, *parts: Any) -> Evaluation:
        budget = self._budget
        self._budget = dataclasses.replace(budget, deadline_s=None)
        try:
            return original(self, *parts)
        finally:
            self._budget = budget

    plant(Ledger, "_in_chunks", in_chunks)


def never_better(plant: Plant) -> None:
    """Every iteration counts as one that brought nothing."""
    plant(Best, "clearly_better", lambda self, than, tolerance: torch.zeros_like(self.cost, dtype=torch.bool))


def best_that_forgets(plant: Plant) -> None:
    """The newest candidate replaces the best so far."""

    def newest(self: Best, actions: torch.Tensor, evaluation: Evaluation) -> Best:
        return Best(actions[:, 0], evaluation.cost[:, 0], evaluation.violation[:, 0])

    plant(Best, "improved_by", newest)


def start_not_counted(plant: Plant) -> None:
    """The start is judged and thrown away."""
    original = Best.__init__

    def worthless(self: Best, actions: torch.Tensor, cost: torch.Tensor, violation: torch.Tensor) -> None:
        original(self, actions, torch.full_like(cost, 1e9), violation)

    plant(Best, "__init__", worthless)


def infinity_wins(plant: Plant) -> None:
    """A rejected candidate is taken for a very cheap one."""
    original = Best.improved_by

    def improved_by(self: Best, actions: torch.Tensor, evaluation: Evaluation) -> Best:
        cheap = evaluation.cost.masked_fill(evaluation.cost == torch.inf, -1e10)
        return original(self, actions, dataclasses.replace(evaluation, cost=cheap))

    plant(Best, "improved_by", improved_by)


def constraints_ignored(plant: Plant) -> None:
    """Cost alone decides."""
    plant(judging, "_first_key", lambda cost, violation: torch.zeros_like(cost))


def names_lost(plant: Plant) -> None:
    """The answer does not say which constraint is meant."""
    plant(search, "ActionPlan", lambda *parts: dataclasses.replace(ActionPlan(*parts), names=()))


def budget_off_by_one(plant: Plant) -> None:
    """One evaluation more than allowed."""
    original = Ledger.affordable
    plant(Ledger, "affordable", lambda self, wanted: original(self, wanted - 1) + 1)


def evaluations_miscounted(plant: Plant) -> None:
    """The start "does not count"."""
    original = Ledger._call

    def free(self: Ledger, actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        found = original(self, actions, problems)
        self.evaluations -= actions.shape[1] == 1
        return found

    plant(Ledger, "_call", free)


def deadline_ignored(plant: Plant) -> None:
    """The clock is not looked at."""
    plant(Ledger, "late", lambda self, expected_s=0.0: False)


def problems_swapped(plant: Plant) -> None:
    """The cost function is told the wrong problems."""
    original = Ledger._call
    plant(Ledger, "_call", lambda self, actions, problems: original(self, actions, problems.flip(0)))


def never_stops_alone(plant: Plant) -> None:
    """Problems that are done are solved on until all are."""
    plant(search._Search, "_stop_satisfied", lambda self, live, schedule: live)


def target_not_looked_at(plant: Plant) -> None:
    """A plan that is good enough already is searched on."""
    plant(Best, "meets", lambda self, target: torch.zeros_like(self.cost, dtype=torch.bool))


def target_met_by_what_is_forbidden(plant: Plant) -> None:
    """A cheap plan that breaks a constraint ends the search."""
    original = Best.meets
    plant(Best, "meets", lambda self, target: original(dataclasses.replace(self, violation=self.violation * 0), target))


def evidence_of_another_problem(plant: Plant) -> None:
    """What is not finite is blamed on a problem by its row among those still being solved."""
    original = judging.check_evaluation
    plant(judging, "check_evaluation", lambda evaluation, actions, problems=None: original(evaluation, actions))


def records_forget(plant: Plant) -> None:
    """Each record's best is that of its own population."""
    original = search.statistics

    def newest(problems: Any, best: Best, samples: torch.Tensor, evaluation: Evaluation, *rest: Any) -> Any:
        forgot = dataclasses.replace(best, cost=evaluation.cost.amax(dim=1))
        return original(problems, forgot, samples, evaluation, *rest)

    plant(search, "statistics", newest)


def suggestions_dropped(plant: Plant) -> None:
    """Suggested plans are taken, and forgotten."""
    original = search._Search._iterate
    plant(search._Search, "_iterate", lambda self, live, n, suggestions: original(self, live, n, None))


def inference_mode_used(plant: Plant) -> None:
    """Plans are made in inference mode, which spoils what gradient planners share."""
    plant(torch, "no_grad", torch.inference_mode)


def anything_accepted(plant: Plant) -> None:
    """Nothing is checked before planning."""
    plant(search, "check_task", lambda init, bounds, *rest: bounds)


def bounds_rounded_outwards(plant: Plant) -> None:
    """Bounds of a finer type than the plan's are rounded to the nearest number."""
    plant(judging, "bounds_like", lambda b, a: dataclasses.replace(b, low=b.low.to(a), high=b.high.to(a)))


def only_the_first_suggestion(plant: Plant) -> None:
    """Of several suggested plans one is judged."""
    original = search._Search._iterate

    def iterate(self: Any, live: Any, n: int, suggestions: Any) -> Any:
        return original(self, live, n, None if suggestions is None else suggestions[:, :1])

    plant(search._Search, "_iterate", iterate)


def suggestions_judged_in_vain(plant: Plant) -> None:
    """What was suggested is judged and learned from, and can never be the answer."""
    original = search._Search._iterate

    def iterate(self: Any, live: Any, n: int, suggestions: Any) -> Any:
        found = original(self, live, n, suggestions)
        return found if suggestions is None else dataclasses.replace(found, best=live.best)

    plant(search._Search, "_iterate", iterate)


def chunks_of_other_problems(plant: Plant) -> None:
    """From the second chunk on the cost function is told the problems in another order."""
    original = Ledger._in_chunks

    def in_chunks(self: Ledger, call: Any, *rest: Any) -> Evaluation:
        calls = iter(range(10**9))
        return original(self, lambda part, rows: call(part, rows.flip(0) if next(calls) else rows), *rest)

    plant(Ledger, "_in_chunks", in_chunks)


def slopes_of_other_chunks(plant: Plant) -> None:
    """Slopes are put together in another order than costs."""
    original = judging.join

    def join(parts: Any) -> Evaluation:
        slopes = [part.slope for part in parts if part.slope is not None][::-1]
        return dataclasses.replace(original(parts), slope=torch.cat(slopes, dim=1) if slopes else None)

    plant(judging, "join", join)


def largest_violation_counts(plant: Plant) -> None:
    """Violations are not summed: the largest decides."""

    def key(cost: torch.Tensor, violation: torch.Tensor) -> torch.Tensor:
        largest = violation.amax(dim=-1) if violation.shape[-1] else cost * 0
        return torch.where(cost == torch.inf, torch.inf, largest)

    plant(judging, "_first_key", key)


def violations_untold(plant: Plant) -> None:
    """The answer says that nothing is broken."""
    original = search._Search._last_word

    def last_word(self: Any, *rest: Any) -> Best:
        best = original(self, *rest)
        return dataclasses.replace(best, violation=best.violation * 0)

    plant(search._Search, "_last_word", last_word)


def equal_is_better(plant: Plant) -> None:
    """A candidate that is no better than the best so far replaces it."""
    original = Best.improved_by

    def improved_by(self: Best, actions: torch.Tensor, evaluation: Evaluation) -> Best:
        slightly = dataclasses.replace(self, cost=self.cost + 1e-7)
        return original(slightly, actions, evaluation)

    plant(Best, "improved_by", improved_by)


def target_must_be_beaten(plant: Plant) -> None:
    """A plan that costs exactly the target does not meet it."""
    plant(Best, "meets", lambda self, target: self.allowed() & (self.cost < (-torch.inf if target is None else target)))


def one_iteration_too_patient(plant: Plant) -> None:
    """A search that has converged goes on for an iteration."""
    original = search._Search._stop_satisfied

    def later(self: Any, live: Any, schedule: Any) -> Any:
        budget = self.budget
        self.budget = dataclasses.replace(budget, patience=budget.patience and budget.patience + 1)
        try:
            return original(self, live, schedule)
        finally:
            self.budget = budget

    plant(search._Search, "_stop_satisfied", later)


def patience_begins_anew_for_all(plant: Plant) -> None:
    """An iteration that brings something to one problem counts for every one."""
    original = Best.clearly_better

    def for_any(self: Best, than: Best, tolerance: float) -> torch.Tensor:
        better = original(self, than, tolerance)
        return better | better.any()

    plant(Best, "clearly_better", for_any)


def tolerance_in_units_of_cost(plant: Plant) -> None:
    """The tolerance is not relative."""
    original = Best.clearly_better
    unit = torch.ones(())

    def absolute(self: Best, than: Best, tolerance: float) -> torch.Tensor:
        better = original(self, than, 0.0)
        return better & ((than.cost == torch.inf) | (self.cost < than.cost - tolerance * unit))

    plant(Best, "clearly_better", absolute)


def expects_nothing_of_an_iteration(plant: Plant) -> None:
    """An iteration is begun although it will end after the deadline."""
    original = Ledger.late
    plant(Ledger, "late", lambda self, expected_s=0.0: original(self))


def clock_of_the_processor(plant: Plant) -> None:
    """Time that is spent waiting does not count."""
    import time

    stopped = type("Clock", (), {"perf_counter": staticmethod(time.process_time)})
    plant(judging, "time", stopped)


def spread_of_all_problems(plant: Plant) -> None:
    """Records tell the mean spread of the batch."""
    original = search.statistics

    def mixed(*parts: Any) -> Any:
        record = original(*parts)
        return dataclasses.replace(record, std=(sum(record.std) / len(record.std),) * len(record.std))

    plant(search, "statistics", mixed)


def statistics_of_the_first_problem(plant: Plant) -> None:
    """Records tell the first problem's spread for all."""
    original = search.statistics

    def first(problems: Any, best: Best, samples: torch.Tensor, *rest: Any) -> Any:
        return original(problems, best, samples[:1].expand_as(samples), *rest)

    plant(search, "statistics", first)


def seconds_of_an_iteration(plant: Plant) -> None:
    """Records tell how long an iteration took, not when it ended."""
    original = search.statistics

    def lasted(*parts: Any) -> Any:
        record = original(*parts)
        return dataclasses.replace(record, seconds=record.seconds - parts[-1].seconds)

    plant(search, "statistics", lasted)


def endings_of_the_first_problem(plant: Plant) -> None:
    """Every problem is said to have ended as the first did."""
    original = search._Search._plan

    def plan(self: Any, names: Any) -> ActionPlan:
        found = original(self, names)
        return dataclasses.replace(found, endings=found.endings[:1] * len(found.endings))

    plant(search._Search, "_plan", plan)


def start_is_not_checked(plant: Plant) -> None:
    """NaN in the start's cost goes unheard."""
    original = judging.check_evaluation

    def check(evaluation: Evaluation, actions: torch.Tensor, *rest: Any) -> None:
        if actions.shape[1] > 1:
            original(evaluation, actions, *rest)

    plant(judging, "check_evaluation", check)


def costs_in_single_precision(plant: Plant) -> None:
    """Costs told in float64 are compared in float32."""
    original = Ledger._call

    def call(self: Ledger, *rest: Any) -> Evaluation:
        found = original(self, *rest)
        return dataclasses.replace(found, cost=found.cost.float().to(found.cost))

    plant(Ledger, "_call", call)


def wrong_shift(plant: Plant) -> None:
    """A warm start that keeps the step already done."""
    from vjepa_mpc.planners import warm_start

    def off_by_one(actions: torch.Tensor, hold: torch.Tensor) -> torch.Tensor:
        return torch.cat((actions[:, :-1], hold.expand_as(actions[:, :1])), dim=1)

    plant(warm_start, "shift_plan", off_by_one)


def gradients_left_off(plant: Plant) -> None:
    """What plans turns gradients off and leaves them so."""
    original = search.SearchPlanner.plan

    def plan(self: Any, *parts: Any, **named: Any) -> Any:
        found = original(self, *parts, **named)
        torch.set_grad_enabled(False)
        return found

    plant(search.SearchPlanner, "plan", plan)


def costs_beside_slopes_believed(plant: Plant) -> None:
    """The best of a descent keeps the cost it had where its slope was taken."""
    original = search._Search._last_word

    def last_word(self: Any, live: Any, why: str, schedule: Any) -> Any:
        return original(self, dataclasses.replace(live, start=live.best), why, schedule)

    plant(search._Search, "_last_word", last_word)
