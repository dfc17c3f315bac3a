"""Planners measured against each other: cost reached by evaluations, and their own time, on frozen problems.

Test functions stand for planning problems of 20 and 50 numbers whose answer is known; start/goal pairs of a
manifest, through a world model, for real ones. Every planner is given the same start, seeds and evaluations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import unknown_name
from vjepa_mpc.planners.base import ActionPlan, Bounds, Budget, CostFunction, Evaluation, Planner

if TYPE_CHECKING:
    from vjepa_mpc.robots.base import SimulatedRobot
    from vjepa_mpc.robots.tasks import Pair
    from vjepa_mpc.world_model import WorldModel

PUBLISHED = "cem-800x10"
"""V-JEPA 2-AC's own setting: 800 samples, 10 elites, 10 iterations, momentum 0.15."""
PYCMA = "pycma"
"""The package `cma` with its own defaults, called directly."""


@dataclass(frozen=True)
class Problems:
    """A set of planning problems that are solved in one batch. `lowest`: the cost of the answer, where known."""

    name: str
    cost_fn: CostFunction
    init: Float[Tensor, "b h a"]
    bounds: Bounds
    lowest: float | None = None


@dataclass(frozen=True)
class Landscape:
    """cost = shape(R (x - answer)) over all numbers x of a plan, R a rotation and the answer its own in each problem.

    Shapes: "ellipsoid", curvatures from 1 to 1000; "rosenbrock", one long bent valley; "rastrigin", a bowl
    with a valley at every fifth of a unit. Boxes are [-1, 1], answers within [-0.8, 0.8], starts at zero.
    """

    shape: str
    answers: Float[Tensor, "problems d"]
    rotations: Float[Tensor, "problems d d"]

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        away = actions.flatten(2) - self.answers[problems][:, None]
        z = away @ self.rotations[problems].transpose(1, 2)
        cost = SHAPES[self.shape](z)
        return Evaluation(cost, cost.new_zeros(*cost.shape, 0))


def _ellipsoid(z: Tensor) -> Tensor:
    size = z.shape[-1]
    return (1000 ** (torch.arange(size, device=z.device) / (size - 1)) * z.square()).sum(dim=-1)


def _rosenbrock(z: Tensor) -> Tensor:
    x = 1 + 2 * z
    return (100 * (x[..., 1:] - x[..., :-1].square()).square() + (1 - x[..., :-1]).square()).sum(dim=-1)


def _rastrigin(z: Tensor) -> Tensor:
    return (z.square() + 0.1 * (1 - (10 * math.pi * z).cos())).sum(dim=-1)


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "ellipsoid": _ellipsoid, "rosenbrock": _rosenbrock, "rastrigin": _rastrigin,
}  # fmt: skip
SIZES = {20: (5, 4), 50: (10, 5)}
"""Dimensions: horizon and actions."""
FUNCTIONS = tuple(f"{shape}-{size}" for size in SIZES for shape in SHAPES)


def drawn(name: str, problems: int, seed: int = 0) -> Problems:
    """`problems` drawn versions of a function of `FUNCTIONS` ("rastrigin-20")."""
    if name not in FUNCTIONS:
        raise unknown_name("test function", name, FUNCTIONS)
    shape, size = name.split("-")
    d = int(size)
    horizon, actions = SIZES[d]
    generator = torch.Generator().manual_seed(seed)
    answers = 1.6 * torch.rand(problems, d, generator=generator) - 0.8
    rotations = torch.linalg.qr(torch.randn(problems, d, d, generator=generator))[0]
    bounds = Bounds(-torch.ones(actions), torch.ones(actions))
    function = Landscape(shape, answers, rotations)
    return Problems(name, function, torch.zeros(problems, horizon, actions), bounds, 0.0)


@dataclass
class Timed:
    """Passes calls on and keeps the processor time they took. Wall time would count other programs' work."""

    cost_fn: CostFunction
    seconds: float = 0.0
    calls: int = 0

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        began = time.process_time()
        try:
            return self.cost_fn(actions, problems)
        finally:
            self.seconds += time.process_time() - began
            self.calls += 1


@dataclass(frozen=True)
class Course:
    """How one planner did on a set of problems: after so many `evaluations` a problem the best costs, [points][b];
    processor seconds in all and of these outside the cost function, and iterations."""

    planner: str
    problems: str
    evaluations: tuple[int, ...]
    best: tuple[tuple[float, ...], ...] = field(repr=False)
    seconds: float = 0.0
    own_seconds: float = 0.0
    iterations: int = 0

    def median_at(self, evaluations: int) -> float:
        """The median over problems of the best cost after at most so many evaluations (+inf before the first)."""
        known = [row for spent, row in zip(self.evaluations, self.best, strict=True) if spent <= evaluations]
        return float(np.median(known[-1])) if known else math.inf

    def evaluations_to(self, cost: float) -> int | None:
        """Evaluations until the median is no more than `cost`; None if it never is."""
        for spent, row in zip(self.evaluations, self.best, strict=True):
            if float(np.median(row)) <= cost:
                return spent
        return None


def measure(name: str, planner: Planner, problems: Problems, budget: int, seed: int = 0) -> Course:
    """Solve all problems in one batch with `budget` evaluations each."""
    timed = Timed(problems.cost_fn)
    generators = [_generator(seed + problem) for problem in range(len(problems.init))]
    began = time.process_time()
    plan = planner.plan(timed, problems.init, budget=Budget(max_evaluations=budget), generators=generators)
    total = time.process_time() - began
    return _course(name, problems.name, plan, total, timed)


def _course(name: str, problems: str, plan: ActionPlan, total: float, timed: Timed) -> Course:
    spent = [record.evaluations for record in plan.iterations] + [plan.evaluations]
    best = [record.best for record in plan.iterations] + [tuple(plan.cost.tolist())]
    return Course(
        name, problems, tuple(spent), tuple(best), total, total - timed.seconds, max(1, len(plan.iterations))
    )


def measure_pycma(problems: Problems, budget: int, seed: int = 0, std: float = 0.3) -> Course:
    """The package alone, problem after problem: its default population, its bounds, positions in [-1, 1]."""
    import cma

    timed, curves = Timed(problems.cost_fn), []
    centre = (problems.bounds.high / 2 + problems.bounds.low / 2).to(problems.init)
    half = (problems.bounds.high / 2 - problems.bounds.low / 2).to(problems.init)
    began, iterations = time.process_time(), 0
    for index, start in enumerate(problems.init):
        rng = np.random.default_rng(seed + index)
        draw: Any = lambda *shape, rng=rng: rng.standard_normal(shape)  # noqa: E731
        options = {"bounds": [-1, 1], "seed": math.nan, "randn": draw, "verbose": -9}
        search = cma.CMAEvolutionStrategy(((start - centre) / half).flatten().double().cpu().numpy(), std, options)
        problem = torch.tensor([index], device=start.device)
        with torch.no_grad():
            best = float(timed(start[None, None], problem).cost)
            spent, curve = 1, [(1, best)]
            while spent + search.popsize <= budget:
                asked = search.ask()
                actions = torch.from_numpy(np.stack(asked)).to(start).unflatten(1, start.shape) * half + centre
                cost = timed(actions[None], problem).cost[0]
                search.tell(asked, cost.double().tolist())
                spent, best = spent + len(asked), min(best, float(cost.min()))
                curve.append((spent, best))
                iterations += 1
        curves.append(curve)
    total = time.process_time() - began
    spent_at = tuple(point[0] for point in curves[0])
    best_at = tuple(tuple(curve[i][1] for curve in curves) for i in range(len(spent_at)))
    return Course(PYCMA, problems.name, spent_at, best_at, total, total - timed.seconds, iterations)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def contenders(budget: int) -> dict[str, Callable[[Bounds], Planner]]:
    """Every planner with the settings of its class, and as many iterations as the budget allows."""
    from vjepa_mpc import planners as p

    def rounds(samples: int) -> int:
        return max(1, math.ceil(budget / samples))

    published = p.CEMSettings(
        samples=800, elites=10, iterations=10, momentum_mean=0.15, momentum_std=0.15, std_fraction=1.0, std_floor=0.0,
        mean_candidate=False, keep_fraction=0.0,
    )  # fmt: skip
    return {
        PUBLISHED: lambda bounds: p.CEM(bounds, published),
        "cem": lambda bounds: p.CEM(bounds, p.CEMSettings(samples=64, elites=8, iterations=rounds(64))),
        "icem": lambda bounds: p.ICEM(bounds, p.ICEMSettings(samples=64, elites=8, iterations=rounds(16))),
        "mppi": lambda bounds: p.MPPI(bounds, p.MPPISettings(samples=64, iterations=rounds(64))),
        "cma": lambda bounds: p.CMAES(bounds, p.CMASettings(samples=16, iterations=rounds(16))),
        "cma-separable": lambda bounds: p.CMAES(
            bounds, p.CMASettings(samples=16, iterations=rounds(16), separable=True)
        ),
        "discrete": lambda bounds: p.DiscreteCEM(
            bounds, p.DiscreteSettings(samples=64, elites=8, iterations=rounds(64))
        ),
        "shooting": lambda bounds: p.RandomShooting(bounds, p.ShootingSettings(samples=64, iterations=rounds(64))),
        "predictive": lambda bounds: p.PredictiveSampling(
            bounds, p.PredictiveSettings(samples=64, iterations=rounds(64))
        ),
        "gradient": lambda bounds: p.GradientPlanner(bounds, p.GradientSettings(starts=4, steps=rounds(4))),
        "lbfgs": lambda bounds: p.LBFGS(bounds, p.LBFGSSettings(starts=4, steps=rounds(4))),
        "cem+lbfgs": lambda bounds: p.Refined(
            p.CEM(bounds, p.CEMSettings(samples=64, elites=8, iterations=rounds(64))),
            p.LBFGS(bounds, p.LBFGSSettings(starts=2, steps=rounds(2))),
            share=0.5,
        ),
    }  # fmt: skip


def own_milliseconds(make: Callable[[Bounds], Planner], iterations: int = 20) -> float:
    """Processor time of one iteration outside the cost function, ms, for 5 steps of 7 actions."""

    def flat(actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        return Evaluation(actions.sum(dim=(2, 3)), actions.new_zeros(*actions.shape[:2], 0))

    planner, init, times = make(Bounds(-torch.ones(7), torch.ones(7))), torch.zeros(1, 5, 7), []
    for repeat in range(3):
        timed = Timed(flat)
        began = time.process_time()
        plan = planner.plan(timed, init, budget=Budget(), generators=[_generator(repeat)])
        times.append((time.process_time() - began - timed.seconds) / max(1, len(plan.iterations)))
    return 1e3 * min(times)


def overheads() -> dict[str, float]:
    """`own_milliseconds` of every planner at 300 samples (gradients: 4 starts)."""
    from vjepa_mpc import planners as p

    makers: dict[str, Callable[[Bounds], Planner]] = {
        "cem": lambda bounds: p.CEM(bounds, p.CEMSettings(samples=300, elites=30, iterations=20)),
        "icem": lambda bounds: p.ICEM(bounds, p.ICEMSettings(samples=300, elites=30, iterations=20, decay=1.0)),
        "mppi": lambda bounds: p.MPPI(bounds, p.MPPISettings(samples=300, iterations=20)),
        "cma": lambda bounds: p.CMAES(bounds, p.CMASettings(samples=300, iterations=20)),
        "discrete": lambda bounds: p.DiscreteCEM(bounds, p.DiscreteSettings(samples=300, elites=30, iterations=20)),
        "shooting": lambda bounds: p.RandomShooting(bounds, p.ShootingSettings(samples=300, iterations=20)),
        "predictive": lambda bounds: p.PredictiveSampling(bounds, p.PredictiveSettings(samples=300, iterations=20)),
        "gradient": lambda bounds: p.GradientPlanner(bounds, p.GradientSettings(steps=20)),
        "lbfgs": lambda bounds: p.LBFGS(bounds, p.LBFGSSettings(steps=20)),
    }
    return {name: own_milliseconds(make) for name, make in makers.items()}


def _known(cost: float) -> float | None:
    return cost if math.isfinite(cost) else None  # JSON has no infinity


def summary(courses: Sequence[Course], budget: int) -> list[dict[str, Any]]:
    """One row a planner and set of problems: medians at a quarter, half and all of the budget, and the evaluations
    that reach what the published setting ends at, if it was measured."""
    goals = {course.problems: course.median_at(10**9) for course in courses if course.planner == PUBLISHED}
    rows = []
    for course in courses:
        goal = goals.get(course.problems)
        rows.append(
            {
                "problems": course.problems,
                "planner": course.planner,
                "median_quarter": _known(course.median_at(budget // 4)),
                "median_half": _known(course.median_at(budget // 2)),
                "median": _known(course.median_at(10**9 if course.planner == PUBLISHED else budget)),
                "evaluations": course.evaluations[-1],
                "evaluations_to_published": None if goal is None else course.evaluations_to(goal),
                "seconds": course.seconds,
                "own_ms_an_iteration": 1e3 * course.own_seconds / course.iterations,
            }
        )
    return rows


def pairs_through_model(
    model: WorldModel, robot: SimulatedRobot, pairs: Sequence[Pair], horizon: int
) -> Problems:
    """The first plan of each pair, as the controller would make it: from a view that has been held still to the
    latents of the goal's picture, with joint limits as a constraint. Cost is the latent distance."""
    from vjepa_mpc.costs import GoalDistance, PlanningCost, StateBox
    from vjepa_mpc.rollout import Context

    config, views = model.config, []
    for pair in pairs:
        robot.set_appearance(pair.appearance)
        views.append([robot.place(np.asarray(state)) for state in (pair.start, pair.goal)])
    starts, goals = (model.encode(np.stack([view[i].images[config.camera] for view in views])) for i in (0, 1))
    states = torch.tensor(np.stack([view[0].proprioception for view in views]), dtype=torch.float32)
    frames, count, size = config.history, len(pairs), len(config.robot.action_names)
    context = Context(
        starts[:, None].expand(-1, frames, -1, -1),
        states[:, None].expand(-1, frames, -1),
        torch.zeros(count, frames - 1, size),
    )
    cost = PlanningCost(model, context, [GoalDistance(goals)], [StateBox(model.states)])
    name = f"{config.robot.name}, horizon {horizon}: {horizon * size} numbers"
    return Problems(name, cost, torch.zeros(count, horizon, size), model.action_bounds)
