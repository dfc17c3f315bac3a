"""Boxes as wide, and as narrow, as the type of a plan holds."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
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
    Choices,
    CMASettings,
    DiscreteCEM,
    DiscreteSettings,
    GradientPlanner,
    GradientSettings,
    ICEMSettings,
    LBFGSSettings,
    Limits,
    MPPISettings,
    Planner,
    PredictiveSampling,
    PublishedCEM,
    PublishedSettings,
    RandomShooting,
    Splines,
)
from vjepa_mpc.planners.base import Evaluation
from vjepa_mpc.planners.testing import Watch, solve

# With how near, in halves of a range, each surely comes to the optimum. Uniform draws, and noise as wide at the end as
# at the beginning, come less near, nor does who begins at zero wherever the box lies.
PLANNERS: dict[str, tuple[Callable[[Bounds], Planner], float]] = {
    "cem": (lambda bounds: CEM(bounds, CEMSettings(samples=64, elites=8, iterations=12)), 0.2),
    "cem-path": (lambda bounds: CEM(bounds, CEMSettings(samples=64, elites=8, iterations=12, path_share=0.2)), 0.2),
    "icem": (lambda bounds: ICEM(bounds, ICEMSettings(samples=200, elites=20, noise_exponent=0)), 0.3),
    "mppi": (lambda bounds: MPPI(bounds, MPPISettings(samples=64, iterations=12)), 0.2),
    "cma": (lambda bounds: CMAES(bounds, CMASettings(samples=16, iterations=40)), 0.2),
    "discrete": (lambda bounds: DiscreteCEM(bounds, DiscreteSettings(samples=64, elites=8)), 0.3),
    "published": (lambda bounds: PublishedCEM(bounds, PublishedSettings(samples=64, elites=8, iterations=12)), 0.5),
    "shooting": (RandomShooting, 1.0),
    "predictive": (PredictiveSampling, 0.5),
    "gradient": (lambda bounds: GradientPlanner(bounds, GradientSettings(starts=2, steps=60)), 0.2),
    "lbfgs": (lambda bounds: LBFGS(bounds, LBFGSSettings(starts=2, steps=12)), 0.2),
    "blocks": (lambda bounds: ByKnots(CEM(bounds, CEMSettings(samples=64, elites=8, iterations=12)), Blocks(1)), 0.2),
}


class Near:
    """Squared distances to an optimum in halves of the ranges, told in float64."""

    def __init__(self, bounds: Bounds, place: float) -> None:
        low, high = bounds.low.double(), bounds.high.double()
        self.half = torch.where(high > low, high / 2 - low / 2, 1.0)
        self.goal = low + (high - low) * place

    def away(self, actions: torch.Tensor) -> torch.Tensor:
        return (actions.double() - self.goal) / self.half

    def __call__(self, actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        cost = self.away(actions).square().flatten(2).sum(dim=-1)
        return Evaluation(cost.to(actions), actions.new_zeros(*actions.shape[:2], 0))


@pytest.mark.parametrize("name", PLANNERS)
@hypothesis.settings(
    max_examples=4, deadline=None, derandomize=True, phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate)
)
@hypothesis.given(
    exponent=st.floats(-37.7, 38.47),
    other=st.sampled_from([-37.0, 0.0, 38.4]),
    lowest=st.sampled_from([-1.0, 0.0, 0.9]),
    place=st.floats(0.2, 0.8),
)
@hypothesis.example(exponent=38.47, other=38.47, lowest=-1.0, place=0.7)
@hypothesis.example(exponent=-37.7, other=-37.7, lowest=-1.0, place=0.3)
@hypothesis.example(exponent=38.47, other=-37.7, lowest=-1.0, place=0.3)
@hypothesis.example(exponent=20.0, other=-20.0, lowest=-1.0, place=0.7)
def test_boxes_of_any_size_are_searched(name: str, exponent: float, other: float, lowest: float, place: float) -> None:
    """Up to 3e38 to either side, down to 4e-38 wide, one action beside another; the answer is as near to the optimum,
    counted in ranges, as in any other box."""
    high = torch.tensor([10**exponent, 10**other], dtype=torch.float64).float()
    bounds = Bounds(lowest * high, high)
    hypothesis.assume(float((high / 2 - bounds.low / 2).min()) > 1.5e-38)  # or slopes are no numbers in float32
    make, near = PLANNERS[name]
    cost = Near(bounds, place)
    watch = Watch(cost)
    start = (bounds.low / 2 + bounds.high / 2).expand(1, 3, 2)
    plan = solve(make(bounds), watch, start)
    seen = watch.candidates
    assert bool(((seen >= bounds.low) & (seen <= bounds.high)).all())
    assert float(cost.away(plan.actions).abs().max()) < near
    for record in plan.iterations:
        assert all(value >= 0 and value < float("inf") for value in (*record.best, *record.mean_cost, *record.std))
        assert record.std[0] <= float(high.max())
    assert plan.others is None or bool(torch.isfinite(plan.others).all())


@pytest.mark.parametrize("name", PLANNERS)
def test_the_narrow_end_of_a_wide_box_is_kept(name: str) -> None:
    """Beside 3e38 it is so small that its unit does not hold it exactly."""
    bounds = Bounds(torch.tensor([-3e38]), torch.tensor([1.1e-3]))

    def upwards(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        cost = (-actions / 1e30).flatten(2).sum(dim=-1)
        return Evaluation(cost, actions.new_zeros(*actions.shape[:2], 0))

    watch = Watch(upwards)
    plan = solve(PLANNERS[name][0](bounds), watch, torch.full((1, 2, 1), 1.1e-3))
    for seen in (watch.candidates, plan.actions, *(() if plan.others is None else (plan.others,))):
        assert float(seen.max()) <= float(bounds.high)


@pytest.mark.parametrize("name", ["gradient", "lbfgs"])
@pytest.mark.parametrize("half", [1e9, 1e20])
@pytest.mark.parametrize("size", [1, 4])
def test_slopes_that_are_no_numbers_in_the_unit_of_the_box_are_followed(name: str, half: float, size: int) -> None:
    """A cliff at 0 so steep that its slope by position, or the slope's change, is infinite."""
    bounds, steep = Bounds(torch.full((size,), -half), torch.full((size,), half)), 1e38 / half * 30

    def cliff(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        part = (actions * (steep * 1e-9)).tanh() * 1e9 + (actions / half - 0.5).square()
        return Evaluation(part.flatten(2).sum(dim=-1), actions.new_zeros(*actions.shape[:2], 0))

    start = torch.zeros(1, 2, size)
    plan = solve(PLANNERS[name][0](bounds), cliff, start)
    assert bool(torch.isfinite(plan.actions).all()) and float(plan.cost) < float(cliff(start[:, None], start).cost)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_deviations_in_units_of_actions_and_dead_zones_mean_the_same_in_any_box(size: float) -> None:
    one = torch.ones(2)
    for make in (
        lambda half, unit: CEM(Bounds(-half * one, half * one), CEMSettings(std=(0.3 * unit, 0.1 * unit))),
        lambda half, unit: PublishedCEM(
            Bounds(-half * one, half * one),
            PublishedSettings(samples=32, iterations=3, std=(0.3 * unit, 0.1 * unit), dead_zone=(0.4 * unit, 0.0)),
        ),
    ):
        small, other = Bounds(-one, one), Bounds(-size * one, size * one)
        usual = solve(make(1.0, 1.0), Near(small, 0.6), torch.zeros(1, 2, 2))
        found = solve(make(size, size), Near(other, 0.6), torch.zeros(1, 2, 2))
        torch.testing.assert_close(found.actions / size, usual.actions, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_balls_rates_and_choices_of_any_size(size: float) -> None:
    limits = Limits(
        torch.full((2,), -size),
        torch.full((2,), size),
        balls=(Ball((0, 1), 0.5 * size),),
        rate=torch.full((2,), 0.4 * size),
        previous=torch.zeros(1, 2),
    )
    wanted = size * torch.tensor([[[0.8, 0.6], [0.8, 0.6], [0.8, 0.6]]])
    kept = limits.clip(wanted) / size
    torch.testing.assert_close(kept[0], torch.tensor([[0.4, 0.3], [0.4, 0.3], [0.4, 0.3]]))
    watch = Watch(Near(limits, 0.9))
    plan = solve(CEM(limits), watch, torch.zeros(1, 3, 2))
    assert float((watch.candidates / size).norm(dim=-1).max()) <= 0.5 + 1e-6
    assert float((plan.actions / size).norm(dim=-1).min()) > 0.45
    choices = Choices.of(torch.tensor([[-3.0, 1.0], [0.5, 0.0], [3.0, -2.0], [0.0, 1.0]]) * size)
    asked = Watch(Near(choices, 0.4))
    answer = solve(DiscreteCEM(choices), asked, torch.zeros(1, 2, 2))
    known = (asked.candidates[0, :, :, None] == choices.values).all(dim=-1).any(dim=-1)
    assert bool(known.all()) and bool(torch.isfinite(answer.actions).all())


def test_choices_and_knots_at_the_end_of_the_numbers() -> None:
    values = torch.tensor([[-3e38], [0.0], [3e38]])
    torch.testing.assert_close(Choices.of(values).clip(torch.tensor([[1.4e38], [1.6e38], [-3e38]])), values[[1, 2, 0]])
    bounds = Bounds(torch.tensor([-3e38]), torch.tensor([3e38]))
    zigzag = torch.tensor([3e38, -3e38] * 4).reshape(1, 8, 1)
    for curve in (Splines(5), Splines(7), Blocks(3)):
        plan = solve(ByKnots(CEM(bounds), curve), Near(bounds, 0.7), zigzag)
        assert float(plan.cost) < 0.1 * float(Near(bounds, 0.7)(zigzag[:, None], torch.arange(1)).cost)
