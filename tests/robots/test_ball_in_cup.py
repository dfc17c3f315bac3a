"""The ball on its string: free fall, swinging, velocity that one picture does not show, and the way into the cup."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.ball_in_cup import (
    BALL_M,
    STEP_M,
    STRING_M,
    BallInCup,
    BallInCupTask,
    hanging,
    inside,
    is_inside,
)
from vjepa_mpc.robots.cup_script import FROM_ANYWHERE


@pytest.fixture(scope="module")
def world() -> Iterator[BallInCup]:
    with BallInCup(camera_size=48) as robot:
        yield robot


def test_a_slack_ball_falls_as_gravity_says(world: BallInCup) -> None:
    start = hanging(np.array([0.0, 0.1]))
    start[2:4] = [0.1, 0.1]  # beside the cup, the string slack for the first 0.1 s
    world.place(start)
    world.apply(np.zeros(2))
    fall = start[3] - world.true_state()[3]
    assert fall == pytest.approx(9.81 * 0.1**2 / 2, abs=2e-3)
    assert world.true_state()[5] == pytest.approx(-9.81 * 0.1, rel=0.03)


def test_the_ball_swings_with_the_period_of_a_pendulum(world: BallInCup) -> None:
    """T = 2 pi sqrt(l / g) for small swings; the cup is held."""
    start = hanging(np.zeros(2))
    start[4] = 0.1
    world.place(start)
    sides, state = [], start
    for _ in range(40):
        world.apply(np.zeros(2))
        before, state = state, world.true_state()
        sides.append((before[2] - before[0], state[2] - state[0]))
    crossings = [step + abs(a) / (abs(a) + abs(b)) for step, (a, b) in enumerate(sides) if a < 0 <= b]
    period = float(np.diff(crossings).mean()) * world.spec.control_period_s
    assert period == pytest.approx(2 * math.pi * math.sqrt(STRING_M / 9.81), rel=0.03)


def test_the_cup_is_a_little_behind_after_any_action(world: BallInCup) -> None:
    generator = np.random.default_rng(3)
    for step, action in enumerate(generator.uniform(-0.08, 0.08, (100, 2))):
        if step % 10 == 0:
            world.reset(seed=step)
        before = world.true_state()[:2]
        applied = world.apply(action)
        assert world.true_state()[:2] - before == pytest.approx(applied, abs=BallInCupTask.exactness * 0.08)


def test_displacements_of_the_cup_mean_metres(world: BallInCup) -> None:
    world.place(hanging(np.zeros(2)))
    generator, total = np.random.default_rng(0), np.zeros(2)
    for action in generator.uniform(-0.02, 0.02, (12, 2)):
        before = world.true_state()[:2]
        applied = world.apply(action)
        assert world.true_state()[:2] - before == pytest.approx(applied, abs=1.5e-3)
        total += world.true_state()[:2] - before
    assert world.true_state()[:2] == pytest.approx(total, abs=1e-9)
    assert np.abs(world.apply(np.array([9.0, 9.0]))).max() <= STEP_M + 1e-12


def test_one_picture_does_not_tell_what_comes_next(world: BallInCup) -> None:
    """Two states with the same picture and the same proprioception lead to different ones."""
    pictures, after = [], []
    for speed in (-0.8, 0.8):
        state = hanging(np.array([0.0, 0.05]))
        state[4] = speed
        observation = world.place(state)
        pictures.append(observation.images["top"])
        assert observation.proprioception == pytest.approx([0.0, 0.05])
        world.apply(np.zeros(2))
        after.append(world.true_state())
    assert np.array_equal(*pictures)
    assert np.linalg.norm(after[0][2:4] - after[1][2:4]) > 0.1


def test_the_string_holds_under_the_wildest_motions(world: BallInCup) -> None:
    generator, longest = np.random.default_rng(1), 0.0
    world.place(hanging(np.zeros(2)))
    for _ in range(200):
        world.apply(generator.choice([-STEP_M, STEP_M], 2))
        state = world.true_state()
        hook = state[:2] + np.array([0.0, hanging(np.zeros(2))[3] + STRING_M])
        longest = max(longest, float(np.linalg.norm(state[2:4] - hook)))
    assert longest < STRING_M + 0.01


def test_the_script_catches_the_ball_and_carries_it_to_the_goal(world: BallInCup) -> None:
    task, start, goal = BallInCupTask(), hanging(np.array([-0.05, 0.02])), inside(np.array([0.06, 0.1]))
    world.place(start)
    script = task.script(goal)
    assert not is_inside(start) and is_inside(goal)
    for _ in range(task.step_budget):
        world.apply(script(world.true_state()))
    assert is_inside(world.true_state()) and task.distance(world.true_state(), goal) < task.success_radius_m


def test_what_is_demonstrated_is_one_motion_wherever_the_cup_is(world: BallInCup) -> None:
    task, generator = BallInCupTask(), np.random.default_rng(12)
    shown = []
    for _ in range(25):
        start, goal = task.sample_pair(generator)
        world.place(start)
        demonstration = task.demonstration(goal)
        actions = [demonstration(world.true_state())]
        for _ in range(task.step_budget):
            world.apply(actions[-1])
            actions.append(demonstration(world.true_state()))
        shown.append(actions[: len(FROM_ANYWHERE)])
        assert is_inside(world.true_state()) and task.distance(world.true_state(), goal) < task.success_radius_m
    assert np.ptp(shown, axis=0).max() == 0
    hit = task.script(goal)(hanging(np.zeros(2)))
    assert np.abs(hit - STEP_M * FROM_ANYWHERE[0]).max() > 0, "the ceiling tries other motions, as it did before"


def test_distance_is_the_worse_of_ball_and_cup() -> None:
    task, goal = BallInCupTask(), inside(np.zeros(2))
    assert task.distance(goal + np.array([0.03, 0.04, 0.0, 0.0, 5.0, 5.0]), goal) == pytest.approx(0.05)
    assert task.distance(hanging(np.zeros(2)), goal) > STRING_M


def test_a_ball_beyond_its_string_cannot_be_placed(world: BallInCup) -> None:
    state = hanging(np.array([0.0, 0.1]))
    state[3] -= 2 * BALL_M
    with pytest.raises(InputError, match="string's end"):
        world.place(state)
