"""The peg and the brick: what touches what, how the brick answers, and that half a turn is none."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.jaco_push import BRICK, PEG_M, TURNING_RADIUS_M, JacoPush, JacoPushTask
from vjepa_mpc.robots.visibility import VisibilityGraph


@pytest.fixture(scope="module")
def world() -> Iterator[JacoPush]:
    with JacoPush(camera_size=8) as robot:
        yield robot


def pushed(world: JacoPush, start: list[float], action: list[float], steps: int) -> np.ndarray:
    world.place(np.array(start))
    for _ in range(steps):
        world.apply(np.array(action))
    return world.true_state()


def test_a_pushed_brick_goes_as_quasi_static_mechanics_says(world: JacoPush) -> None:
    """Through its middle it goes straight; beside it, it turns by k / r / (1 + k^2) a metre of push."""
    y = -0.45 - 0.03 - PEG_M - 0.002
    straight = pushed(world, [0.0, y, 0.04, 0.0, -0.45, 0.0], [0.0, 0.02, 0.0], 4)
    assert straight[3:] == pytest.approx([0.0, straight[1] + 0.03 + PEG_M, 0.0], abs=2e-3)
    arm = 0.02
    turned = pushed(world, [arm, y, 0.04, 0.0, -0.45, 0.0], [0.0, 0.005, 0.0], 3)
    push = turned[1] - (-0.45 - 0.03 - PEG_M)
    k = arm / TURNING_RADIUS_M
    assert turned[5] == pytest.approx(push * k / TURNING_RADIUS_M / (1 + k**2), rel=0.35)


def test_the_brick_stays_where_it_is_left_and_a_lifted_peg_passes_over_it(world: JacoPush) -> None:
    left = pushed(world, [0.0, -0.51, 0.04, 0.0, -0.45, 0.0], [0.0, 0.03, 0.0], 3)
    after = pushed(world, left.tolist(), [0.0, -0.02, 0.0], 4)
    assert after[3:] == pytest.approx(left[3:], abs=1e-3)
    over = pushed(world, [0.0, -0.55, 0.09, 0.0, -0.45, 0.3], [0.0, 0.03, 0.0], 7)
    assert over[1] > -0.36 and over[3:] == pytest.approx([0.0, -0.45, 0.3], abs=1e-3)


def test_half_a_turn_is_none() -> None:
    task = JacoPushTask()
    goal = np.array([0.0, -0.5, 0.05, 0.0, -0.4, 1.5])
    assert task.distance(goal + np.array([0.1, 0.0, 0.0, 0.0, 0.0, -math.pi]), goal) == pytest.approx(0.0, abs=1e-9)
    assert task.distance(goal + np.array([0.0] * 5 + [math.radians(15)]), goal) == pytest.approx(0.03)
    assert task.distance(goal + np.array([0.0] * 3 + [0.03, 0.04, 0.0]), goal) == pytest.approx(0.05)


def test_a_peg_in_the_brick_is_refused(world: JacoPush) -> None:
    with pytest.raises(InputError, match="stand in the brick"):
        world.place(np.array([0.0, -0.45, 0.04, 0.0, -0.45, 0.0]))
    world.place(np.array([0.0, -0.45, 0.1, 0.0, -0.45, 0.0]))


def test_the_script_goes_on_where_no_corner_of_the_brick_can_be_gone_round() -> None:
    task = JacoPushTask()
    brick_away = np.array([-0.14, -0.31, 0.05, 0.24, -0.69, 0.3])  # far outside of where the peg may go
    low, high = np.array(task.spec.action_low), np.array(task.spec.action_high)
    for goal_angle in (0.0, 1.5):
        action = task.script(np.array([0.0, -0.3, 0.05, 0.0, -0.45, goal_angle]))(brick_away)
        assert np.isfinite(action).all()
        assert (action >= low - 1e-9).all() and (action <= high + 1e-9).all()


def test_ways_without_a_place_to_go_by() -> None:
    ways = VisibilityGraph(np.zeros((0, 2)), BRICK, 0.01)
    assert ways.length(np.array([0.2, 0.0]), np.array([0.2, 0.1])) == pytest.approx(0.1)
    assert ways.length(np.array([0.2, 0.0]), np.array([-0.2, 0.0])) == math.inf  # the brick is in between
    assert ways.next_place(np.array([0.2, 0.0]), np.array([-0.2, 0.0])) is None
