"""Planners measured against each other: cost reached by evaluations, and their own time, on frozen problems.

Every planner is given the same start, seeds and evaluations.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.planner_courses import PUBLISHED, Course
from vjepa_mpc.planner_problems import Problems
from vjepa_mpc.planners.base import ActionPlan, Bounds, Budget, CostFunction, Evaluation, Planner

PYCMA = "pycma"
"""The package `cma` with its own defaults, called directly."""
PENALTY = 10.0
"""What a unit of violation costs optimisers that know no constraints; as the gradient planner's default."""


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


def measure(name: str, planner: Planner, problems: Problems, budget: int, seed: int = 0) -> Course:
    """Solve all problems in one batch with `budget` evaluations each."""
    timed = Timed(problems.cost_fn)
    generators = [_generator(seed + problem) for problem in range(len(problems.init))]
    began = time.process_time()
    plan = planner.plan(timed, problems.init, budget=Budget(max_evaluations=budget), generators=generators)
    total = time.process_time() - began
    return _course(name, problems, plan, total, timed)


def _course(name: str, problems: Problems, plan: ActionPlan, total: float, timed: Timed) -> Course:
    last = torch.where(plan.cost < torch.inf, problems.judged(plan.actions), torch.inf)
    spent = [record.evaluations for record in plan.iterations] + [plan.evaluations]
    best = [record.best for record in plan.iterations] + [tuple(last.tolist())]
    wall = [record.seconds / len(plan.cost) for record in plan.iterations] + [plan.seconds / len(plan.cost)]
    iterations = max(1, len(plan.iterations))
    return Course(
        name, problems.name, tuple(spent), tuple(best), tuple(wall), total, total - timed.seconds, iterations
    )


class Judge:
    """A set of problems as optimisers from elsewhere see it: positions in [-1, 1] for the box, projected into it before
    they are judged, and one number, the cost with `PENALTY` times what is broken added. Keeps a course of the best
    allowed candidates: what counts is the best that was judged, whatever the optimiser answers itself, and at the end
    what that costs exactly, as of our own answers (`Problems.judged`)."""

    def __init__(self, problems: Problems) -> None:
        self.problems, self.timed = problems, Timed(problems.cost_fn)
        self.centre = (problems.bounds.high / 2 + problems.bounds.low / 2).to(problems.init)
        self.half = (problems.bounds.high / 2 - problems.bounds.low / 2).to(problems.init)
        self.points: list[tuple[int, tuple[float, ...], float]] = []
        self.best, self.place, self.spent = torch.full((len(problems.init),), torch.inf), self.start, 0
        self.began, self.began_cpu = time.perf_counter(), time.process_time()

    @property
    def start(self) -> Float[Tensor, "b h a"]:
        """Where to begin, as positions."""
        half = torch.where(self.half > 0, self.half, 1.0)
        return (self.problems.init - self.centre) / half

    def __call__(self, positions: Float[Tensor, "b n h a"]) -> Float[Tensor, "b n"]:
        """The number told; `n` evaluations of every problem. Slopes pass the projection as if it were not there."""
        inside = positions + (positions.clamp(-1, 1) - positions).detach()
        found = self.timed(self._actions(inside), torch.arange(len(inside)))
        broken = found.violation.sum(dim=-1)
        allowed = torch.where(broken == 0, found.cost, torch.inf).detach().to(self.best)
        lowest, which = allowed.min(dim=1)
        place = inside.detach()[torch.arange(len(inside)), which]
        self.place = torch.where((lowest < self.best)[:, None, None], place, self.place)
        self.best = torch.minimum(self.best, lowest)
        self.spent += positions.shape[1]
        seconds = (time.perf_counter() - self.began) / len(positions)
        self.points.append((self.spent, tuple(self.best.tolist()), seconds))
        return found.cost + PENALTY * broken

    def course(self, name: str) -> Course:
        """What was reached so far; the last word is exact, at no charge."""
        total = time.process_time() - self.began_cpu
        own = total - self.timed.seconds
        answers = self.problems.judged(self._actions(self.place[:, None])[:, 0]).to(self.best)
        last = torch.where(self.best < torch.inf, answers, torch.inf)
        spent, best, wall = zip(*self.points, strict=True)
        best = (*best[:-1], tuple(last.tolist()))
        return Course(name, self.problems.name, spent, best, wall, total, own, len(self.points))

    def _actions(self, inside: Float[Tensor, "b n h a"]) -> Float[Tensor, "b n h a"]:
        return self.centre + self.half * inside


def measure_pycma(problems: Problems, budget: int, seed: int = 0, std: float = 0.3) -> Course:
    """The package alone, one search a problem: its default population, its bounds, positions in [-1, 1]."""
    import cma

    judge, searches = Judge(problems), []
    for index, start in enumerate(judge.start):
        rng = np.random.default_rng(seed + index)
        draw: Any = lambda *shape, rng=rng: rng.standard_normal(shape)  # noqa: E731
        options = {"bounds": [-1, 1], "seed": math.nan, "randn": draw, "verbose": -9}
        searches.append(cma.CMAEvolutionStrategy(start.flatten().double().cpu().numpy(), std, options))
    with torch.no_grad():
        judge(judge.start[:, None])
        while judge.spent + searches[0].popsize <= budget:
            asked = [search.ask() for search in searches]
            places = torch.from_numpy(np.stack([np.stack(one) for one in asked])).to(problems.init)
            told = judge(places.unflatten(2, problems.init.shape[1:]))
            for search, places_of_one, numbers in zip(searches, asked, told.double().tolist(), strict=True):
                search.tell(places_of_one, numbers)
    return judge.course(PYCMA)


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
        # Where these are not the classes' own settings, they are for many iterations: spreads that shrink slowly,
        # noise that ends. They were chosen on other draws of the functions than are measured by default.
        "cem": lambda bounds: p.CEM(
            bounds, p.CEMSettings(samples=64, elites=8, iterations=rounds(64), momentum_std=0.5)
        ),
        "icem": lambda bounds: p.ICEM(
            bounds,
            p.ICEMSettings(
                samples=48, elites=10, iterations=rounds(20), decay=1.02, momentum=0.6, std_fraction=0.75,
                noise_exponent=0.5,
            ),
        ),
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
        "gradient": lambda bounds: p.GradientPlanner(
            bounds,
            p.GradientSettings(
                starts=4, steps=rounds(4), learning_rate=0.3, gradient_clip=100.0, action_noise=0.1, noise_share=0.5
            ),
        ),
        "lbfgs": lambda bounds: p.LBFGS(bounds, p.LBFGSSettings(starts=4, steps=rounds(4))),
        "cem+lbfgs": lambda bounds: p.Refined(
            p.CEM(bounds, p.CEMSettings(samples=64, elites=8, iterations=rounds(64))),
            p.LBFGS(bounds, p.LBFGSSettings(starts=2, steps=rounds(2))),
            share=0.5,
        ),
    }  # fmt: skip


def own_milliseconds(make: Callable[[Bounds], Planner]) -> float:
    """Processor time of one iteration outside the cost function (and outside the package `cma`, where that is what
    searches), ms, for 5 steps of 7 actions. Slopes are taken within it. A long bowl: none is at its bottom early."""
    steepness = torch.logspace(0, 3, 35).reshape(5, 7)

    def bowl(actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        cost = (steepness * (actions - 0.3).square()).sum(dim=(2, 3))
        return Evaluation(cost, actions.new_zeros(*actions.shape[:2], 0))

    planner, init, times = make(Bounds(-torch.ones(7), torch.ones(7))), torch.zeros(1, 5, 7), []
    for repeat in range(5):
        timed = Timed(bowl)
        with _package_clock() as package:
            began = time.process_time()
            plan = planner.plan(timed, init, budget=Budget(), generators=[_generator(repeat)])
            total = time.process_time() - began
        times.append((total - timed.seconds - package.seconds) / max(1, len(plan.iterations)))
    return 1e3 * min(times)


@dataclass
class _Clock:
    """Processor time of what is called through it."""

    seconds: float = 0.0

    def __call__(self, call: Callable[..., Any], *arguments: Any) -> Any:
        began = time.process_time()
        try:
            return call(*arguments)
        finally:
            self.seconds += time.process_time() - began


@contextlib.contextmanager
def _package_clock() -> Iterator[_Clock]:
    """What `cma` itself takes meanwhile, the noise it asks for included."""
    import cma

    made, clock = cma.CMAEvolutionStrategy, _Clock()

    class Clocked:
        def __init__(self, *arguments: Any) -> None:
            self.search = clock(made, *arguments)

        def __getattr__(self, name: str) -> Any:
            found = clock(getattr, self.search, name)
            return (lambda *arguments: clock(found, *arguments)) if callable(found) else found

    with mock.patch.object(cma, "CMAEvolutionStrategy", Clocked):
        yield clock


def overheads() -> dict[str, float]:
    """`own_milliseconds` of every planner at 300 samples (those that descend: 4 starts, and 300)."""
    from vjepa_mpc import planners as p

    makers: dict[str, Callable[[Bounds], Planner]] = {
        "cem": lambda bounds: p.CEM(bounds, p.CEMSettings(samples=300, elites=30, iterations=20)),
        "cem, path": lambda bounds: p.CEM(
            bounds, p.CEMSettings(samples=300, elites=30, iterations=20, path_share=0.1)
        ),
        "icem": lambda bounds: p.ICEM(bounds, p.ICEMSettings(samples=300, elites=30, iterations=20, decay=1.0)),
        "mppi": lambda bounds: p.MPPI(bounds, p.MPPISettings(samples=300, iterations=20)),
        "published": lambda bounds: p.PublishedCEM(
            bounds, p.PublishedSettings(samples=300, elites=30, iterations=20)
        ),
        "cma": lambda bounds: p.CMAES(bounds, p.CMASettings(samples=300, iterations=20)),
        "discrete": lambda bounds: p.DiscreteCEM(bounds, p.DiscreteSettings(samples=300, elites=30, iterations=20)),
        "shooting": lambda bounds: p.RandomShooting(bounds, p.ShootingSettings(samples=300, iterations=20)),
        "predictive": lambda bounds: p.PredictiveSampling(bounds, p.PredictiveSettings(samples=300, iterations=20)),
    }
    for starts in (4, 300):
        makers |= _descending(starts)
    return {name: own_milliseconds(make) for name, make in makers.items()}


def _descending(starts: int) -> dict[str, Callable[[Bounds], Planner]]:
    """The planners that descend, from so many starts."""
    from vjepa_mpc import planners as p

    adam = p.GradientSettings(starts=starts, steps=20)
    lbfgs = p.LBFGSSettings(starts=starts, steps=20)
    rounds = p.LagrangianLBFGSSettings(starts=starts, steps=20)
    return {
        f"gradient, {starts}": lambda bounds: p.GradientPlanner(bounds, adam),
        f"lbfgs, {starts}": lambda bounds: p.LBFGS(bounds, lbfgs),
        f"lagrangian, {starts}": lambda bounds: p.LagrangianLBFGS(bounds, rounds),
    }
