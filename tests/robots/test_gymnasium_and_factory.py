"""The Gymnasium adapter passes Gymnasium's checker; robots are found by name."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.factory import make_robot, robot_names
from vjepa_mpc.robots.gymnasium_adapter import RobotEnv
from vjepa_mpc.robots.reacher import Reacher, ReachTask


def test_passes_gymnasiums_checker() -> None:
    env = RobotEnv(Reacher(camera_size=16), ReachTask())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Two pieces of advice that do not apply: bounds in rad rather than [-1, 1], and no registered spec.
        warnings.filterwarnings("ignore", message=".*normalized space.*")
        warnings.filterwarnings("ignore", message=".*not having a spec.*")
        check_env(env, skip_render_check=False)
    env.close()


def test_episode_is_truncated_and_reports_the_distance_and_the_applied_action() -> None:
    task = ReachTask()
    env = RobotEnv(Reacher(camera_size=16), task)
    start, goal = np.array([0.0, 0.0]), np.array([1.0, 0.5])
    observation, info = env.reset(seed=1, options={"start": start, "goal": goal})
    assert info["distance_m"] == pytest.approx(task.distance(start, goal), abs=1e-6)
    rewards, truncated = [], False
    while not truncated:
        action = task.scripted_action(observation["proprioception"], goal)
        observation, reward, terminated, truncated, info = env.step(action)
        assert not terminated
        rewards.append(reward)
    assert len(rewards) == task.step_budget
    assert info["is_success"] and -rewards[-1] < 0.03
    assert (np.abs(observation["top"].astype(int) - observation["goal_top"]) > 30).mean() < 0.02
    assert np.array_equal(env.render(), observation["top"])
    env.reset(seed=1)
    assert np.abs(env.step(np.array([9.0, -9.0]))[-1]["applied_action"]) == pytest.approx([0.3, 0.3])
    env.close()


def test_robots_by_name() -> None:
    assert "reacher" in robot_names()
    with make_robot("vjepa_mpc.robots.reacher:Reacher", camera_size=8, seed=4) as robot:  # type: ignore[attr-defined]
        assert isinstance(robot, Reacher) and robot.settings()["seed"] == 4
    with make_robot("reacher", camera_size=8) as robot:  # type: ignore[attr-defined]
        assert robot.spec.cameras["top"].height == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reachr", "did you mean 'reacher'"),
        ("no_such_module:Robot", "cannot be imported"),
        ("vjepa_mpc.robots.reacher:Missing", "cannot be imported"),
        ("collections:OrderedDict", "lacks"),
        (":", "cannot be imported"),
    ],
)
def test_unusable_names_are_explained(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_robot(name)


def test_unknown_settings_are_explained() -> None:
    with pytest.raises(InputError, match="camera_sise"):
        make_robot("reacher", camera_sise=64)
