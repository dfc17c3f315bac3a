"""The same seed gives the same plan, alone and in a batch, and nothing global has a part in it."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from vjepa_mpc.planners.base import Bounds, Budget, Evaluation
from vjepa_mpc.planners.testing.worlds import (
    Bowl,
    PlannerFactory,
    Watch,
    assert_near,
    box,
    distinct_goals,
    generators,
    solve,
)


def check_same_seed_same_plan(make: PlannerFactory) -> None:
    """The same seed gives the same plan to the bit; the generators handed in are really used."""
    budget, init = Budget(max_evaluations=150), torch.full((2, 3, 2), 0.9)

    def cost(actions: Tensor, problems: Tensor) -> Evaluation:  # many valleys: where one ends is chance
        total = (actions.square() + 0.3 * (15 * actions).sin()).flatten(2).sum(dim=-1)
        return Evaluation(total, actions.new_zeros(*actions.shape[:2], 0))

    first, again = (solve(make(box(2)), cost, init, budget=budget) for _ in range(2))
    assert torch.equal(first.actions, again.actions), "the same seed gave another plan"
    assert torch.equal(first.cost, again.cost), "the same seed gave another cost"
    # The answer may be the unperturbed start's by either seed; what was tried on the way is not.
    tried, once_more = ([(record.mean_cost, record.std) for record in plan.iterations] for plan in (first, again))
    assert tried == once_more, "the same seed tried other candidates"
    other = solve(make(box(2)), cost, init, budget=budget, rng=generators(2, seed=100))
    assert tried != [(record.mean_cost, record.std) for record in other.iterations], "another seed tried the same"


def check_keeps_nothing_between_plans(make: PlannerFactory) -> None:
    """A planner answers a task as if it were its first, and leaves what it is handed as it was."""
    planner, budget = make(box(2)), Budget(max_evaluations=150)
    bowl, init, given = Bowl(distinct_goals(2, 2, 2)), torch.full((2, 2, 2), 0.4), torch.full((2, 3, 2, 2), -3.0)
    handed = init.clone(), given.clone()

    def planned(start: Tensor, bowl: Bowl, suggestions: Tensor | None) -> Tensor:
        rng = generators(len(start))
        return planner.plan(bowl, start, budget=budget, generators=rng, suggestions=suggestions).actions

    first = planned(init, bowl, None)
    planned(torch.full((3, 4, 2), -0.9), Bowl(distinct_goals(3, 4, 2, seed=8)), None)
    planned(init, bowl, given)
    assert torch.equal(init, handed[0]), "planning changed the start it was handed"
    assert torch.equal(given, handed[1]), "planning changed the suggestions it was handed"
    assert torch.equal(planned(init, bowl, None), first), "the same planner answers otherwise after other tasks"


def check_global_generators_untouched(make: PlannerFactory) -> None:
    """torch's and numpy's own generators are not moved, and no global generator changes the plan.

    Python's own is not watched for moving: beartype draws from it when it checks a sequence's items.
    """
    cost, init = Bowl(distinct_goals(1, 2, 2)), torch.zeros(1, 2, 2)
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        first = solve(make(box(2)), cost, init, budget=Budget(max_evaluations=150))
        assert torch.equal(kept[0], torch.get_rng_state()), "torch's global generator was moved"
        assert repr(kept[1]) == repr(np.random.get_state()), "numpy's global generator was moved"
        torch.manual_seed(1234)
        np.random.seed(1234)
        random.seed(1234)
        again = solve(make(box(2)), cost, init, budget=Budget(max_evaluations=150))
        # The answer may be the unperturbed start's by any seed; what was tried on the way is not.
        tried, anew = ([(record.mean_cost, record.std) for record in plan.iterations] for plan in (first, again))
        assert torch.equal(first.actions, again.actions) and tried == anew, "a global seed changed the plan"
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])


def check_draws_anew(make: PlannerFactory) -> None:
    """For planners that draw: where nothing is learned, all candidates being rejected, each iteration tries others."""
    watch = Watch(lambda actions, problems: _rejected(actions))
    solve(make(box(2)), watch, torch.zeros(1, 2, 2), budget=Budget(max_evaluations=600))
    tried = watch.candidates[0]
    different = len(torch.unique(tried.flatten(1), dim=0))
    assert different > 0.9 * len(tried), f"of {len(tried)} candidates only {different} differ"


def _rejected(actions: Tensor) -> Evaluation:
    return Evaluation(actions.new_full(actions.shape[:2], torch.inf), actions.new_zeros(*actions.shape[:2], 0))


def check_batch_equals_loop(make: PlannerFactory) -> None:
    """Each problem's plan is the same, to the bit, alone and in a batch, and goals never mix."""
    for horizon, size in ((3, 2), (1, 1)):
        goals = distinct_goals(2, horizon, size)
        init = 0.1 * distinct_goals(2, horizon, size, seed=9)
        budget = Budget(max_evaluations=150)
        together = solve(make(box(size)), Bowl(goals, limit=0.1), init, budget=budget)
        for problem in range(2):
            one = slice(problem, problem + 1)
            bowl, rng = Bowl(goals[one], limit=0.1), generators(2)[one]
            alone = solve(make(box(size)), bowl, init[one], budget=budget, rng=rng)
            what = f"problem {problem} of 2 (horizon {horizon}, {size} actions)"
            assert torch.equal(together.actions[one], alone.actions), f"{what} differs alone and in a batch"
            assert torch.equal(together.cost[one], alone.cost), f"{what} costs something else in a batch"


def check_units(make: PlannerFactory) -> None:
    """The same task in other units, 64 times as large a number each, has the same plan in those units."""
    goals = distinct_goals(1, 2, 2)
    factor = 64.0

    def rescaled(actions: Tensor, problems: Tensor) -> Evaluation:
        return Bowl(goals)(actions / factor, problems)

    plan = solve(make(box(2)), Bowl(goals), torch.zeros(1, 2, 2), budget=Budget(max_evaluations=300))
    other = solve(make(box(2, half=factor)), rescaled, torch.zeros(1, 2, 2), budget=Budget(max_evaluations=300))
    assert_near(other.actions / factor, plan.actions, 1e-4, "the plan in other units")


def check_problems_stop_one_by_one(make: PlannerFactory) -> None:
    """A problem that is done is asked about no more, and neither its plan nor the others' depend on that."""
    goals, init = distinct_goals(3, 2, 2), torch.zeros(3, 2, 2)
    init[1] = goals[1]
    budget = Budget(target=1e-9, patience=4, max_evaluations=500)
    asked = [0, 0, 0]

    def counted(actions: Tensor, problems: Tensor) -> Evaluation:
        for problem in problems.tolist():
            asked[problem] += actions.shape[1]
        return Bowl(goals)(actions, problems)

    together = solve(make(box(2)), counted, init, budget=budget)
    assert together.endings[1].stopped == "target", f"problem 1 stopped by {together.endings[1].stopped!r}"
    assert asked == [ending.evaluations for ending in together.endings], "evaluations were not counted right"
    assert asked[1] <= 2, f"the problem whose start was the answer was judged {asked[1]} times"
    for problem in range(3):
        one = slice(problem, problem + 1)
        alone = solve(make(box(2)), Bowl(goals[one]), init[one], budget=budget, rng=generators(3)[one])
        assert torch.equal(together.actions[one], alone.actions), f"problem {problem} differs alone and in a batch"
        assert together.endings[problem] == alone.endings[0], f"problem {problem} stops elsewhere in a batch"
    easy = 0.7 * float(Bowl(goals)(init[:, None], torch.arange(3)).cost[[0, 2]].min())
    plan = solve(make(box(2)), Bowl(goals), init, budget=Budget(target=easy))
    assert [ending.stopped for ending in plan.endings] == ["target"] * 3, "an easy target was not seen to be met"
    assert bool((plan.cost <= easy).all()), "the answer said to meet the target does not"
    plan = solve(make(box(2)), Bowl(goals), goals.clone(), budget=Budget(target=0.0))
    assert [ending.stopped for ending in plan.endings] == ["target"] * 3, "what costs the target did not meet it"
    plan = solve(make(box(2)), Bowl(goals, limit=-0.5), torch.zeros(3, 2, 2), budget=Budget(target=100.0))
    met = torch.tensor([ending.stopped == "target" for ending in plan.endings])
    assert float(plan.violation[met].sum()) == 0, "a plan that breaks a constraint was said to meet the target"


def check_same_on_cuda(make: PlannerFactory) -> None:
    """Where there is a GPU: from the start of the same seed a smooth problem ends at the same place as on the CPU, to
    the tolerance of a search (the two generators draw other numbers)."""
    if not torch.cuda.is_available():
        return
    goals = distinct_goals(1, 2, 2)
    here = solve(make(box(2)), Bowl(goals), torch.zeros(1, 2, 2))
    bounds = Bounds(-torch.ones(2, device="cuda"), torch.ones(2, device="cuda"))
    rng = [torch.Generator("cuda").manual_seed(0)]
    there = solve(make(bounds), Bowl(goals.cuda()), torch.zeros(1, 2, 2, device="cuda"), rng=rng)
    assert there.actions.is_cuda, "the plan left the GPU"
    assert_near(there.cost.cpu(), here.cost, 0.15, "the cost reached on the GPU")
