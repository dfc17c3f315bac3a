"""Projected L-BFGS: exact where it must be, safe at the bounds, and far ahead of Adam in a narrow valley."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners import LBFGS, Budget, Evaluation, GradientPlanner, GradientSettings, LBFGSSettings
from vjepa_mpc.planners.lbfgs import _direction
from vjepa_mpc.planners.testing import Bowl, box, solve


@pytest.mark.parametrize(
    "wrong", [{"starts": 0}, {"memory": 0}, {"longest": 0.0}, {"penalty": -1.0}, {"perturbation": math.nan}]
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        LBFGSSettings(**wrong)


def test_the_recursion_is_the_inverse_of_the_slopes_matrix() -> None:
    """With as many exact pairs as dimensions of a quadratic, the direction is Newton's: -A^-1 g."""
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(5).double()
    _, axes = torch.linalg.eigh(matrix)  # conjugate moves, for which BFGS is exact
    moves = axes.T[None]
    slope = torch.randn(1, 5, generator=generator, dtype=torch.float64)
    found = _direction(slope, moves, moves @ matrix)
    torch.testing.assert_close(found, -torch.linalg.solve(matrix, slope.T).T)


def rosenbrock(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
    x = 1.5 * actions.flatten(2)
    cost = (100 * (x[..., 1:] - x[..., :-1].square()).square() + (1 - x[..., :-1]).square()).sum(dim=-1)
    return Evaluation(cost, actions.new_zeros(*actions.shape[:2], 0))


def test_it_follows_a_valley_where_adam_crawls() -> None:
    start, budget = torch.full((1, 2, 2), -0.3), Budget(max_evaluations=120)
    newton = solve(LBFGS(box(2), LBFGSSettings(starts=1, steps=200)), rosenbrock, start, budget=budget)
    adam = solve(GradientPlanner(box(2), GradientSettings(starts=1, steps=117)), rosenbrock, start, budget=budget)
    assert float(newton.cost[0]) < 1e-3 and float(newton.cost[0]) < float(adam.cost[0])


def test_bounds_that_hold_do_not_slow_the_free_actions() -> None:
    """The optimum of one action lies outside: it rests at its bound, and the others are exact soon."""
    goals = torch.tensor([[[3.0, 0.3], [-0.2, -5.0]]])
    weight = torch.tensor([50.0, 1.0])
    plan = solve(LBFGS(box(2), LBFGSSettings(starts=1, steps=25)), Bowl(goals, weight), torch.zeros(1, 2, 2))
    # The cost there is 216, whose last bit in float32 is 1.5e-5: no more can be told.
    torch.testing.assert_close(plan.actions, goals.clamp(-1, 1), atol=2e-3, rtol=0)


def test_a_horizon_of_ten_through_a_stiff_rollout_stays_finite() -> None:
    """Ten steps of a system that multiplies errors by 1.5 a step: slopes of very different sizes."""

    def cost(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        state = actions.new_zeros(actions.shape[:2]) + 0.5
        total = 0 * state
        for step in range(10):
            state = 1.5 * state + actions[:, :, step, 0] + 0.3 * state.sin()
            total = total + state.square()
        return Evaluation(total, actions.new_zeros(*actions.shape[:2], 0))

    start = float(cost(torch.zeros(1, 1, 10, 1), torch.zeros(1, dtype=torch.long)).cost)
    newton = solve(LBFGS(box(1), LBFGSSettings(steps=40)), cost, torch.zeros(1, 10, 1))
    adam = solve(GradientPlanner(box(1), GradientSettings(steps=40)), cost, torch.zeros(1, 10, 1))
    assert float(newton.cost[0]) < 0.1 and float(adam.cost[0]) < 0.01 * start
