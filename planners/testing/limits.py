"""Budgets, patience, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Budget, Evaluation
from vjepa_mpc.planners.testing.worlds import Bowl, PlannerFactory, Watch, box, distinct_goals, generators, solve
from vjepa_mpc.planners.wrappers import Refined


def check_budget_kept(make: PlannerFactory) -> None:
    """No problem gets more evaluations than allowed, and all that are counted were made."""
    for limit in (1, 2, 3, 5, 17, 100, 101, 300):
        constraint = 0.0 if limit in (3, 17, 101) else None
        watch = Watch(Bowl(distinct_goals(2, 2, 2), limit=constraint))
        plan = solve(make(box(2)), watch, torch.zeros(2, 2, 2), budget=Budget(max_evaluations=limit))
        made = watch.candidates.shape[1]
        assert made <= limit, f"{made} evaluations were made of {limit} allowed"
        assert plan.evaluations == made, f"{made} evaluations were made, {plan.evaluations} counted"
        assert made < limit or plan.stopped == "max_evaluations", f"stopped by {plan.stopped!r}, not by the budget"


def check_spends_the_whole_budget(make: PlannerFactory) -> None:
    """All evaluations allowed are made where the settings would make more."""
    task, start = Bowl(distinct_goals(1, 2, 2)), torch.zeros(1, 2, 2)
    unlimited = solve(make(box(2)), task, start).evaluations
    for limit in (*range(1, 14), 50, 99, 301):
        planner = make(box(2))
        if limit > 99 and isinstance(planner, Refined):
            continue  # the second one's share may be more than its settings would spend
        made = solve(planner, task, start, budget=Budget(max_evaluations=limit)).evaluations
        assert made == min(limit, unlimited), f"{made} evaluations were made of {limit} allowed"


def check_patience_kept(make: PlannerFactory) -> None:
    """A problem has converged after `patience` iterations none of which brought more than `tolerance` of its cost: no
    sooner, no later, and whatever the others of its batch do."""
    patience = 3
    for scale, rate, calls, tolerance in (
        (1e-6, 0.9, (5,), 1e-3),  # the tolerance is relative
        (1.0, 0.95, (10**9,), 0.9),
        (1.0, 0.9, (5, 0, 3), 1e-3),
    ):
        planner = make(box(2))
        budget = Budget(patience=patience, tolerance=tolerance)
        together = solve(planner, _Improving(calls, rate, scale), torch.zeros(len(calls), 2, 2), budget=budget)
        for problem, until in enumerate(calls):
            one = together
            if len(calls) > 1:
                one = solve(planner, _Improving((until,), rate, scale), torch.zeros(1, 2, 2), budget=budget)
                assert one.endings[0] == together.endings[problem], (
                    f"a problem that ends with {one.endings[0]} alone ends with {together.endings[problem]} in a batch"
                )
            best = [scale, *(record.best[0] for record in one.iterations)]
            stops = _stops(best, patience, tolerance)
            # Two searches, one after the other, each wait.
            assert one.stopped == "converged" and len(stops) == (2 if isinstance(planner, Refined) else 1), (
                f"stopped by {one.stopped!r} after {best}; converged at {stops}"
            )
            assert stops[-1] == len(one.iterations), f"went on after {stops}, to {len(one.iterations)} iterations"


@dataclass
class _Improving:
    """Whatever the actions, each call about a problem costs `rate` of the one before, until so many `calls` were made
    about it."""

    calls: tuple[int, ...]
    rate: float
    scale: float

    def __post_init__(self) -> None:
        self.made = [0] * len(self.calls)

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        costs = []
        for problem in problems.tolist():
            costs.append(self.scale * self.rate ** min(self.made[problem], self.calls[problem]))
            self.made[problem] += 1
        cost = actions.new_tensor(costs)[:, None] + 0 * actions.flatten(2).sum(dim=-1)
        return Evaluation(cost, actions.new_zeros(*cost.shape, 0))


def _stops(best: list[float], patience: int, tolerance: float) -> list[int]:
    """After which iterations a search whose best was `best` had converged, each time beginning anew."""
    stops, mark, idle = [], best[0], 0
    for iteration, cost in enumerate(best[1:], start=1):
        if cost < mark - tolerance * abs(mark):
            mark, idle = cost, 0
        else:
            idle += 1
        if idle == patience:
            stops.append(iteration)
            idle = 0
    return stops


def check_bad_input_refused(make: PlannerFactory) -> None:
    """What cannot be planned from is refused in a sentence, before the cost function is asked."""

    def never(actions: Tensor, problems: Tensor) -> Evaluation:
        raise AssertionError("the cost function was asked about a task that should have been refused")

    good = torch.zeros(1, 2, 2)
    nan, infinite = torch.full((1, 2, 2), torch.nan), torch.full((1, 2, 2), torch.inf)
    cases: list[tuple[str, Tensor, Budget, int, Tensor | None]] = [
        ("horizon 0", torch.zeros(1, 0, 2), Budget(), 1, None),
        ("no problem", torch.zeros(0, 2, 2), Budget(), 0, None),
        ("another action size", torch.zeros(1, 2, 3), Budget(), 1, None),
        ("half precision", good.half(), Budget(), 1, None),
        ("NaN in the start", nan, Budget(), 1, None),
        ("an infinite start", infinite, Budget(), 1, None),
        ("NaN in a suggestion", good, Budget(), 1, nan[:, None]),
        ("an infinite suggestion", good, Budget(), 1, infinite[:, None]),
        ("too few generators", good, Budget(), 0, None),
        ("too many generators", good, Budget(), 2, None),
        ("no evaluations", good, Budget(max_evaluations=0), 1, None),
        ("a negative deadline", good, Budget(deadline_s=-1.0), 1, None),
        ("a deadline that is no number", good, Budget(deadline_s=float("nan")), 1, None),
        ("no patience", good, Budget(patience=0), 1, None),
        ("a negative tolerance", good, Budget(tolerance=-0.1), 1, None),
    ]
    for what, init, budget, count, given in cases:
        try:
            make(box(2)).plan(never, init, budget=budget, generators=generators(count), suggestions=given)
        except InputError:
            continue
        except (IndexError, RuntimeError, ValueError) as error:
            raise AssertionError(f"{what} was not refused in a sentence: {error!r}") from error
        raise AssertionError(f"{what} was accepted")


def check_shift(shift: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A warm start drops the step that was done and holds at the end, at every horizon."""
    for horizon in (1, 2, 5):
        actions, hold = distinct_goals(2, horizon, 3), torch.tensor([0.5, 0.25, -0.125])
        shifted = shift(actions, hold)
        assert shifted.shape == actions.shape, "the shifted plan has another shape"
        assert torch.equal(shifted[:, :-1], actions[:, 1:]), "a step is not the one that followed it"
        assert bool((shifted[:, -1] == hold).all()), "the last step does not hold"
