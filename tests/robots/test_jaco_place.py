"""Taking, carrying and putting down a cube; and how an episode is led by its sub-goals."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.evaluation import ArenaSetup, run_pair
from vjepa_mpc.policies import RandomPolicy
from vjepa_mpc.robots.factory import find_task
from vjepa_mpc.robots.jaco_place import CUBE_M, JacoPlace, JacoPlaceTask, held, is_held, on_floor
from vjepa_mpc.robots.task import led_script
from vjepa_mpc.robots.tasks import Pair


@pytest.fixture(scope="module")
def world() -> Iterator[JacoPlace]:
    with JacoPlace(camera_size=16) as robot:
        yield robot


def test_a_held_cube_goes_with_the_hand_and_falls_when_let_go(world: JacoPlace) -> None:
    place = np.array([0.0, -0.45, 0.06])
    world.place(held(place))
    for _ in range(3):
        world.apply(np.array([0.02, 0.0, 0.03, 0.0]))
    state = world.true_state()
    assert state[4:] == pytest.approx(place + np.array([0.06, 0.0, 0.09]), abs=2e-3) and is_held(state)
    world.apply(np.array([0.0, 0.0, 0.0, -0.5]))
    world.apply(np.array([0.0, 0.0, 0.0, -0.5]))
    assert world.true_state()[6] == pytest.approx(CUBE_M, abs=1e-3)
    assert world.true_state()[4:6] == pytest.approx(state[4:6], abs=2e-3)


def test_only_a_closing_hand_round_the_cube_takes_it(world: JacoPlace) -> None:
    cube = np.array([0.05, -0.4])
    for aside, taken in ((0.0, True), (0.015, True), (0.03, False)):
        world.place(on_floor(np.array([cube[0] + aside, cube[1], CUBE_M]), cube))
        for _ in range(2):
            world.apply(np.array([0.0, 0.0, 0.0, 0.5]))
        for _ in range(3):
            world.apply(np.array([0.0, 0.0, 0.03, 0.0]))
        assert is_held(world.true_state()) == taken == bool(world.true_state()[6] > 0.08), aside


def test_displacements_of_hand_and_gripper_mean_what_they_say(world: JacoPlace) -> None:
    world.place(on_floor(np.array([0.0, -0.45, 0.1]), np.array([0.1, -0.4])))
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 4)) * [0.01, 0.01, 0.01, 0.3]:
        before = world.true_state()[:4]
        applied = world.apply(action)
        apart = np.abs(world.true_state()[:4] - before - applied)
        assert apart[:3].max() < 4e-4 and apart[3] < 0.02


def test_a_cube_in_the_air_is_refused(world: JacoPlace) -> None:
    with pytest.raises(InputError, match="no hand holds it"):
        world.place(np.array([0.0, -0.45, 0.15, 0.0, 0.0, -0.45, 0.1]))


def test_every_sub_goal_is_reached_within_its_share_of_the_steps(world: JacoPlace) -> None:
    task, generator = JacoPlaceTask(), np.random.default_rng(3)
    for _ in range(3):
        start, goal = task.sample_pair(generator)
        stages = task.sub_goals(start, goal)
        assert [stage.until for stage in stages] == sorted({stage.until for stage in stages})
        assert stages[-1].until == task.step_budget and np.array_equal(stages[-1].state, goal)
        world.place(start)
        script = led_script(task, start, goal)
        for step in range(1, task.step_budget + 1):
            world.apply(script(world.true_state()))
            for stage in stages:
                if step == stage.until:
                    assert world.true_state() == pytest.approx(stage.state, abs=0.02)


class Noting(RandomPolicy):
    """Notes the goals that it is shown, and when."""

    def __init__(self) -> None:
        super().__init__(find_task("jaco-place").spec)
        self.begun: list[tuple[int, np.ndarray, np.ndarray, int]] = []
        self.steps = 0

    def begin(self, goal: np.ndarray, goal_state: np.ndarray, seed: int) -> None:
        super().begin(goal, goal_state, seed)
        self.begun.append((self.steps, goal.copy(), goal_state, seed))

    def act(self, observation: object) -> np.ndarray:
        self.steps += 1
        return np.zeros(4)


def test_an_evaluated_policy_is_shown_one_sub_goal_after_the_other() -> None:
    task = JacoPlaceTask()
    start, goal = task.sample_pair(np.random.default_rng(0))
    with JacoPlace(camera_size=32) as robot:
        policy = Noting()
        arena = ArenaSetup(lambda: robot, lambda: policy, task, 0)()
        result = run_pair(arena, (0, Pair(tuple(start), tuple(goal))))
    stages = task.sub_goals(start, goal)
    assert [when for when, *_ in policy.begun] == [0, *(stage.until for stage in stages[:-1])]
    for (_, _, state, _), stage in zip(policy.begun, stages, strict=True):
        assert np.array_equal(state, stage.state)
    pictures = [picture.astype(int) for _, picture, _, _ in policy.begun]
    assert min(np.abs(a - b).max() for a, b in pairwise(pictures)) > 20
    assert len({seed for *_, seed in policy.begun}) == 3 and len(result.distances) == task.step_budget


def test_other_tasks_have_their_goal_alone() -> None:
    task = find_task("reacher")
    (only,) = task.sub_goals(np.zeros(2), np.ones(2))
    assert np.array_equal(only.state, np.ones(2)) and only.until == task.step_budget
