"""The planners' contract as checks: a new planner is trusted once these pass for it.

Each check takes a `PlannerFactory` (a planner from its bounds) and raises `AssertionError` with a
sentence when the planner breaks the contract. Run all of `CHECKS`; `check_finds_the_global_optimum` and
`check_spends_the_whole_budget` are promises that not every planner makes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.planners.base import ActionPlan, Bounds, Budget, CostFunction, Evaluation, Planner

PlannerFactory = Callable[[Bounds], Planner]


def generators(problems: int, seed: int = 0) -> list[torch.Generator]:
    """One generator a problem, seeded `seed`, `seed` + 1, ..."""
    return [torch.Generator().manual_seed(seed + problem) for problem in range(problems)]


def box(size: int, half: float = 1.0) -> Bounds:
    """The bounds [-half, half] for each of `size` actions."""
    return Bounds(torch.full((size,), -half), torch.full((size,), half))


@dataclass(frozen=True)
class Bowl:
    """cost = sum over steps and actions of weight * (action - goal)^2, and no constraints unless `limit` is
    given: then the sum of the first step's actions must not exceed it.

    Added up term by term, so that the numbers do not depend on how many candidates are asked for.
    """

    goals: Float[Tensor, "b h a"]
    weight: Float[Tensor, "a"] | None = None
    limit: float | None = None

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        error = (actions - self.goals[problems][:, None].to(actions)).square()
        if self.weight is not None:
            error = error * self.weight.to(actions)
        cost = actions.new_zeros(actions.shape[:2])
        for term in error.flatten(2).unbind(2):
            cost = cost + term
        if self.limit is None:
            return Evaluation(cost, actions.new_zeros(*actions.shape[:2], 0))
        first = actions.new_zeros(actions.shape[:2])
        for term in actions[:, :, 0].unbind(2):
            first = first + term
        return Evaluation(cost, (first - self.limit).clamp(min=0)[:, :, None], ("first_step",))


@dataclass
class Watch:
    """Passes calls on to a cost function and remembers what it was asked."""

    cost_fn: CostFunction
    asked: list[Tensor] = field(default_factory=list)

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        assert not torch.is_inference_mode_enabled(), "the cost function was called in inference mode"
        self.asked.append(actions.detach().clone())
        return self.cost_fn(actions, problems)

    @property
    def candidates(self) -> Tensor:
        """Every candidate asked for, [b, n, h, a]."""
        return torch.cat(self.asked, dim=1)


def solve(
    planner: Planner,
    cost_fn: CostFunction,
    init: Float[Tensor, "b h a"],
    *,
    budget: Budget | None = None,
    rng: Sequence[torch.Generator] | None = None,
) -> ActionPlan:
    """Plan without limits and with seed 0, unless told otherwise."""
    rng = rng or generators(init.shape[0])
    return planner.plan(cost_fn, init, budget=budget or Budget(), generators=rng)


def distinct_goals(problems: int, horizon: int, size: int, seed: int = 3) -> Float[Tensor, "b h a"]:
    """Goals inside [-0.8, 0.8] that differ at every problem, step and action."""
    return 1.6 * torch.rand(problems, horizon, size, generator=torch.Generator().manual_seed(seed)) - 0.8


def _assert_near(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    error = float((found - wanted).abs().max())
    assert error <= tolerance, f"{what}: off by {error:.3g}, more than {tolerance:g}"


# ---- known problems ----------------------------------------------------------------------------------


def check_finds_every_step(make: PlannerFactory) -> None:
    """A bowl whose optimum differs at every step and action is found at each of them."""
    goals = distinct_goals(1, 4, 2)
    plan = solve(make(box(2)), Bowl(goals), torch.zeros(1, 4, 2))
    for step in range(4):
        _assert_near(plan.actions[0, step], goals[0, step], 0.05, f"the optimum at step {step}")


def check_finds_a_corner(make: PlannerFactory) -> None:
    """An optimum outside the box is answered with the corner next to it."""
    goals = torch.tensor([[[3.0, -3.0], [-3.0, 3.0]]])
    plan = solve(make(box(2)), Bowl(goals), torch.zeros(1, 2, 2))
    _assert_near(plan.actions, goals.clamp(-1, 1), 0.02, "the corner")


def check_ill_conditioned(make: PlannerFactory) -> None:
    """A bowl a thousand times steeper in one action than in the other: the flat one is found, too."""
    goals = torch.tensor([[[0.6, -0.5], [-0.4, 0.7]]])
    plan = solve(make(box(2)), Bowl(goals, torch.tensor([1000.0, 1.0])), torch.zeros(1, 2, 2))
    _assert_near(plan.actions, goals, 0.1, "the ill-conditioned optimum")


def check_uneven_units(make: PlannerFactory) -> None:
    """Actions of very different ranges (metres and degrees) are each solved in their own unit."""
    bounds = Bounds(torch.tensor([-0.01, 0.0]), torch.tensor([0.01, 90.0]))
    goals = torch.tensor([[[0.006, 20.0], [-0.004, 70.0]]])
    width = bounds.high - bounds.low
    plan = solve(make(bounds), Bowl(goals, width**-2), bounds.clip(torch.zeros(1, 2, 2)))
    _assert_near(plan.actions / width, goals / width, 0.05, "the optimum in units of the range")


def check_finds_the_global_optimum(make: PlannerFactory) -> None:
    """Rastrigin's function with the start in a wrong valley: the right one is found."""
    goal = 0.5

    def cost(actions: Tensor, problems: Tensor) -> Evaluation:
        x = 5 * (actions - goal)
        total = (x.square() + 3 * (1 - (2 * torch.pi * x).cos())).flatten(2).sum(dim=-1)
        return Evaluation(total, actions.new_zeros(*actions.shape[:2], 0))

    plan = solve(make(box(2)), cost, torch.full((1, 1, 2), -0.5))
    _assert_near(plan.actions, torch.full((1, 1, 2), goal), 0.05, "the global optimum")


def check_small_tasks(make: PlannerFactory) -> None:
    """One step and one action are a plan, too; a box without width has one answer."""
    plan = solve(make(box(1)), Bowl(torch.tensor([[[0.3]]])), torch.zeros(1, 1, 1))
    _assert_near(plan.actions, torch.tensor([[[0.3]]]), 0.02, "one step of one action")
    point = Bounds(torch.tensor([0.2, -1.0]), torch.tensor([0.2, 1.0]))
    plan = solve(make(point), Bowl(torch.tensor([[[0.9, 0.5]]])), torch.zeros(1, 1, 2))
    _assert_near(plan.actions, torch.tensor([[[0.2, 0.5]]]), 0.02, "the free action beside a fixed one")


# ---- determinism and randomness ------------------------------------------------------------------------


def check_same_seed_same_plan(make: PlannerFactory) -> None:
    """The same seed gives the same plan to the bit; the generators handed in are really used."""
    cost = Bowl(distinct_goals(2, 3, 2))
    first, again = (solve(make(box(2)), cost, torch.zeros(2, 3, 2)) for _ in range(2))
    assert torch.equal(first.actions, again.actions), "the same seed gave another plan"
    assert torch.equal(first.cost, again.cost), "the same seed gave another cost"
    other = solve(make(box(2)), cost, torch.zeros(2, 3, 2), rng=generators(2, seed=100))
    assert not torch.equal(first.actions, other.actions), "another seed gave the same plan, to the bit"


def check_global_generators_untouched(make: PlannerFactory) -> None:
    """torch's and numpy's own generators are not moved, and no global generator changes the plan.

    Python's own is not watched for moving: beartype draws from it when it checks a sequence's items.
    """
    cost, init = Bowl(distinct_goals(1, 2, 2)), torch.zeros(1, 2, 2)
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        first = solve(make(box(2)), cost, init)
        assert torch.equal(kept[0], torch.get_rng_state()), "torch's global generator was moved"
        assert repr(kept[1]) == repr(np.random.get_state()), "numpy's global generator was moved"
        torch.manual_seed(1234)
        np.random.seed(1234)
        random.seed(1234)
        again = solve(make(box(2)), cost, init)
        assert torch.equal(first.actions, again.actions), "a global seed changed the plan"
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])


def check_batch_equals_loop(make: PlannerFactory) -> None:
    """Each problem's plan is the same, to the bit, alone and in a batch, and goals never mix."""
    for horizon, size in ((4, 2), (1, 1), (3, 3)):
        goals = distinct_goals(3, horizon, size)
        init = 0.1 * distinct_goals(3, horizon, size, seed=9)
        together = solve(make(box(size)), Bowl(goals, limit=0.1), init)
        for problem in range(3):
            one = slice(problem, problem + 1)
            alone = solve(make(box(size)), Bowl(goals[one], limit=0.1), init[one], rng=generators(3)[one])
            what = f"problem {problem} of 3 (horizon {horizon}, {size} actions)"
            assert torch.equal(together.actions[one], alone.actions), f"{what} differs alone and in a batch"
            assert torch.equal(together.cost[one], alone.cost), f"{what} costs something else in a batch"


# ---- bounds, the start, and the answer's honesty -------------------------------------------------------


def check_bounds_kept(
    make: PlannerFactory, bounds: Bounds | None = None, init: Float[Tensor, "b h a"] | None = None
) -> None:
    """Cost functions see only actions in bounds, wherever the start and the optimum lie; so is the plan."""
    bounds = bounds or Bounds(torch.tensor([-0.1, 0.3]), torch.tensor([0.1, 0.35]))
    init = torch.full((1, 3, bounds.low.numel()), 7.0) if init is None else init
    goals = torch.full_like(init, 1e3)
    goals[:, ::2] *= -1
    watch = Watch(Bowl(goals))
    plan = solve(make(bounds), watch, init, budget=Budget(max_evaluations=200))
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
        _assert_near(plan.cost, seen.amin(dim=1), 1e-5, "the best of all candidates was not returned")
        _assert_near(rugged(plan.actions[:, None], problems).cost[:, 0], plan.cost, 1e-5, "the plan's cost")
    goals = distinct_goals(1, 3, 2)
    plan = solve(make(box(2)), Bowl(goals), goals)
    assert torch.equal(plan.actions, goals), "a start that is the optimum was left"


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


def check_leaves_no_gradient_behind(make: PlannerFactory) -> None:
    """Parameters of the model behind the cost keep no gradient; the plan has no graph; no_grad is no bar."""
    weight = torch.nn.Parameter(torch.ones(2))

    def cost(actions: Tensor, problems: Tensor) -> Evaluation:
        total = ((actions - 0.3).square() * weight).flatten(2).sum(dim=-1)
        return Evaluation(total, actions.new_zeros(*actions.shape[:2], 0))

    with torch.no_grad():
        plan = solve(make(box(2)), cost, torch.zeros(1, 2, 2))
    assert weight.grad is None, "planning piled gradients up in the model's parameters"
    assert not plan.actions.requires_grad and not plan.cost.requires_grad, "the plan drags a graph along"
    _assert_near(plan.actions, torch.full((1, 2, 2), 0.3), 0.05, "the optimum under no_grad")


# ---- infinities, NaN, constraints ----------------------------------------------------------------------


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
    """NaN in a cost or a violation raises, with the problem and the actions that led there."""
    for where in ("cost", "violation"):

        def cost(actions: Tensor, problems: Tensor, where: str = where) -> Evaluation:
            base = Bowl(torch.zeros(2, 2, 2), limit=0.0)(actions, problems)
            wrong = (problems[:, None] == 1) & (actions[:, :, 0, 0] != 0.5)
            if where == "cost":
                return Evaluation(base.cost.masked_fill(wrong, torch.nan), base.violation, base.names)
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


def check_constraints_first(make: PlannerFactory) -> None:
    """A plan that keeps the constraints wins over a cheaper one that does not, and is a good one."""
    goals = torch.full((1, 2, 2), 0.8)
    plan = solve(make(box(2)), Bowl(goals, limit=0.4), torch.full((1, 2, 2), 0.8))
    assert plan.names == ("first_step",), "the constraints' names were lost"
    assert float(plan.violation.max()) == 0.0, f"a broken constraint won: {plan.violation.tolist()}"
    assert float(plan.cost[0]) < 1.1, f"feasible, and needlessly dear: {float(plan.cost[0]):.3g} (least 0.72)"


def check_all_infeasible_progresses(make: PlannerFactory) -> None:
    """Where no plan keeps the constraints, the violation falls to the least there is."""
    plan = solve(make(box(2)), Bowl(torch.full((1, 2, 2), 0.9), limit=-5.0), torch.zeros(1, 2, 2))
    found = float(plan.violation.sum())
    assert found <= 3.2, f"the violation fell only to {found:.3g} (from 5; the least is 3)"


# ---- limits --------------------------------------------------------------------------------------------


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


CHECKS: tuple[Callable[[PlannerFactory], None], ...] = (
    check_finds_every_step,
    check_finds_a_corner,
    check_ill_conditioned,
    check_uneven_units,
    check_small_tasks,
    check_same_seed_same_plan,
    check_global_generators_untouched,
    check_batch_equals_loop,
    check_bounds_kept,
    check_never_worse_than_start,
    check_evidence,
    check_leaves_no_gradient_behind,
    check_rejected_never_wins,
    check_nan_raises,
    check_constraints_first,
    check_all_infeasible_progresses,
    check_budget_kept,
    check_deadline_kept,
    check_bad_input_refused,
)
