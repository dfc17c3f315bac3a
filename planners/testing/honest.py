"""The answer is inside the bounds, as good as anything seen, and honestly told; NaN and infinity never win."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import NotFiniteError
from vjepa_mpc.planners.base import Bounds, Budget, CostFunction, Evaluation
from vjepa_mpc.planners.testing.worlds import Bowl, PlannerFactory, Watch, assert_near, box, distinct_goals, solve


def check_bounds_kept(
    make: PlannerFactory, bounds: Bounds | None = None, init: Float[Tensor, "b h a"] | None = None
) -> None:
    """Cost functions see only actions in bounds, wherever the start and the optimum lie, and whatever the bounds'
    type; so is the plan."""
    if bounds is None:
        low, high = torch.tensor([[-0.1, 0.3], [0.1, 0.35]], dtype=torch.float64)
        # The nearest float32s to -0.1, 0.1, 0.3 and 0.35 lie partly outside of them.
        for told in (Bounds(low.float(), high.float()), Bounds(low, high), Bounds(-high, -low)):
            check_bounds_kept(make, told, init)
        return
    init = torch.full((1, 3, bounds.low.numel()), 7.0) if init is None else init
    goals = torch.full_like(init, 1e3)
    goals[:, ::2] *= -1
    watch = Watch(Bowl(goals))
    plan = solve(make(bounds), watch, init, budget=Budget(max_evaluations=60))
    for actions, who in ((watch.candidates, "the cost function saw"), (plan.actions, "the plan holds")):
        inside = (actions.double() >= bounds.low.double()) & (actions.double() <= bounds.high.double())
        assert bool(inside.all()), f"{who} actions out of bounds: {actions[~inside][:5].tolist()}"
    assert plan.actions.dtype == init.dtype, f"a start in {init.dtype} was answered in {plan.actions.dtype}"
    assert plan.actions.shape == init.shape, "the plan's shape is not the start's"


def check_never_worse_than_start(make: PlannerFactory) -> None:
    """The cost returned is that of the actions returned, and the lowest of all evaluated, the start too."""
    for seed in range(5):
        wave = 20 + 5 * seed

        def rugged(actions: Tensor, problems: Tensor, wave: int = wave) -> Evaluation:
            cost = (actions * wave).sin().flatten(2).sum(dim=-1)
            return Evaluation(cost, actions.new_zeros(*actions.shape[:2], 0))

        watch = Watch(rugged)
        init = distinct_goals(2, 2, 2, seed)
        plan = solve(make(box(2)), watch, init, budget=Budget(max_evaluations=40))
        problems = torch.arange(2)
        seen = rugged(watch.candidates, problems).cost
        assert bool((plan.cost <= rugged(init[:, None], problems).cost[:, 0]).all()), "worse than the start"
        assert_near(plan.cost, seen.amin(dim=1), 1e-5, "the best of all candidates was not returned")
        assert_near(rugged(plan.actions[:, None], problems).cost[:, 0], plan.cost, 1e-5, "the plan's cost")
    goals = distinct_goals(1, 3, 2)
    for what, cost_fn in (("the optimum", Bowl(goals)), ("as good as any", Bowl(goals, weight=torch.zeros(2)))):
        plan = solve(make(box(2)), cost_fn, goals)
        assert torch.equal(plan.actions, goals), f"a start that is {what} was left"


def check_evidence(make: PlannerFactory) -> None:
    """Statistics: one record an iteration, best never rising, evaluations adding up, no NaN."""
    watch = Watch(Bowl(distinct_goals(2, 2, 2), limit=0.0))
    plan = solve(make(box(2)), watch, torch.zeros(2, 2, 2))
    assert plan.iterations, "no iteration was recorded"
    assert plan.evaluations == watch.candidates.shape[1], "evaluations were not counted right"
    spent = [record.evaluations for record in plan.iterations]
    assert spent == sorted(set(spent)) and spent[-1] <= plan.evaluations, "evaluations do not add up"
    for record in plan.iterations:
        values = (*record.best, *record.mean_cost, *record.std)
        assert len(values) == 6 and not np.isnan(values).any(), "a record is not of two problems, or NaN"
    assert plan.names == ("first_step",) and plan.stopped == "iterations" and plan.seconds > 0
    free = solve(make(box(2)), Bowl(distinct_goals(2, 2, 2)), torch.zeros(2, 2, 2))
    best = np.array([record.best for record in free.iterations])
    assert bool((np.diff(best, axis=0) <= 0).all()), "the best so far of the records rises"


def check_leaves_no_gradient_behind(make: PlannerFactory) -> None:
    """Parameters of the model behind the cost keep no gradient; the plan has no graph; no_grad is no bar, and gradients
    are on afterwards as before. A model that answers otherwise where slopes are taken is believed where they are not.
    """
    weight = torch.nn.Parameter(torch.ones(2))

    def cost(actions: Tensor, problems: Tensor) -> Evaluation:
        total = ((actions - 0.3).square() * weight).flatten(2).sum(dim=-1)
        return Evaluation(total, actions.new_zeros(*actions.shape[:2], 0))

    with torch.no_grad():
        plan = solve(make(box(2)), cost, torch.zeros(1, 2, 2))
    assert weight.grad is None, "planning piled gradients up in the model's parameters"
    assert not plan.actions.requires_grad and not plan.cost.requires_grad, "the plan drags a graph along"
    assert float(plan.cost[0]) < 0.1, f"no way down under no_grad: {float(plan.cost[0]):.3g} of 0.36"

    def flattering(actions: Tensor, problems: Tensor) -> Evaluation:
        found = cost(actions, problems)
        return Evaluation(found.cost - 5 * torch.is_grad_enabled(), found.violation)

    plan = solve(make(box(2)), flattering, torch.zeros(1, 2, 2))
    assert torch.is_grad_enabled(), "planning turned gradients off for what comes after it"
    with torch.no_grad():
        true = flattering(plan.actions[:, None], torch.arange(1)).cost[:, 0]
    assert_near(plan.cost, true, 1e-6, "the cost told, beside that without slopes")


def check_makes_progress(make: PlannerFactory) -> None:
    """A bowl in four dimensions: at least nine tenths of the way down, however plain the planner."""
    goals = torch.full((1, 2, 2), 0.7)
    plan = solve(make(box(2)), Bowl(goals), torch.zeros(1, 2, 2))
    assert float(plan.cost[0]) < 0.196, f"from 1.96 only down to {float(plan.cost[0]):.3g}"


def check_suggestions_are_judged(make: PlannerFactory) -> None:
    """A suggested plan that is better than all else is the answer, of the problem it was suggested for; nothing
    suggested makes the answer worse."""
    goals = torch.tensor([[[0.61, -0.43], [0.27, 0.11]], [[-0.37, 0.52], [0.44, -0.23]]])

    def needle(actions: Tensor, problems: Tensor) -> Evaluation:
        far = (actions - goals[problems][:, None]).abs().flatten(2).amax(dim=-1)
        away = 0.05 * actions.flatten(2).sum(dim=-1)  # a descent leaves the needle: it must be remembered
        total = torch.where(far < 1e-6, away - 1.0, actions.square().flatten(2).sum(dim=-1) * 1e-3)
        return Evaluation(total, actions.new_zeros(*actions.shape[:2], 0))

    planner, rng = make(box(2)), [torch.Generator().manual_seed(seed) for seed in range(2)]
    for count, place in ((1, 0), (3, 0), (3, 2), (500, 0)):  # of more than there is room for, the first
        given = torch.full((2, count, 2, 2), 7.0)
        given[:, place] = goals
        watch = Watch(needle)
        plan = planner.plan(
            watch, torch.zeros(2, 2, 2), budget=Budget(max_evaluations=40), generators=rng, suggestions=given
        )
        if place < max(asked.shape[1] for asked in watch.asked) - 1:
            assert bool((plan.cost < -0.5).all()), f"number {place + 1} of {count} suggested plans was not the answer"
            assert_near(plan.actions, goals, 1e-6, "the plan suggested")
        assert plan.evaluations <= 40, "suggestions were judged beyond the budget"
        assert float(watch.candidates.abs().max()) <= 1, "a suggestion out of bounds was judged as it is"

    def forbidden_is_cheap(actions: Tensor, problems: Tensor) -> Evaluation:
        total = needle(actions, problems).cost
        broken = 0.01 * (actions - goals[problems][:, None]).abs().flatten(2).sum(dim=-1)
        return Evaluation(total - 1e3 * broken, (broken - 1e-6).clamp(min=0)[:, :, None], ("near",))

    plan = planner.plan(
        forbidden_is_cheap, torch.zeros(2, 2, 2), budget=Budget(), generators=rng, suggestions=goals[:, None]
    )
    assert float(plan.violation.max()) == 0, "the one plan that keeps a constraint was suggested, and not the answer"


def check_rejected_never_wins(make: PlannerFactory) -> None:
    """A candidate that costs +inf is never the answer, nor are all of them together."""
    goals = distinct_goals(1, 2, 2)

    def finite_where(keep: Callable[[Tensor], Tensor]) -> CostFunction:
        def cost(actions: Tensor, problems: Tensor) -> Evaluation:
            base = Bowl(goals)(actions, problems)
            return Evaluation(torch.where(keep(actions), base.cost, torch.inf), base.violation)

        return cost

    start = torch.full((1, 2, 2), 0.25)
    plan = solve(make(box(2)), finite_where(lambda x: (x == 0.25).flatten(2).all(dim=-1)), start)
    assert torch.equal(plan.actions, start), "+inf won against the start, the one finite candidate"
    assert bool(torch.isfinite(plan.cost).all()), "the start's cost was lost"
    plan = solve(make(box(2)), finite_where(lambda x: x.new_zeros(x.shape[:2]).bool()), start)
    assert torch.equal(plan.actions, start) and bool((plan.cost == torch.inf).all()), "an all-inf plan moved"
    half = finite_where(lambda x: x[:, :, 0, 0] > -0.5)
    plan = solve(make(box(2)), half, torch.full((1, 2, 2), -0.9))
    assert bool(torch.isfinite(plan.cost).all()), "no way out of a rejected start was found"


def check_nan_raises(make: PlannerFactory) -> None:
    """NaN in a cost or a violation raises, with the problem and the actions that led there; so does a cost of -inf."""
    for where in ("cost", "violation", "-inf"):

        def cost(actions: Tensor, problems: Tensor, where: str = where) -> Evaluation:
            base = Bowl(torch.zeros(2, 2, 2), limit=0.0)(actions, problems)
            wrong = (problems[:, None] == 1) & (actions[:, :, 0, 0] != 0.5)
            if where != "violation":
                bad = torch.nan if where == "cost" else -torch.inf
                return Evaluation(base.cost.masked_fill(wrong, bad), base.violation, base.names)
            nan = base.violation.masked_fill(wrong[:, :, None], torch.nan)
            return Evaluation(base.cost, nan, base.names)

        try:
            plan = solve(make(box(2)), cost, torch.full((2, 2, 2), 0.5))
        except NotFiniteError as error:
            evidence = error.evidence
            assert getattr(evidence, "problem", None) == 1, "the evidence does not name the problem"
            actions = getattr(evidence, "actions", None)
            assert actions is not None and actions.shape[1:] == (2, 2), "the evidence holds no actions"
            assert bool((actions[:, 0, 0] != 0.5).all()), "the evidence holds actions that were fine"
        else:
            raise AssertionError(f"NaN in the {where} went unheard; the answer cost {plan.cost.tolist()}")
    _check_nan_after_another_stopped(make)
    _check_nan_of_the_start(make)


def _check_nan_after_another_stopped(make: PlannerFactory) -> None:
    """The problem is named by its own number, though those before it are asked about no more."""
    start = torch.full((2, 2, 2), 0.5)

    def cost(actions: Tensor, problems: Tensor) -> Evaluation:
        base = Bowl(start)(actions, problems)
        wrong = (problems[:, None] == 1) & (actions[:, :, 0, 0] != 0.5)
        return Evaluation(torch.where(wrong, torch.nan, base.cost + problems[:, None]), base.violation)

    try:
        solve(make(box(2)), cost, start, budget=Budget(target=0.5))
    except NotFiniteError as error:
        assert getattr(error.evidence, "problem", None) == 1, "the evidence names another problem than the one at fault"
    else:
        raise AssertionError("NaN in the one problem still being solved went unheard")


def _check_nan_of_the_start(make: PlannerFactory) -> None:
    def cost(actions: Tensor, problems: Tensor) -> Evaluation:
        base = Bowl(torch.zeros(1, 2, 2))(actions, problems)
        return Evaluation(base.cost.masked_fill((actions == 0.5).flatten(2).all(dim=-1), torch.nan), base.violation)

    try:
        solve(make(box(2)), cost, torch.full((1, 2, 2), 0.5))
    except NotFiniteError:
        return
    raise AssertionError("NaN in the start's cost went unheard")


def check_constraints_first(make: PlannerFactory) -> None:
    """A plan that keeps the constraints wins over a cheaper one that does not, and is a good one."""
    goals = torch.full((1, 2, 2), 0.8)
    plan = solve(make(box(2)), Bowl(goals, limit=0.4), torch.full((1, 2, 2), 0.8))
    assert plan.names == ("first_step",), "the constraints' names were lost"
    assert float(plan.violation.max()) == 0.0, f"a broken constraint won: {plan.violation.tolist()}"
    assert float(plan.cost[0]) < 1.1, f"feasible, and needlessly dear: {float(plan.cost[0]):.3g} (least 0.72)"


def check_several_constraints(make: PlannerFactory) -> None:
    """What is told of each constraint is of the plan returned, by its name. All are kept where that can be; where two
    contradict each other, their sum counts."""
    goals = torch.full((1, 2, 2), 0.8)

    def cost(actions: Tensor, problems: Tensor, low: float = -0.2) -> Evaluation:
        x, y = actions[:, :, 0, 0], actions[:, :, 1, 1]
        broken = torch.stack((3 * (x - 0.4).clamp(min=0), (y + 0.1).clamp(min=0), (low - x).clamp(min=0)), dim=-1)
        return Evaluation(Bowl(goals)(actions, problems).cost, broken, ("x", "y", "low"))

    def against_each_other(actions: Tensor, problems: Tensor) -> Evaluation:
        return cost(actions, problems, low=0.9)

    for told, least in ((cost, 0.0), (against_each_other, 0.5)):
        plan = solve(make(box(2)), told, torch.zeros(1, 2, 2))
        again = told(plan.actions[:, None], torch.arange(1))
        assert_near(plan.violation, again.violation[:, 0], 1e-6, "the violations told")
        assert_near(plan.cost, again.cost[:, 0], 1e-5, "the cost told")
        assert plan.names == ("x", "y", "low"), f"the constraints are named {plan.names}"
        names = tuple(name for name, value in zip(plan.names, again.violation[0, 0].tolist(), strict=True) if value > 0)
        assert plan.held_by == (names,), f"the plan is held by {names}, not by {plan.held_by}"
        total = float(plan.violation.sum())
        assert total == 0 if least == 0 else total < least + 0.05, f"broken by {total:.3g}, {least} is possible"


def check_all_infeasible_progresses(make: PlannerFactory) -> None:
    """Where no plan keeps the constraints, the violation falls to the least there is."""
    plan = solve(make(box(2)), Bowl(torch.full((1, 2, 2), 0.9), limit=-5.0), torch.zeros(1, 2, 2))
    found = float(plan.violation.sum())
    assert found <= 3.2, f"the violation fell only to {found:.3g} (from 5; the least is 3)"
