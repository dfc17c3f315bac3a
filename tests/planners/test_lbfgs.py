"""Projected L-BFGS: exact where it must be, safe at the bounds, and far ahead of Adam in a narrow valley."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners import LBFGS, Bounds, Budget, Evaluation, GradientPlanner, GradientSettings, LBFGSSettings
from vjepa_mpc.planners.lbfgs import LBFGSProposal, Pairs, _direction, _free, _lengths
from vjepa_mpc.planners.positions import Positions
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
    moves = axes.T
    curvature = (moves @ matrix * moves).sum(dim=1, keepdim=True)
    pairs = torch.stack((moves, moves @ matrix), dim=1) / curvature.sqrt()[:, None]
    slope = torch.randn(1, 5, generator=generator, dtype=torch.float64)
    found = _direction(slope, tuple((move[None], change[None]) for move, change in pairs))
    torch.testing.assert_close(found, -torch.linalg.solve(matrix, slope.T).T)


def quadratic(seed: int) -> tuple[torch.Tensor, Pairs, torch.Tensor]:
    """A matrix, random moves with what they change of its slopes (their products 1), and two starts' slopes."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(5).double()
    moves = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)
    moves = moves / (moves @ matrix * moves).sum(dim=-1, keepdim=True).sqrt()
    return matrix, tuple(zip(moves, moves @ matrix, strict=True)), torch.randn(2, 5, generator=generator).double()


def dense(slope: torch.Tensor, moves: torch.Tensor, changes: torch.Tensor) -> torch.Tensor:
    """-H g of one start, with H as a matrix (Nocedal and Wright 2006, equation 6.17); pairs without curvature left
    out."""
    size = len(slope)
    kept = [(s, y) for s, y in zip(moves, changes, strict=True) if float(s @ y) > 0]
    inverse = torch.eye(size).double() * (kept[-1][0] @ kept[-1][1]) / (kept[-1][1] @ kept[-1][1])
    for move, change in kept:
        turn = torch.eye(size).double() - torch.outer(move, change) / (move @ change)
        inverse = turn @ inverse @ turn.T + torch.outer(move, move) / (move @ change)
    return -inverse @ slope


def test_a_pair_that_stands_twice_or_is_nothing_changes_nothing() -> None:
    _, pairs, slope = quadratic(seed=2)
    moves, changes = (torch.stack(parts, dim=1) for parts in zip(*pairs, strict=True))
    expected = torch.stack([dense(*start) for start in zip(slope, moves, changes, strict=True)])
    torch.testing.assert_close(_direction(slope, pairs), expected)
    nothing = (torch.zeros_like(slope), torch.zeros_like(slope))
    torch.testing.assert_close(_direction(slope, (nothing, pairs[0], nothing, pairs[1], pairs[1], pairs[2])), expected)
    twice = (*pairs, pairs[-1])
    torch.testing.assert_close(_direction(slope, twice), expected)


def test_held_actions_stay_and_the_others_go_by_their_own_part_of_the_pairs() -> None:
    _, pairs, slope = quadratic(seed=3)
    free = torch.tensor([[True, False, True, True, True], [True, True, True, False, False]])
    moves, changes = (torch.stack(parts, dim=1) * free[:, None] for parts in zip(*pairs, strict=True))
    expected = torch.stack([dense(*start) for start in zip(slope * free, moves, changes, strict=True)])
    torch.testing.assert_close(_free(slope, pairs, free), expected * free)


def test_a_start_whose_trial_brought_nothing_halves_it_while_the_others_go_on() -> None:
    """The second start's slopes lie: its trials never bring what they promise."""
    proposal, bounds = LBFGSProposal(LBFGSSettings(starts=2, memory=2)), box(3)
    state = proposal.init(torch.zeros(1, 1, 3), bounds, 5)
    generators = [torch.Generator().manual_seed(0)]
    for trial in range(5):
        samples = proposal.sample(state, 2, generators)
        slope = 2 * (samples - 0.3) * torch.tensor([1.0, -1.0])[:, None, None]
        found = Evaluation((samples - 0.3).square().sum(dim=(2, 3)), samples.new_zeros(1, 2, 0), slope=slope)
        before, state = state, proposal.update(state, samples, found)
        assert state.direction is not None and state.length is not None and state.point is not None
        if trial:
            assert before.direction is not None and before.point is not None
            assert float(state.length[0, 1]) == 0.5**trial
            assert torch.equal(state.direction[0, 1], before.direction[0, 1])
            assert torch.equal(state.point[0, 1], before.point[0, 1])
    assert len(state.pairs[0]) <= 2 and state.point is not None
    torch.testing.assert_close(state.point[0, 0], torch.full((3,), 0.3))
    assert not any(bool(part[1].any()) for pair in state.pairs[0] for part in pair)


def test_a_bound_holds_wherever_the_box_lies() -> None:
    """The float32s nearest to a box's centre and half are not quite those: what is at a bound is at -1 or 1."""
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(1000, generator=generator) * 200 - 100
    bounds = Bounds(low, low + 0.01 + torch.rand(1000, generator=generator))
    map_ = Positions.of(bounds)
    for side, bound in ((-1.0, bounds.low), (1.0, bounds.high)):
        assert bool((map_.of_actions(bound) == side).all())
        ends = bounds.clip(map_.actions(torch.full((1000,), side)))
        assert bool((map_.of_actions(ends) == side).all())
    here = torch.rand(1000, generator=generator) * 1.8 - 0.9
    torch.testing.assert_close(map_.of_actions(map_.actions(here)), here, atol=2e-3, rtol=0)


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


@pytest.mark.parametrize("unit", [1e-35, 1e-22, 1.0, 1e22, 1e35])
def test_lengths_of_any_unit(unit: float) -> None:
    move, change = torch.randn(2, 1, 3, 7, generator=torch.Generator().manual_seed(0)).unbind(0)
    wanted = move.norm(dim=2).double() * change.double().norm(dim=2) * unit
    torch.testing.assert_close(_lengths(move, change * unit).double(), wanted, rtol=1e-5, atol=0.0)
