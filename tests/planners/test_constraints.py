"""Constraints: what holds a plan is named, and planners that descend learn what a constraint is worth."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners import (
    CEM,
    CMAES,
    ICEM,
    LBFGS,
    MPPI,
    ActionPlan,
    AugmentedLagrangian,
    Budget,
    CEMSettings,
    CMASettings,
    CostFunction,
    DiscreteCEM,
    DiscreteSettings,
    Ending,
    Evaluation,
    GradientPlanner,
    GradientSettings,
    ICEMSettings,
    LBFGSSettings,
    Limits,
    MPPISettings,
    PredictiveSampling,
    PredictiveSettings,
    RandomShooting,
    ShootingSettings,
    Suggested,
)
from vjepa_mpc.planners.lagrangian import LagrangianLBFGS, LagrangianLBFGSSettings
from vjepa_mpc.planners.prices import Price
from vjepa_mpc.planners.testing import Bowl, box, solve
from vjepa_mpc.planners.testing.clock import Timed
from vjepa_mpc.planners.testing.worlds import distinct_goals, generators

GOAL = torch.full((1, 2, 2), 0.8)


def in_units(scale: float, limit: float = 0.4) -> object:
    """The nearest point to 0.8 everywhere whose first step's actions add up to no more than `limit`, the excess told
    in units so many times as small. The answer costs 2 * 0.6^2 = 0.72; a unit of the sum is worth 1.2."""
    bowl = Bowl(GOAL, limit=limit)

    def cost(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        found = bowl(actions, problems)
        return Evaluation(found.cost, scale * found.violation, found.names)

    return cost


def test_a_plan_names_what_holds_it() -> None:
    def two(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        first, last = actions[:, :, 0].sum(-1), actions[:, :, -1].sum(-1)
        broken = torch.stack(((first + 5).clamp(min=0), (last - 9).clamp(min=0)), dim=-1)
        return Evaluation(actions.square().flatten(2).sum(-1), broken, ("impossible", "easy"))

    plan = solve(CEM(box(2)), two, torch.full((1, 2, 2), 0.5))
    assert plan.held_by == (("impossible",),) and float(plan.violation[0, 0]) < 3.1
    assert solve(CEM(box(2)), in_units(1.0), torch.zeros(1, 2, 2)).held_by == ((),)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("inner", ["lbfgs", "adam"])
def test_the_augmented_lagrangian_keeps_constraints_in_any_unit(scale: float, inner: str) -> None:
    make = {
        "lbfgs": LBFGS(box(2), LBFGSSettings(starts=2, steps=25)),
        "adam": GradientPlanner(box(2), GradientSettings(starts=2, steps=60)),
    }
    planner = AugmentedLagrangian(make[inner], rounds=8, growth=10.0)
    plan = solve(planner, in_units(scale), GOAL.clone())  # type: ignore[arg-type]
    assert float(plan.violation.sum()) == 0.0
    # A kink as steep as a thousand is stepped over by Adam, whose answer is then merely inside.
    assert float(plan.cost[0]) < (0.78 if scale <= 1 else 1.4)


def test_a_fixed_penalty_does_not_keep_them_in_any_unit() -> None:
    plan = solve(LBFGS(box(2), LBFGSSettings(starts=1, steps=40)), in_units(1e-3), GOAL.clone())  # type: ignore[arg-type]
    assert float(plan.violation.sum()) > 0, "then the augmented Lagrangian proves nothing here"


def test_each_problem_learns_its_own_prices() -> None:
    goals = torch.cat((GOAL, 0.1 * GOAL))  # the second one's constraint is never felt

    def cost(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        return Bowl(goals, limit=0.4)(actions, problems)

    plan = solve(AugmentedLagrangian(LBFGS(box(2))), cost, torch.zeros(2, 2, 2))
    torch.testing.assert_close(plan.actions[0, 0], torch.full((2,), 0.2), atol=0.02, rtol=0)
    torch.testing.assert_close(plan.actions[1], goals[1], atol=1e-3, rtol=0)


def test_prices_rise_by_what_is_still_broken() -> None:
    """By hand (Nocedal and Wright 2006, framework 17.3): the multiplier by weight * v, the weight where v is stuck."""
    price = Price(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 10.0, 10.0]]))
    before, now = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.25, 0.75, 0.0]])
    after = price.after(before, now, growth=4.0, shrink=0.5)
    assert after.multiplier.tolist() == [[3.5, 9.5, 3.0]] and after.weight.tolist() == [[10.0, 40.0, 10.0]]


@pytest.mark.parametrize("limit", [3, 10, 20, 30, 60, 140])
def test_few_evaluations_are_spent_in_fewer_rounds(limit: int) -> None:
    start, task = torch.full((1, 2, 2), 0.3), Bowl(GOAL, limit=0.4)  # breaks the constraint by 0.2
    plan = solve(LagrangianLBFGS(box(2)), task, start, budget=Budget(max_evaluations=limit))
    assert plan.evaluations == limit and plan.stopped == "max_evaluations"
    assert limit < 10 or float(plan.violation.sum()) == 0, "no way to what is allowed was found"


def test_an_infinite_violation_is_a_violation() -> None:
    def cost(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        found = Bowl(GOAL, limit=0.4)(actions, problems)
        far = actions[:, :, 0, :1] > 0.5
        return Evaluation(found.cost, torch.where(far, torch.inf, found.violation), found.names)

    for start in (0.0, 0.9):
        plan = solve(LagrangianLBFGS(box(2)), cost, torch.full((1, 2, 2), start))
        assert float(plan.violation.sum()) == 0 and float(plan.cost[0]) < 0.75  # least: 0.72


EASY_AND_HARD = torch.tensor([[[0.1, 0.1]] * 2, [[0.2, 0.0]] * 2, [[0.8, 0.8]] * 2])
BUDGETS = {
    "target": Budget(target=0.05),
    "patience": Budget(patience=2),
    "max_evaluations": Budget(max_evaluations=130),
    "patience and max_evaluations": Budget(patience=3, max_evaluations=130),
    "target and max_evaluations": Budget(target=0.05, max_evaluations=130),
    "all": Budget(target=0.05, patience=2, max_evaluations=130),
}


def of_rows(cost_fn: CostFunction, first: int) -> CostFunction:
    """The problems from number `first` on."""
    return lambda actions, problems: cost_fn(actions, problems + first)


@pytest.mark.parametrize(("inner", "suggested"), [("lbfgs", 0), ("adam", 2)])
@pytest.mark.parametrize("name", BUDGETS)
def test_an_augmented_lagrangian_of_a_batch_is_that_of_each_problem(name: str, inner: str, suggested: int) -> None:
    """One problem is met by its start, one is easy, one's constraint is felt: plans, costs and endings are those of
    each alone, which is asked about as often as its ending says."""
    make = {
        "lbfgs": lambda bounds: LBFGS(bounds, LBFGSSettings(starts=2, steps=40)),
        "adam": lambda bounds: GradientPlanner(bounds, GradientSettings(starts=2, steps=40, action_noise=0.1)),
    }[inner]
    start = torch.cat((EASY_AND_HARD[:1], torch.full((1, 2, 2), 0.4), torch.zeros(1, 2, 2)))
    given = 0.5 * distinct_goals(3 * suggested, 2, 2).unflatten(0, (3, suggested)) if suggested else None
    asked = [0, 0, 0]

    def cost(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        for problem in problems.tolist():
            asked[problem] += actions.shape[1]
        return Bowl(EASY_AND_HARD, limit=0.4)(actions, problems)

    def planned(rows: slice, previous: torch.Tensor) -> ActionPlan:
        bounds = Limits(-torch.ones(2), torch.ones(2), rate=torch.tensor([0.5, 0.7]), previous=previous[rows])
        return AugmentedLagrangian(make(bounds), rounds=4).plan(
            of_rows(cost, rows.start), start[rows], budget=BUDGETS[name], generators=generators(3)[rows],
            suggestions=None if given is None else given[rows],
        )  # fmt: skip

    previous = torch.tensor([[0.1, 0.1], [0.0, 0.3], [0.0, -0.3]])
    together = planned(slice(0, 3), previous)
    assert asked == [ending.evaluations for ending in together.endings]
    assert together.endings[0] == Ending(1, "target") or BUDGETS[name].target is None
    assert len({ending.evaluations for ending in together.endings}) > 1 or name == "max_evaluations"
    for problem in range(3):
        alone = planned(slice(problem, problem + 1), previous)
        assert torch.equal(together.actions[problem], alone.actions[0])
        assert together.cost[problem] == alone.cost[0] and together.endings[problem] == alone.endings[0]
        assert torch.equal(together.violation[problem], alone.violation[0])
        if alone.iterations:  # those that are done keep their last values
            assert together.of_problem(problem).iterations[-1].best == alone.iterations[-1].best
            assert together.of_problem(problem).iterations[-1].std == alone.iterations[-1].std


def test_an_augmented_lagrangian_draws_for_each_problem_by_itself() -> None:
    """A planner within that draws before it looks at the cost does not move the generators of problems that are done,
    nor of those whose round is another."""

    def suggest(init: torch.Tensor, rng: Sequence[torch.Generator]) -> torch.Tensor:
        return torch.stack([torch.rand(2, 2, 2, generator=one) - 0.5 for one in rng])

    def planned(rows: slice) -> ActionPlan:
        inner = Suggested(GradientPlanner(box(2), GradientSettings(starts=3, steps=40)), suggest)
        cost = of_rows(Bowl(EASY_AND_HARD, limit=0.4), rows.start)
        budget = Budget(patience=2, max_evaluations=130)
        start = torch.zeros(3, 2, 2)[rows]
        return solve(AugmentedLagrangian(inner), cost, start, budget=budget, rng=generators(3)[rows])

    together = planned(slice(0, 3))
    for problem in range(3):
        alone = planned(slice(problem, problem + 1))
        assert torch.equal(together.actions[problem], alone.actions[0])
        assert together.endings[problem] == alone.endings[0]


@pytest.mark.parametrize("takes", [(0.01, 0.03, 0.01, 0.11, 0.02, 0.07), (0.3, 0.01, 0.05, 0.02)])
def test_a_round_that_ends_late_is_not_judged_again(takes: tuple[float, ...]) -> None:
    """At most two calls end after the deadline; what is told of the answer is true, and counted, all the same."""
    bowl, rows = Bowl(EASY_AND_HARD[1:], limit=0.4), torch.arange(2)
    for deadline_s in torch.arange(0.03, 0.6, 0.04).tolist():
        timed = Timed(bowl, lambda call, candidates: takes[call % len(takes)])
        settings = LagrangianLBFGSSettings(starts=2, steps=25, rounds=3)
        with timed.clock():
            budget, start = Budget(deadline_s=deadline_s), torch.zeros(2, 2, 2)
            plan = solve(LagrangianLBFGS(box(2), settings), timed, start, budget=budget)
        assert sum(call.ended_s > deadline_s + 1e-9 for call in timed.calls) <= 2
        assert plan.evaluations == timed.calls[-1].evaluations and plan.stopped == "deadline"
        true = bowl(plan.actions[:, None], rows)
        assert torch.equal(true.cost[:, 0], plan.cost) and torch.equal(true.violation[:, 0], plan.violation)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 rounds"):
        AugmentedLagrangian(LBFGS(box(1)), rounds=1)


ONE_SAMPLE = {
    "cem": lambda bounds: CEM(bounds, CEMSettings(samples=1, elites=1, iterations=3)),
    "icem": lambda bounds: ICEM(bounds, ICEMSettings(samples=1, elites=1, iterations=3)),
    "mppi": lambda bounds: MPPI(bounds, MPPISettings(samples=1, iterations=3)),
    "cma": lambda bounds: CMAES(bounds, CMASettings(samples=2, iterations=3)),  # the least it takes
    "discrete": lambda bounds: DiscreteCEM(bounds, DiscreteSettings(samples=1, elites=1, iterations=3)),
    "shooting": lambda bounds: RandomShooting(bounds, ShootingSettings(samples=1, iterations=3)),
    "predictive": lambda bounds: PredictiveSampling(bounds, PredictiveSettings(samples=1, iterations=3)),
    "gradient": lambda bounds: GradientPlanner(bounds, GradientSettings(starts=1, steps=3)),
    "lbfgs": lambda bounds: LBFGS(bounds, LBFGSSettings(starts=1, steps=3)),
}


@pytest.mark.parametrize("name", ONE_SAMPLE)
def test_one_sample_one_step_and_one_action_are_enough_to_plan(name: str) -> None:
    plan = solve(ONE_SAMPLE[name](box(1)), Bowl(torch.tensor([[[0.5]]])), torch.zeros(1, 1, 1))
    assert plan.actions.shape == (1, 1, 1) and 0 <= float(plan.cost[0]) <= 0.25
    assert bool(torch.isfinite(plan.actions).all())
