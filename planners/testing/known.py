"""Known problems: promises of planners that search well, which random shooting, say, does not make."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from vjepa_mpc.core.errors import NotFiniteError
from vjepa_mpc.planners.base import Bounds, Evaluation
from vjepa_mpc.planners.testing.worlds import Bowl, PlannerFactory, Watch, assert_near, box, distinct_goals, solve


def check_finds_every_step(make: PlannerFactory) -> None:
    """A bowl whose optimum differs at every step and action is found at each of them."""
    goals = distinct_goals(1, 4, 2)
    plan = solve(make(box(2)), Bowl(goals), torch.zeros(1, 4, 2))
    for step in range(4):
        assert_near(plan.actions[0, step], goals[0, step], 0.05, f"the optimum at step {step}")


def check_finds_a_corner(make: PlannerFactory) -> None:
    """An optimum outside the box is answered with the corner next to it."""
    goals = torch.tensor([[[3.0, -3.0], [-3.0, 3.0]]])
    plan = solve(make(box(2)), Bowl(goals), torch.zeros(1, 2, 2))
    assert_near(plan.actions, goals.clamp(-1, 1), 0.02, "the corner")


def check_ill_conditioned(make: PlannerFactory) -> None:
    """A bowl a thousand times steeper in one action, or at one step, than in the other: the flat one is found, too."""
    goals = torch.tensor([[[0.6, -0.5], [-0.4, 0.7]]])
    for weight in ([1000.0, 1.0], [[1000.0, 1000.0], [1.0, 1.0]]):
        plan = solve(make(box(2)), Bowl(goals, torch.tensor(weight)), torch.zeros(1, 2, 2))
        assert_near(plan.actions, goals, 0.1, f"the optimum where the slopes weigh {weight}")


def check_uneven_units(make: PlannerFactory) -> None:
    """Actions of very different ranges (metres and degrees) are each solved in their own unit."""
    bounds = Bounds(torch.tensor([-0.01, 0.0]), torch.tensor([0.01, 90.0]))
    goals = torch.tensor([[[0.006, 20.0], [-0.004, 70.0]]])
    width = bounds.high - bounds.low
    plan = solve(make(bounds), Bowl(goals, width**-2), bounds.clip(torch.zeros(1, 2, 2)))
    assert_near(plan.actions / width, goals / width, 0.05, "the optimum in units of the range")


def check_any_unit_of_cost(make: PlannerFactory) -> None:
    """Costs far from zero, in large or in small units, lead to the same place; in units whose squares float32 does not
    hold, too."""
    goals = distinct_goals(1, 2, 2)
    for unit, zero, like in (
        (1e3, 1e9, torch.float64), (1e-3, -10.0, torch.float64),
        (1e20, 0.0, torch.float32), (1e-20, 0.0, torch.float32),
    ):  # fmt: skip

        def cost(actions: Tensor, problems: Tensor, unit: float = unit, zero: float = zero) -> Evaluation:
            found = Bowl(goals)(actions, problems)
            return Evaluation(unit * found.cost + zero, found.violation)

        plan = solve(make(box(2)), cost, torch.zeros(1, 2, 2, dtype=like))
        assert_near(plan.actions, goals, 0.05, f"the optimum where a cost of 1 is told as {unit:g} above {zero:g}")


def check_finds_the_global_optimum(make: PlannerFactory) -> None:
    """Rastrigin's function with the start in a wrong valley: the right one is found."""
    goal = 0.5

    def cost(actions: Tensor, problems: Tensor) -> Evaluation:
        x = 5 * (actions - goal)
        total = (x.square() + 3 * (1 - (2 * torch.pi * x).cos())).flatten(2).sum(dim=-1)
        return Evaluation(total, actions.new_zeros(*actions.shape[:2], 0))

    plan = solve(make(box(2)), cost, torch.full((1, 1, 2), -0.5))
    assert_near(plan.actions, torch.full((1, 1, 2), goal), 0.05, "the global optimum")


def check_constraints_lead_the_search(make: PlannerFactory) -> None:
    """Where the cheapest plans are all forbidden the search goes on among the allowed ones: what is learned obeys the
    constraints, too, not only the choice of the answer."""
    goals = torch.full((1, 3, 4), 0.8)
    plan = solve(make(box(4)), Bowl(goals, limit=-0.8), torch.full((1, 3, 4), -0.25))
    assert float(plan.violation.max()) == 0.0, f"a broken constraint won: {plan.violation.tolist()}"
    assert float(plan.cost[0]) < 5.0, f"the allowed were hardly searched: {float(plan.cost[0]):.3g} (least 4)"


def check_descends_from_the_start(make: PlannerFactory) -> None:
    """Of planners that descend: slopes are first taken at the start, among other places, and one that is not finite
    raises."""
    start, first = distinct_goals(1, 2, 2), list[Tensor]()

    def cost(actions: Tensor, problems: Tensor, broken: bool = False) -> Evaluation:
        if torch.is_grad_enabled() and not first:
            first.append(actions.detach().clone())
        total = (actions - 0.9).square().flatten(2).sum(dim=-1)
        if broken:  # the cost is a number, its slope 0 / 0
            total = total + (0 * actions).sqrt().flatten(2).sum(dim=-1)
        return Evaluation(total, actions.new_zeros(*total.shape, 0))

    solve(make(box(2)), cost, start)
    nearest = (first[0] - start[:, None]).abs().flatten(2).amax(dim=-1).min()
    assert float(nearest) < 1e-6, f"the nearest descent begins {float(nearest):.3g} from the start"
    try:
        solve(make(box(2)), partial(cost, broken=True), start)
    except NotFiniteError as error:
        gradient = getattr(error.evidence, "gradient", None)
        assert gradient is not None and not bool(torch.isfinite(gradient).any()), "the evidence holds no slopes"
        return
    raise AssertionError("a slope that is NaN went unheard")


def check_learns_curvature(make: PlannerFactory) -> None:
    """Of quasi-Newton planners: along Rosenbrock's curved valley they end at the bottom to rounding. Slopes alone,
    or pairs of steps and slope changes that are not those of the last steps in their order, are far from it by then."""

    def rosenbrock(actions: Tensor, problems: Tensor) -> Evaluation:
        x = 1.5 * actions.flatten(2)
        here, after = x[..., :-1], x[..., 1:]
        total = (100 * (after - here.square()).square() + (1 - here).square()).sum(dim=-1)
        return Evaluation(total, actions.new_zeros(*total.shape, 0))

    plan = solve(make(box(2)), rosenbrock, torch.full((1, 2, 2), 0.6).double())
    assert float(plan.cost[0]) < 1e-12, f"the valley was followed down to {float(plan.cost[0]):.3g} only"


def check_never_steps_up(make: PlannerFactory) -> None:
    """Of planners with a line search: between straight walls that meet in a narrow round, where a step to the minimum
    of the parabola overshoots, they end at the bottom, 8. Who takes every trial is thrown from wall to wall."""
    goals = distinct_goals(1, 4, 2)

    def walls(actions: Tensor, problems: Tensor) -> Evaluation:
        away = 50 * (actions - goals[problems][:, None].to(actions)).flatten(2)
        total = (1 + away.square()).sqrt().sum(dim=-1)
        return Evaluation(total, actions.new_zeros(*total.shape, 0))

    for start in (-0.3, 0.6):
        plan = solve(make(box(2)), walls, torch.full((1, 4, 2), start).double())
        assert float(plan.cost[0]) < 8.05, f"from {start} the bottom was missed: {float(plan.cost[0]):.3g} (least 8)"


def check_learns_prices(make: PlannerFactory) -> None:
    """Of planners that learn what constraints are worth: one is told in units fifty times as small as another, and is
    kept all the same, at little cost."""
    goals = torch.full((1, 2, 2), 0.8)

    def cost(actions: Tensor, problems: Tensor) -> Evaluation:
        first, last = (actions[:, :, step].sum(dim=-1) for step in (0, 1))
        broken = torch.stack((0.02 * (first - 0.4).clamp(min=0), (last - 1).clamp(min=0)), dim=-1)
        return Evaluation(Bowl(goals)(actions, problems).cost, broken, ("small", "usual"))

    for start in (0.0, 0.8):
        plan = solve(make(box(2)), cost, torch.full((1, 2, 2), start))
        assert float(plan.violation.sum()) == 0, f"a constraint is broken: {plan.violation.tolist()}"
        assert float(plan.cost[0]) < 1.1, f"kept at a cost of {float(plan.cost[0]):.3g} (least 0.9)"


def check_draws_around_the_best(make: PlannerFactory) -> None:
    """Of planners that say so: each population lies around the best candidate judged before it, however good those
    were that came in between."""

    def rough(actions: Tensor, problems: Tensor) -> Evaluation:  # the best of many is rarely the latest
        return Evaluation((1e3 * actions).sin().flatten(2).mean(dim=-1), actions.new_zeros(*actions.shape[:2], 0))

    watch = Watch(rough)
    solve(make(box(2)), watch, torch.zeros(1, 2, 2))
    populations = [asked for asked in watch.asked if asked.shape[1] > 1]
    assert len(populations) > 2, "too few populations to tell"
    for number, population in enumerate(populations[1:], start=1):
        before = torch.cat(populations[:number], dim=1)
        best = before[0, int(rough(before, torch.arange(1)).cost[0].argmin())]
        assert_near(population[0].mean(dim=0), best, 0.1, f"the centre of population {number + 1}")


def check_small_tasks(make: PlannerFactory) -> None:
    """One step and one action are a plan, too; a box without width has one answer."""
    plan = solve(make(box(1)), Bowl(torch.tensor([[[0.3]]])), torch.zeros(1, 1, 1))
    assert_near(plan.actions, torch.tensor([[[0.3]]]), 0.02, "one step of one action")
    point = Bounds(torch.tensor([0.2, -1.0]), torch.tensor([0.2, 1.0]))
    plan = solve(make(point), Bowl(torch.tensor([[[0.9, 0.5]]])), torch.zeros(1, 1, 2))
    assert_near(plan.actions, torch.tensor([[[0.2, 0.5]]]), 0.02, "the free action beside a fixed one")
