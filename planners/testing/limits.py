"""Budgets, deadlines, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Budget, Evaluation
from vjepa_mpc.planners.testing.worlds import Bowl, PlannerFactory, Watch, box, distinct_goals, generators, solve


def check_budget_kept(make: PlannerFactory) -> None:
    """No problem gets more evaluations than allowed, and all that are counted were made."""
    for limit in (1, 2, 3, 5, 17, 100):
        watch = Watch(Bowl(distinct_goals(2, 2, 2)))
        plan = solve(make(box(2)), watch, torch.zeros(2, 2, 2), budget=Budget(max_evaluations=limit))
        made = watch.candidates.shape[1]
        assert made <= limit, f"{made} evaluations were made of {limit} allowed"
        assert plan.evaluations == made, f"{made} evaluations were made, {plan.evaluations} counted"
        assert plan.stopped == "max_evaluations", f"stopped by {plan.stopped!r}, not by the budget"


def check_spends_the_whole_budget(make: PlannerFactory) -> None:
    """All evaluations allowed are made where the settings would make more."""
    for limit in (*range(1, 14), 50, 99):
        plan = solve(
            make(box(2)),
            Bowl(distinct_goals(1, 2, 2)),
            torch.zeros(1, 2, 2),
            budget=Budget(max_evaluations=limit),
        )
        assert plan.evaluations == limit, f"{plan.evaluations} evaluations were made of {limit} allowed"


def check_deadline_kept(make: PlannerFactory) -> None:
    """With a slow cost function a plan ends within about one call of its deadline, and is still an answer."""
    bowl = Bowl(distinct_goals(1, 2, 2))

    def slow(actions: Tensor, problems: Tensor) -> Evaluation:
        time.sleep(0.05)
        return bowl(actions, problems)

    init = torch.zeros(1, 2, 2)
    for deadline_s in (0.0, 0.4):
        plan = solve(make(box(2)), slow, init, budget=Budget(deadline_s=deadline_s))
        assert plan.seconds < deadline_s + 0.25, f"{plan.seconds:.2f} s were taken of {deadline_s} s"
        assert plan.stopped == "deadline", f"stopped by {plan.stopped!r}, not by the deadline"
    assert float(plan.cost[0]) < float(bowl(init[:, None], torch.arange(1)).cost[0, 0]), "no progress in time"
    began, deadline_s, late = time.perf_counter(), 0.2, 0

    def counted(actions: Tensor, problems: Tensor) -> Evaluation:
        nonlocal late
        late += time.perf_counter() - began > deadline_s
        return slow(actions, problems)

    solve(make(box(2)), counted, init, budget=Budget(deadline_s=deadline_s))
    assert late <= 2, f"{late} calls were begun after the deadline"  # where a descent ended is judged all the same


def check_patience_kept(make: PlannerFactory) -> None:
    """A search that is said to have converged brought nothing for as many iterations as it was to wait, and one that
    still brings something is not stopped."""
    bowl, patience = Bowl(distinct_goals(1, 2, 2)), 3
    init = torch.zeros(1, 2, 2)
    plan = solve(make(box(2)), bowl, init, budget=Budget(patience=patience, tolerance=0.0))
    if plan.stopped != "converged":
        return
    start = float(bowl(init[:, None], torch.arange(1)).cost[0, 0])
    best = [start, *(record.best[0] for record in plan.iterations)]
    assert best[-1 - patience] <= best[-1], "stopped as converged while it still got better"


def check_bad_input_refused(make: PlannerFactory) -> None:
    """What cannot be planned from is refused in a sentence, before the cost function is asked."""

    def never(actions: Tensor, problems: Tensor) -> Evaluation:
        raise AssertionError("the cost function was asked about a task that should have been refused")

    good = torch.zeros(1, 2, 2)
    cases: list[tuple[str, Tensor, Budget, int]] = [
        ("horizon 0", torch.zeros(1, 0, 2), Budget(), 1),
        ("no problem", torch.zeros(0, 2, 2), Budget(), 0),
        ("another action size", torch.zeros(1, 2, 3), Budget(), 1),
        ("NaN in the start", torch.full((1, 2, 2), torch.nan), Budget(), 1),
        ("too few generators", good, Budget(), 0),
        ("too many generators", good, Budget(), 2),
        ("no evaluations", good, Budget(max_evaluations=0), 1),
        ("a negative deadline", good, Budget(deadline_s=-1.0), 1),
    ]
    for what, init, budget, count in cases:
        try:
            make(box(2)).plan(never, init, budget=budget, generators=generators(count))
        except InputError:
            continue
        raise AssertionError(f"{what} was accepted")


def check_shift(shift: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A warm start drops the step that was done and holds at the end, at every horizon."""
    for horizon in (1, 2, 5):
        actions, hold = distinct_goals(2, horizon, 3), torch.tensor([0.5, 0.25, -0.125])
        shifted = shift(actions, hold)
        assert shifted.shape == actions.shape, "the shifted plan has another shape"
        assert torch.equal(shifted[:, :-1], actions[:, 1:]), "a step is not the one that followed it"
        assert bool((shifted[:, -1] == hold).all()), "the last step does not hold"
