"""Limits beyond the box, knots, and planners made of planners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import hypothesis
import hypothesis.strategies as st
import jaxtyping
import pytest
import torch

from vjepa_mpc.cli.building import PLANNERS, make_planner
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners import (
    CEM,
    CMAES,
    LBFGS,
    MPPI,
    Ball,
    Blocks,
    Bounds,
    Budget,
    ByKnots,
    CEMSettings,
    CMASettings,
    GradientPlanner,
    LagrangianLBFGS,
    LagrangianLBFGSSettings,
    LBFGSSettings,
    Limits,
    Lines,
    Planner,
    Refined,
    Splines,
    Suggested,
    fixed,
)
from vjepa_mpc.planners.base import Evaluation
from vjepa_mpc.planners.testing import Bowl, Watch, box, generators, solve
from vjepa_mpc.planners.testing.clock import Timed

CARTESIAN = Limits(
    torch.tensor([-0.05, -0.05, -0.05, -1.0]),
    torch.tensor([0.05, 0.05, 0.05, 1.0]),
    balls=(Ball((0, 1, 2), 0.06),),
    rate=torch.tensor([0.02, 0.02, 0.02, 0.5]),
    previous=torch.tensor([[0.03, 0.0, 0.0, 0.9]]),
)


def broken(limits: Limits, actions: torch.Tensor) -> float:
    """The largest excess over box, balls and rates of sequences [1, n, h, a]."""
    assert limits.rate is not None and limits.previous is not None
    box_excess = torch.maximum(actions - limits.high, limits.low - actions).max()
    ball = max(float((actions[..., list(b.members)].norm(dim=-1) - b.radius).max()) for b in limits.balls)
    before = torch.cat((limits.previous[:, None, None].expand(*actions.shape[:2], 1, -1), actions), dim=2)
    rate = (before.diff(dim=2).abs() - limits.rate).max()
    return max(float(box_excess), ball, float(rate))


@pytest.mark.parametrize("make", [CEM, MPPI, GradientPlanner, LBFGS], ids=lambda make: make.__name__)
def test_every_candidate_keeps_balls_and_rates(make: type) -> None:
    """Not the answer alone: no evaluation is spent on what a robot would clip."""
    goals = torch.tensor([0.05, -0.05, 0.05, -1.0]).expand(1, 6, 4)
    watch = Watch(Bowl(goals))
    plan = solve(make(CARTESIAN), watch, torch.zeros(1, 6, 4), budget=Budget(max_evaluations=200))
    assert broken(CARTESIAN, watch.candidates) < 1e-6 and broken(CARTESIAN, plan.actions[:, None]) < 1e-6
    assert float(plan.cost[0]) < 0.7 * float(Bowl(goals)(watch.asked[0], torch.arange(1)).cost)


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(seed=st.integers(0, 2**31), size=st.floats(0.01, 100.0))
def test_the_projection_keeps_everything_and_leaves_what_is_allowed(seed: int, size: float) -> None:
    wild = size * torch.randn(1, 5, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    once = CARTESIAN.clip(wild)
    assert broken(CARTESIAN, once) < 1e-7
    torch.testing.assert_close(CARTESIAN.clip(once), once, atol=1e-7, rtol=0)


def test_a_ball_in_a_box_without_zero() -> None:
    """The point of the box nearest to zero is what the projection moves towards."""
    limits = Limits(torch.tensor([0.3, -1.0]), torch.tensor([1.0, 1.0]), balls=(Ball((0, 1), 0.5),))
    found = limits.clip(torch.tensor([[1.0, 1.0], [0.3, 0.0], [0.3, 0.4]]))
    assert float(found.norm(dim=-1).max()) <= 0.5 + 1e-6 and float(found[:, 0].min()) >= 0.3
    torch.testing.assert_close(found[1:], torch.tensor([[0.3, 0.0], [0.3, 0.4]]))
    with pytest.raises(InputError, match="No action"):
        Limits(torch.tensor([0.6]), torch.tensor([1.0]), balls=(Ball((0,), 0.5),))
    with pytest.raises(InputError, match="overlaps"):
        Limits(torch.tensor([-1.0]), torch.tensor([1.0]), balls=(Ball((0,), 0.5), Ball((0,), 0.7)))
    with pytest.raises(InputError, match="rates"):
        Limits(torch.tensor([-1.0]), torch.tensor([1.0]), rate=torch.tensor([0.0]))


@pytest.mark.parametrize("patience", [1, 2])
def test_refined_problems_that_lose_patience_share_no_budget(patience: int) -> None:
    """A batch equals the loop over its problems: easy ones next to hard ones."""
    near_and_far = torch.linspace(0.01, 1.5, 8)[:, None, None]
    goals = torch.rand(8, 3, 2, generator=torch.Generator().manual_seed(5)) * near_and_far
    budget = Budget(max_evaluations=40, patience=patience)
    settings = CEMSettings(samples=6, elites=2, iterations=20)
    planner = Refined(CEM(box(2), settings), LBFGS(box(2), LBFGSSettings(starts=2)), share=0.75)
    together = solve(planner, Bowl(goals), torch.zeros(8, 3, 2), budget=budget, rng=generators(8))
    assert len({ending.evaluations for ending in together.endings}) > 1
    for row, rng in enumerate(generators(8)):
        alone = solve(planner, Bowl(goals[row : row + 1]), torch.zeros(1, 3, 2), budget=budget, rng=[rng])
        assert torch.equal(alone.actions[0], together.actions[row]) and alone.endings[0] == together.endings[row]


def test_one_previous_action_serves_all_problems_and_other_numbers_are_refused() -> None:
    def limits(*previous: float) -> Limits:
        one = torch.tensor([1.0])
        return Limits(-one, one, rate=torch.tensor([0.1]), previous=torch.tensor(previous)[:, None])

    bowl, init = Bowl(torch.tensor([0.9, -0.9]).reshape(2, 1, 1).expand(2, 3, 1)), torch.zeros(2, 3, 1)
    settings = CEMSettings(samples=32, elites=4, iterations=4)
    plans = [
        solve(CEM(limits(*before), settings), bowl, init, budget=Budget(target=0.25)) for before in ((0.5,), (0.5, 0.5))
    ]
    assert torch.equal(plans[0].actions, plans[1].actions)
    with pytest.raises(InputError, match="2 problems need one row of previous actions, or one each; got 3"):
        solve(CEM(limits(0.5, 0.5, 0.5), settings), bowl, init)
    with pytest.raises(InputError, match="really sent"):
        limits(float("nan"))


def test_each_problem_has_its_own_previous_action() -> None:
    limits = Limits(
        torch.tensor([-1.0]), torch.tensor([1.0]), rate=torch.tensor([0.1]), previous=torch.tensor([[0.5], [-0.5]])
    )
    plan = solve(CEM(limits), Bowl(torch.zeros(2, 2, 1)), torch.zeros(2, 2, 1), budget=Budget(target=-1.0))
    torch.testing.assert_close(plan.actions[:, :, 0], torch.tensor([[0.4, 0.3], [-0.4, -0.3]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("limit", [None, 0.3])
@pytest.mark.parametrize("name", [*PLANNERS, "cem+lbfgs", "knots", "suggested"])
def test_a_previous_action_is_handed_on_to_every_search(name: str, limit: float | None) -> None:
    """Two problems, each from its own; without constraints and with one."""
    limits = Limits(torch.tensor([-1.0]), torch.tensor([1.0]), rate=torch.tensor([0.1]), first=torch.tensor([0.05]))
    made = make_planner({"knots": "cem", "suggested": "cem"}.get(name, name), limits)
    if name == "knots":
        made = ByKnots(made, Blocks(2))
    if name == "suggested":
        made = Suggested(made, lambda init, rng: init[:, None])
    watch, before = Watch(Bowl(torch.zeros(2, 4, 1), limit=limit)), torch.tensor([[0.5], [-0.5]])
    budget = Budget(max_evaluations=60)
    plan = made.plan(watch, torch.zeros(2, 4, 1), budget=budget, generators=generators(2), previous=before)
    asked = [*watch.asked, plan.actions[:, None]]
    for actions in asked:
        assert len(actions) == 2 and float((actions[:, :, 0] - before[:, None]).abs().max()) <= 0.05 + 1e-6
        assert float(actions.diff(dim=2).abs().max()) <= 0.1 + 1e-6
    torch.testing.assert_close(plan.actions[:, :2, 0], torch.tensor([[0.45, 0.35], [-0.45, -0.35]]), atol=0.1, rtol=0)


def test_fixed_actions_stay() -> None:
    bounds = fixed(box(3), {1: 0.25})
    watch = Watch(Bowl(torch.full((1, 2, 3), 0.8)))
    solve(CEM(bounds), watch, torch.zeros(1, 2, 3))
    assert bool((watch.candidates[..., 1] == 0.25).all())
    with pytest.raises(InputError, match="no action 3"):
        fixed(box(3), {3: 0.0})
    with pytest.raises(InputError, match="outside"):
        fixed(box(3), {0: 2.0})


@pytest.mark.parametrize("curve", [Blocks(3), Lines(4), Splines(5), Splines(2), Lines(1), Splines(1)])
@pytest.mark.parametrize("horizon", [1, 2, 7, 12])
def test_a_curve_never_leaves_the_hull_of_its_knots(curve: Blocks | Lines | Splines, horizon: int) -> None:
    matrix = curve(horizon)
    assert matrix.shape[0] == horizon and matrix.shape[1] <= horizon and float(matrix.min()) >= 0
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(horizon).double())


def test_splines_are_smooth_and_lines_straight() -> None:
    knots = torch.tensor([0.0, 1.0, -1.0, 0.5, 0.2, -0.3]).double()
    fine = Splines(6)(2001) @ knots
    curvature = fine.diff().diff() * 2000**2
    assert float(curvature.diff().abs().max()) < 0.01 * float(curvature.abs().max())  # it does not jump
    assert float(fine[0]) == 0.0 and float(fine[-1]) == pytest.approx(-0.3)
    assert (Lines(3)(5) @ torch.tensor([0.0, 1.0, 0.0]).double()).tolist() == [0, 0.5, 1, 0.5, 0]
    assert (Blocks(2)(5) @ torch.tensor([1.0, 2.0, 3.0]).double()).tolist() == [1, 1, 2, 2, 3]


def test_blocks_decide_once_for_their_steps() -> None:
    """One decision over three steps: its optimum is the mean of the goals."""
    goals = torch.tensor([0.1, 0.2, 0.6, -0.5, -0.5, 0.1]).reshape(1, 6, 1)
    watch = Watch(Bowl(goals))
    plan = solve(ByKnots(CEM(box(1), CEMSettings(iterations=15)), Blocks(3)), watch, torch.zeros(1, 6, 1))
    torch.testing.assert_close(plan.actions.flatten(), torch.tensor([0.3] * 3 + [-0.3] * 3), atol=0.02, rtol=0)
    assert torch.equal(watch.candidates[:, :, 0], watch.candidates[:, :, 2])
    assert plan.evaluations == watch.candidates.shape[1]


def test_a_start_no_curve_can_follow_is_kept_when_it_is_better() -> None:
    goals = torch.tensor([0.9, -0.9, 0.9, -0.9]).reshape(1, 4, 1)
    plan = solve(ByKnots(CEM(box(1)), Blocks(2)), Bowl(goals), goals)
    assert torch.equal(plan.actions, goals) and float(plan.cost[0]) == 0.0


def test_refining_goes_on_from_what_sampling_found() -> None:
    """A valley only sampling finds, and a bottom only slopes reach."""

    def valleys(actions: torch.Tensor, problems: torch.Tensor) -> object:
        from vjepa_mpc.planners import Evaluation

        x = actions.flatten(2)
        cost = torch.minimum((x + 0.5).square().sum(-1) + 1, 10 * (x - 0.61803).square().sum(-1))
        return Evaluation(cost, actions.new_zeros(*actions.shape[:2], 0))

    start, budget = torch.full((1, 1, 2), -0.5), Budget(max_evaluations=500)
    cem = CEM(box(2), CEMSettings(samples=100, elites=10, iterations=5))
    slopes = LBFGS(box(2), LBFGSSettings(starts=1, steps=20))
    both, alone, lost = (solve(p, valleys, start, budget=budget) for p in (Refined(cem, slopes), cem, slopes))  # type: ignore[arg-type]
    assert float(both.cost[0]) < 1e-9 < float(alone.cost[0]) < 0.5 < float(lost.cost[0])
    assert both.evaluations <= 500 and len(both.iterations) > len(alone.iterations) - 2
    with pytest.raises(InputError, match="bounds"):
        Refined(cem, LBFGS(box(2, half=2.0)))
    limited = Limits(cem.bounds.low, cem.bounds.high, rate=torch.full((2,), 0.1))
    with pytest.raises(InputError, match="bounds"):  # what it limits would be lost in the second search
        Refined(CEM(limited), slopes)
    Refined(CEM(limited), LBFGS(replace(limited)))


def test_a_refined_plan_ends_as_its_problems_do() -> None:
    cem = CEM(box(2), CEMSettings(samples=32, elites=4, iterations=5))
    planner, task = Refined(cem, LBFGS(box(2), LBFGSSettings(steps=5))), Bowl(torch.full((2, 2, 2), 0.3))
    for limit in (1, 130, 170, None):
        why = "max_evaluations" if limit else "iterations"
        plan = solve(planner, task, torch.zeros(2, 2, 2), budget=Budget(max_evaluations=limit))
        assert {plan.stopped, *(ending.stopped for ending in plan.endings)} == {why}, f"with {limit} evaluations"


def test_a_policys_plans_are_judged_in_the_first_population() -> None:
    goals = torch.full((2, 3, 1), 0.77)
    planner = Suggested(CEM(box(1), CEMSettings(samples=20, elites=4, iterations=1)), lambda init, rng: goals[:, None])
    watch = Watch(Bowl(goals))
    given = -goals[:, None]
    plan = planner.plan(
        watch, torch.zeros(2, 3, 1), budget=Budget(), generators=generators(2), suggestions=given
    )
    assert torch.equal(plan.actions, goals) and watch.asked[1].shape[1] == 20
    assert torch.equal(watch.asked[1][:, -2:], torch.cat((given, goals[:, None]), dim=1))
    with pytest.raises(InputError, match="holds NaN"):
        solve(Suggested(planner, lambda init, rng: init[:, None] * torch.nan), Bowl(goals), torch.zeros(2, 3, 1))


def test_the_time_a_policy_takes_is_the_plans() -> None:
    timed = Timed(Bowl(torch.full((1, 2, 1), 0.5)), lambda call, candidates: 0.05)

    def slow(init: torch.Tensor, rng: object) -> torch.Tensor:
        timed.now_s += 0.4
        return init[:, None]

    with timed.clock():
        plan = solve(Suggested(CEM(box(1)), slow), timed, torch.zeros(1, 2, 1), budget=Budget(deadline_s=0.6))
    assert plan.stopped == "deadline" and timed.now_s <= 0.6 and plan.seconds == pytest.approx(timed.now_s)
    assert plan.iterations[0].seconds == pytest.approx(0.5)


@pytest.mark.parametrize("limit", [None, 9, 3, 2])
def test_a_suggestion_no_curve_can_follow_is_judged_as_it_is(limit: int | None) -> None:
    goals = torch.tensor([[[0.6], [-0.3], [0.7], [-0.5]], [[-0.6], [0.3], [-0.7], [0.5]]])
    watch, planner = Watch(Bowl(goals)), ByKnots(CEM(box(1)), Blocks(2))
    given = torch.stack((goals, -goals), dim=1)
    plan = planner.plan(
        watch, goals * 0, budget=Budget(max_evaluations=limit), generators=generators(2), suggestions=given
    )
    assert watch.candidates.shape[1] == plan.evaluations == plan.endings[1].evaluations
    assert limit is None or plan.evaluations == limit
    if limit != 2:  # half of what is left of two is none
        assert torch.equal(plan.actions, goals)


def test_bounds_of_one_kind_are_kept_in_the_plans_type() -> None:
    bounds = Limits(torch.tensor([-0.1]).double(), torch.tensor([0.1]).double(), balls=(Ball((0,), 0.05),))
    plan = solve(CEM(bounds), Bowl(torch.ones(1, 2, 1)), torch.zeros(1, 2, 1))
    assert float(plan.actions.max()) <= 0.05 + 1e-7 and isinstance(bounds, Bounds)


@pytest.mark.parametrize("separable", [False, True])
def test_cma_es_begins_every_problem_from_its_own_previous_action(separable: bool) -> None:
    limits = Limits(
        torch.tensor([-1.0]), torch.tensor([1.0]), rate=torch.tensor([0.1]), previous=torch.tensor([[0.5], [-0.5]])
    )
    planner = CMAES(limits, CMASettings(samples=8, iterations=12, separable=separable))
    watch = Watch(Bowl(torch.tensor([[[1.0], [1.0]], [[-1.0], [-1.0]]])))
    plan = solve(planner, watch, torch.tensor([[[0.5], [0.5]], [[-0.5], [-0.5]]]))
    wanted = torch.tensor([[[0.6], [0.7]], [[-0.6], [-0.7]]])
    torch.testing.assert_close(plan.actions, wanted, atol=0.01, rtol=0)
    first = watch.candidates[:, :, 0, 0]
    assert bool(((first - torch.tensor([[0.5], [-0.5]])).abs() <= 0.1 + 1e-6).all())


@pytest.mark.parametrize("name", ["cem", "cma", "gradient", "lbfgs", "shooting", "discrete", "cem+lbfgs"])
def test_a_start_that_meets_the_target_is_the_answer_at_once(name: str) -> None:
    goals = torch.tensor([[[0.25, 0.5]], [[0.5, 0.0]]])
    plan = solve(make_planner(name, box(2)), Bowl(goals), goals.clone(), budget=Budget(target=1e-6))
    assert torch.equal(plan.actions, goals) and plan.stopped == "target"
    assert [ending.evaluations for ending in plan.endings] == [2 if "+" in name else 1] * 2


def test_a_start_that_no_curve_can_follow_is_the_answer_at_once_too() -> None:
    start = torch.tensor([[[0.5], [-0.5], [0.25]]])
    planner = ByKnots(CEM(box(1)), Blocks(3))
    plan = solve(planner, Bowl(start), start.clone(), budget=Budget(target=1e-6))
    assert torch.equal(plan.actions, start) and (plan.stopped, plan.evaluations) == ("target", 1)


FEW = CEMSettings(samples=8, elites=2, iterations=3)
MADE: dict[str, Callable[[], Planner]] = {
    "cem": lambda: CEM(box(1), FEW),
    "lbfgs": lambda: LBFGS(box(1), LBFGSSettings(starts=2, steps=2)),
    "refined": lambda: Refined(CEM(box(1), FEW), LBFGS(box(1), LBFGSSettings(starts=2, steps=2))),
    "lagrangian": lambda: LagrangianLBFGS(box(1), LagrangianLBFGSSettings(starts=2, steps=3, rounds=2)),
}


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 9, None])
@pytest.mark.parametrize("knots", [False, True], ids=["steps", "knots"])
@pytest.mark.parametrize("name", MADE)
def test_a_problem_ends_beside_another_as_it_does_alone(name: str, knots: bool, limit: int | None) -> None:
    """One problem's start meets the target, the other's does not: however few evaluations there are."""
    starts = torch.tensor([[[0.5], [-0.5], [0.25]], [[0.0], [0.0], [0.0]]])
    goals = torch.tensor([[[0.5], [-0.5], [0.25]], [[0.2], [0.4], [-0.6]]])
    planner = ByKnots(MADE[name](), Blocks(3)) if knots else MADE[name]()
    budget = Budget(target=1e-6, max_evaluations=limit)
    for order in ([0, 1], [1, 0]):
        together = solve(planner, Bowl(goals[order]), starts[order], budget=budget)
        longest = max(together.endings, key=lambda ending: ending.evaluations)
        assert (together.evaluations, together.stopped) == (longest.evaluations, longest.stopped)
        for row, problem in enumerate(order):
            one, rng = slice(problem, problem + 1), generators(2)[row : row + 1]
            alone = solve(planner, Bowl(goals[one]), starts[one], budget=budget, rng=rng)
            assert alone.endings[0] == together.endings[row]


def test_records_of_knots_tell_the_best_of_all_that_was_judged() -> None:
    """A start that no curve can follow is the best so far from the first record on, as it is of every planner."""
    goals = torch.tensor([[[0.5], [-0.5], [0.25]], [[0.1], [0.1], [0.2]]])
    init, bowl = torch.stack((goals[0] + 0.01, torch.zeros(3, 1))), Bowl(goals)
    watch = Watch(bowl)
    plan = solve(ByKnots(CEM(box(1), FEW), Blocks(3)), watch, init)
    assert len(plan.iterations) == 3
    for record in plan.iterations:
        costs = bowl(watch.candidates[:, : record.evaluations], torch.arange(2)).cost
        torch.testing.assert_close(torch.tensor(record.best), costs.amin(dim=1))


def test_an_augmented_lagrangian_leaves_a_start_that_meets_the_target() -> None:
    start = torch.tensor([[[0.1, 0.1]]])
    planner = make_planner("lagrangian", box(2))
    plan = solve(planner, Bowl(start, limit=0.3), start.clone(), budget=Budget(target=1e-6))
    assert torch.equal(plan.actions, start) and (plan.stopped, plan.evaluations) == ("target", 1)


def test_a_cost_that_keeps_the_best_of_a_call_judges_the_start_of_knots_alone() -> None:
    """As `--draft` does: of many candidates all but a few are rejected, by a rough look that may take the start for a
    bad one. However many are suggested, the answer is no worse than it."""
    start = torch.tensor([[[0.6], [-0.6]]]).repeat(1, 3, 1)
    bowl = Bowl(start)

    def drafted(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        found, rough = bowl(actions, problems), (actions + 0.5).square().flatten(2).sum(dim=-1)
        rejected = rough.argsort(dim=1).argsort(dim=1) >= 32
        return replace(found, cost=torch.where(rejected, torch.inf, found.cost))

    suggested = torch.linspace(-0.6, -0.4, 40)[None, :, None, None].expand(1, 40, 6, 1)
    plan = ByKnots(CEM(box(1), FEW), Lines(3)).plan(
        drafted, start, budget=Budget(), generators=generators(1), suggestions=suggested
    )
    assert torch.equal(plan.actions, start) and float(plan.cost) == 0


@pytest.mark.parametrize("name", ["cem", "lagrangian", "knots", "refined", "suggested"])
@pytest.mark.parametrize("limited", [False, True])
def test_previous_actions_that_do_not_fit_are_refused(
    name: str, limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = torch.ones(2)
    bounds = Limits(-one, one, rate=0.1 * one) if limited else Bounds(-one, one)
    made: dict[str, Callable[[], Planner]] = {
        "cem": lambda: CEM(bounds, FEW),
        "lagrangian": lambda: make_planner("lagrangian", bounds),
        "knots": lambda: ByKnots(CEM(bounds, FEW), Lines(2)),
        "refined": lambda: Refined(CEM(bounds, FEW), LBFGS(bounds)),
        "suggested": lambda: Suggested(CEM(bounds, FEW), lambda start, _: start[:, None]),
    }
    watch, planner = Watch(Bowl(torch.zeros(2, 3, 2))), made[name]()
    nan, infinite = torch.full((2, 2), torch.nan), torch.full((1, 2), torch.inf)
    shapes = (2,), (1, 1), (2, 1), (2, 3), (0, 2), (3, 2), (2, 1, 2)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    for previous in (nan, infinite, *(torch.zeros(shape) for shape in shapes)):
        with pytest.raises(InputError, match=r"Previous actions|just executed"):
            planner.plan(watch, torch.zeros(2, 3, 2), budget=Budget(), generators=generators(2), previous=previous)
    assert not watch.asked
