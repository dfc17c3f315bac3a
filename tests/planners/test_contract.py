"""Every planner keeps the contract: adding a name to `PLANNERS` is all it takes to check another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from vjepa_mpc.planners import (
    CEM,
    CMAES,
    ICEM,
    LBFGS,
    MPPI,
    Ball,
    Blocks,
    Bounds,
    ByKnots,
    CEMSettings,
    CMASettings,
    DiscreteCEM,
    DiscreteSettings,
    GradientPlanner,
    GradientSettings,
    ICEMSettings,
    LagrangianLBFGS,
    LagrangianLBFGSSettings,
    LBFGSSettings,
    Limits,
    Lines,
    MPPISettings,
    Planner,
    PredictiveSampling,
    PredictiveSettings,
    PublishedCEM,
    PublishedSettings,
    RandomShooting,
    Refined,
    ShootingSettings,
    Suggested,
)
from vjepa_mpc.planners.testing import (
    CHECKS,
    SEARCHES_WELL,
    PlannerFactory,
    check_bounds_kept,
    check_coasts,
    check_cuts_its_memory,
    check_descends_from_the_start,
    check_draws_anew,
    check_draws_around_the_best,
    check_finds_the_global_optimum,
    check_gives_up_a_direction,
    check_learns_curvature,
    check_learns_from_suggestions,
    check_learns_prices,
    check_never_steps_up,
    check_spends_the_whole_budget,
)


def cem(bounds: Bounds) -> CEM:
    return CEM(bounds, CEMSettings(samples=128, elites=16, iterations=20))


def in_balls(bounds: Bounds) -> Limits:
    """All of the machinery of `Limits`, and nothing that a box would not allow."""
    wide = 3 * float(torch.maximum(bounds.low.abs(), bounds.high.abs()).max()) + 1
    return Limits(bounds.low, bounds.high, balls=(Ball((0,), wide),), rate=torch.full_like(bounds.low, torch.inf))


PLANNERS: dict[str, PlannerFactory] = {
    "cem": cem,
    "cem-coloured": lambda bounds: CEM(bounds, CEMSettings(samples=128, elites=16, iterations=25, noise_exponent=1.0)),
    "cem-plain-chunked": lambda bounds: CEM(
        bounds,
        CEMSettings(
            samples=200,
            elites=20,
            iterations=20,
            mean_candidate=False,
            keep_fraction=0,
            std_floor=0,
            chunk=66,
        ),
    ),
    "cem-path": lambda bounds: CEM(bounds, CEMSettings(samples=128, elites=16, iterations=20, path_share=0.2)),
    "cem-limits": lambda bounds: CEM(in_balls(bounds), CEMSettings(samples=128, elites=16, iterations=20)),
    "icem": lambda bounds: ICEM(
        bounds, ICEMSettings(samples=200, elites=20, iterations=20, std_fraction=0.75, decay=1.1, noise_exponent=1.0)
    ),
    "mppi": lambda bounds: MPPI(bounds, MPPISettings(samples=128, iterations=20)),
    "cma": lambda bounds: CMAES(bounds, CMASettings(samples=16, iterations=60)),
    "cma-separable": lambda bounds: CMAES(bounds, CMASettings(samples=16, iterations=60, separable=True)),
    "discrete": lambda bounds: DiscreteCEM(
        bounds, DiscreteSettings(samples=200, elites=20, iterations=15, levels=41)
    ),
    "shooting": lambda bounds: RandomShooting(bounds, ShootingSettings(samples=128, iterations=20)),
    "predictive": lambda bounds: PredictiveSampling(bounds, PredictiveSettings(samples=128, iterations=20)),
    "published": lambda bounds: PublishedCEM(bounds, PublishedSettings(samples=200, elites=20, iterations=20)),
    "gradient": lambda bounds: GradientPlanner(bounds, GradientSettings(starts=4, steps=60)),
    "gradient-noisy": lambda bounds: GradientPlanner(
        bounds, GradientSettings(starts=2, steps=60, action_noise=0.005, chunk=1)
    ),
    "lbfgs": lambda bounds: LBFGS(bounds, LBFGSSettings(starts=4, steps=30)),
    "lagrangian": lambda bounds: LagrangianLBFGS(bounds, LagrangianLBFGSSettings(starts=2, steps=25, rounds=3)),
    "cem-then-lbfgs": lambda bounds: Refined(
        CEM(bounds, CEMSettings(samples=64, elites=8, iterations=12)), LBFGS(bounds, LBFGSSettings(starts=2, steps=12))
    ),
    "cem-suggested": lambda bounds: Suggested(cem(bounds), lambda init, generators: init[:, None]),
    "cem-blocks": lambda bounds: ByKnots(cem(bounds), Blocks(1)),
    "cem-lines": lambda bounds: ByKnots(cem(bounds), Lines(8)),
}
# Promises that not every planner makes. Uniform draws find no optimum to two digits, nor does noise that never narrows.
PLAIN = ("shooting", "predictive")
GLOBAL = (
    "cem", "cem-coloured", "cem-path", "cem-plain-chunked", "icem", "mppi", "cma", "discrete", "predictive",
    "cem-then-lbfgs",
)  # fmt: skip


DESCENDING = ("gradient", "gradient-noisy", "lbfgs", "lagrangian", "cem-then-lbfgs")
DRAWING = tuple(name for name in PLANNERS if name not in DESCENDING)
PROMISES: dict[Callable[[PlannerFactory], None], tuple[str, ...]] = {
    check_draws_around_the_best: ("predictive",),
    check_descends_from_the_start: ("gradient", "gradient-noisy", "lbfgs", "lagrangian"),
    check_learns_curvature: ("lbfgs",),
    check_never_steps_up: ("lbfgs",),
    check_learns_prices: ("lagrangian",),
    check_coasts: ("gradient",),
    check_gives_up_a_direction: ("lbfgs",),
    check_cuts_its_memory: ("lbfgs",),
    check_learns_from_suggestions: ("cem", "icem", "mppi", "cma", "discrete", "cem-blocks"),
}


# V-JEPA 2-AC's planner returns its mean, be it worse than its start, and begins at zero: what it does not promise.
EXEMPT: dict[str, tuple[str, ...]] = {
    "published": ("check_never_worse_than_start", "check_suggestions_are_judged"),
}


# Second settings of planners that are checked in full under another name.
SECOND = ("cem-coloured", "cma-separable", "gradient-noisy", "cem-suggested", "cem-lines")


def marked(names: Iterable[str]) -> list[Any]:
    """The names, the second settings among them marked as slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SECOND else []) for name in names]


@pytest.mark.parametrize("name", marked(PLANNERS))
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[[PlannerFactory], None], name: str) -> None:
    if check.__name__ in EXEMPT.get(name, ()):
        pytest.skip("listed as exempt")
    check(PLANNERS[name])


@pytest.mark.parametrize("name", marked(name for name in PLANNERS if name not in PLAIN))
@pytest.mark.parametrize("check", SEARCHES_WELL, ids=lambda check: check.__name__)
def test_searches_well(check: Callable[[PlannerFactory], None], name: str) -> None:
    check(PLANNERS[name])


@pytest.mark.parametrize("name", marked(GLOBAL))
def test_finds_the_global_optimum(name: str) -> None:
    check_finds_the_global_optimum(PLANNERS[name])


@pytest.mark.parametrize("name", marked(DRAWING))
def test_draws_anew(name: str) -> None:
    check_draws_anew(PLANNERS[name])


@pytest.mark.parametrize(
    ("check", "name"), [(check, name) for check, names in PROMISES.items() for name in names],
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip
def test_keeps_its_promise(check: Callable[[PlannerFactory], None], name: str) -> None:
    check(PLANNERS[name])


@pytest.mark.parametrize("name", marked(PLANNERS))
def test_spends_the_whole_budget(name: str) -> None:
    check_spends_the_whole_budget(PLANNERS[name])


@pytest.mark.parametrize("name", PLANNERS)
def test_is_a_planner(name: str) -> None:
    assert isinstance(PLANNERS[name](Bounds(torch.zeros(1), torch.ones(1))), Planner)


@st.composite
def tasks(draw: st.DrawFn) -> tuple[Bounds, torch.Tensor]:
    """Random boxes (some without width) and starts (some far outside), in any pair of types."""
    size, horizon, problems = (draw(st.integers(1, 3)) for _ in range(3))
    bounds_type, init_type = (draw(st.sampled_from([torch.float32, torch.float64])) for _ in range(2))
    numbers = st.floats(-1e4, 1e4, allow_subnormal=False)
    low = torch.from_numpy(draw(hnp.arrays(np.float64, size, elements=numbers))).to(bounds_type)
    width = draw(hnp.arrays(np.float64, size, elements=st.sampled_from([0.0, 1e-2, 0.1, 1.0, 3e3])))
    start = draw(hnp.arrays(np.float64, (problems, horizon, size), elements=numbers))
    high = low + torch.from_numpy(width).to(bounds_type)
    if bounds_type is torch.float64 and init_type is torch.float32:
        # A point that float32 does not hold has nothing inside; the nearest number is all one can ask.
        low, high = (
            value.to(torch.float32).to(torch.float64) if (low == high).any() else value for value in (low, high)
        )
    return Bounds(low, high), torch.from_numpy(start).to(init_type)


@pytest.mark.parametrize("name", marked(PLANNERS))
@hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
@hypothesis.given(task=tasks())
def test_bounds_are_kept_in_random_boxes(name: str, task: tuple[Bounds, torch.Tensor]) -> None:
    check_bounds_kept(PLANNERS[name], *task)
