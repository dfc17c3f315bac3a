"""A Gymnasium environment as a robot: a little one that the test registers, looked at, moved, placed and recorded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.exploration import EpisodeSettings, simulate_episode
from vjepa_mpc.robots.base import Robot, SimulatedRobot
from vjepa_mpc.robots.factory import make_robot
from vjepa_mpc.robots.gymnasium_robot import GymnasiumRobot


class Bead(gymnasium.Env[np.ndarray, np.ndarray]):
    """A bead on a square, shown as a white cell; moved by its action. In the form of Gymnasium's MuJoCo ones."""

    dt = 0.05

    def __init__(self, render_mode: str | None = None) -> None:
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Box(-0.2, 0.2, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
        self.data = SimpleNamespace(qpos=np.zeros(2), qvel=np.zeros(2))
        self.closed = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.set_state(self.np_random.uniform(-1, 1, 2), np.zeros(2))
        return self._get_obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert action.dtype == np.float32 and np.abs(action).max() <= 0.2
        self.data.qpos = np.clip(self.data.qpos + action, -1, 1)
        return self._get_obs(), 0.0, False, False, {}

    def set_state(self, qpos: np.ndarray, qvel: np.ndarray) -> None:
        self.data.qpos, self.data.qvel = qpos.copy(), qvel.copy()

    def _get_obs(self) -> np.ndarray:
        return np.asarray(self.data.qpos, dtype=np.float64)

    def render(self) -> Any:
        picture = np.zeros((32, 32, 3), np.uint8)
        column, row = np.round(15.5 * (self.data.qpos + 1)).astype(int)
        picture[row, column] = 255
        return picture

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def robot() -> Iterator[GymnasiumRobot]:
    gymnasium.register("Bead-v0", entry_point=lambda **settings: Bead(**settings))
    try:
        built = make_robot("gymnasium/Bead-v0", camera_size=None, seed=3)
        assert isinstance(built, GymnasiumRobot)
        with built:
            yield built
    finally:
        gymnasium.registry.pop("Bead-v0", None)


def test_it_fulfils_the_contract(robot: GymnasiumRobot) -> None:
    assert isinstance(robot, Robot) and isinstance(robot, SimulatedRobot)
    assert robot.spec.name == "gymnasium/Bead-v0" and robot.spec.control_period_s == 0.05
    assert robot.spec.action_high == pytest.approx((0.2, 0.2)) and robot.spec.cameras["view"].height == 32
    observation = robot.place(np.array([0.5, -0.5, 0.0, 0.0]))
    assert observation.proprioception == pytest.approx([0.5, -0.5]) and observation.time_s == 0.0
    assert observation.images["view"][8, 23].tolist() == [255] * 3
    assert robot.apply(np.array([0.1, 9.0])) == pytest.approx([0.1, 0.2])
    assert robot.true_state() == pytest.approx([0.6, -0.3, 0.0, 0.0], abs=1e-6)
    assert robot.observe().time_s == pytest.approx(0.05)
    assert np.array_equal(robot.reset(seed=5).proprioception, robot.reset(seed=5).proprioception)
    robot.close()
    robot.close()
    assert robot._env.unwrapped.closed == 1


def test_bad_actions_and_states_are_refused_and_nothing_is_sent(robot: GymnasiumRobot) -> None:
    before = robot.true_state()
    for bad in ([0.0] * 3, [math.nan] * 2, [math.inf, 0.0]):
        with pytest.raises(InputError, match="Bead-v0"):
            robot.apply(np.array(bad))
    assert np.array_equal(robot.true_state(), before)
    for wrong in ([0.0] * 2, [math.nan] * 4):
        with pytest.raises(InputError, match="qpos, then qvel"):
            robot.place(np.array(wrong))


def test_its_motions_are_recorded_like_any_robots(robot: GymnasiumRobot) -> None:
    settings = EpisodeSettings(robot="gymnasium/Bead-v0", frames=12, appearance="plain")
    episode = simulate_episode(robot, settings, 0)
    assert episode.images["view"].shape == (12, 32, 32, 3)
    assert np.diff(episode.states, axis=0)[:, 0] == pytest.approx(episode.actions[:, 0], abs=2e-2)
    assert simulate_episode(robot, settings, 0).digest() == episode.digest()
    with pytest.raises(InputError, match="--appearance plain"):
        robot.set_appearance(3)


def test_pictures_are_brought_to_size() -> None:
    gymnasium.register("Bead-v1", entry_point=lambda **settings: Bead(**settings))
    try:
        with make_robot("gymnasium/Bead-v1", camera_size=8) as robot:  # type: ignore[attr-defined]
            assert robot.observe().images["view"].shape == (8, 8, 3)
    finally:
        gymnasium.registry.pop("Bead-v1", None)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vjepa_mpc.robots.gymnasium_robot.importlib.util.find_spec", lambda name: None)
    for name, package in (("cube-single-v0", "ogbench"), ("swm/PushT-v1", "stable-worldmodel")):
        with pytest.raises(InputError, match=f"check the id, or pip install {package}.$"):
            make_robot(f"gymnasium/{name}")


class Dice(Bead):
    """Says its pictures a second, draws from NumPy's global generator, and is no MuJoCo environment."""

    dt = 0.01  # a part of a step

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        gymnasium.Env.reset(self, seed=seed)
        self.data.qpos = np.random.uniform(-1, 1, 2)
        return {"proprio": self._get_obs(), "other": 0}, {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.data.qpos = np.clip(self.data.qpos + action * np.random.uniform(), -1, 1)
        return {"proprio": self._get_obs(), "other": 0}, 0.0, False, False, {}

    def set_state(self, qpos: np.ndarray, qvel: np.ndarray, buttons: np.ndarray) -> None:  # type: ignore[override]
        raise AssertionError("as OGBench's scenes, not to be called with two")


@pytest.fixture
def dice() -> Iterator[GymnasiumRobot]:
    gymnasium.register("Dice-v0", entry_point=lambda **settings: Dice(**settings))
    try:
        with make_robot("gymnasium/Dice-v0", camera_size=None) as robot:  # type: ignore[attr-defined]
            yield robot
    finally:
        gymnasium.registry.pop("Dice-v0", None)


def test_an_environment_that_cannot_be_placed_begins_by_a_seed(dice: GymnasiumRobot) -> None:
    assert dice.spec.control_period_s == 0.05 and dice.spec.state_names == ("state_0", "state_1")
    start = dice.sample_state(np.random.default_rng(0))
    assert start.shape == (1,)
    assert np.array_equal(dice.place(start).proprioception, dice.place(start).proprioception)
    with pytest.raises(InputError, match="does not tell its state"):
        dice.true_state()
    for wrong in ([0.5], [-1.0], [0.0, 0.0]):
        with pytest.raises(InputError, match="one whole number"):
            dice.place(np.array(wrong))
    settings = EpisodeSettings(robot="gymnasium/Dice-v0", frames=12, appearance="plain")
    assert simulate_episode(dice, settings, 0).digest() == simulate_episode(dice, settings, 0).digest()


def test_the_global_generator_is_left_alone_and_does_not_matter(dice: GymnasiumRobot) -> None:
    ends = []
    for _ in range(2):
        before = np.random.get_state(legacy=False)["state"]["key"]
        dice.reset(7)
        dice.apply(np.array([0.1, 0.1]))
        ends.append(dice.observe().proprioception)
        assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], before)
        np.random.uniform(size=1000)
    assert np.array_equal(*ends)


def test_a_reset_that_keeps_its_seed_to_itself_repeats(dice: GymnasiumRobot) -> None:
    """stable-worldmodel's cube draws from np_random, and hands no seed on to what would seed it."""
    bare = dice._env.unwrapped
    starts = []

    def reset(**_: Any) -> tuple[Any, dict[str, Any]]:
        bare.data.qpos = bare.np_random.uniform(-1, 1, 2)
        return {"proprio": bare._get_obs()}, {}

    dice._env = SimpleNamespace(reset=reset, unwrapped=bare, render=bare.render, close=bare.close)
    for _ in range(2):
        starts.append(dice.reset(11).proprioception)
    assert np.array_equal(*starts) and not np.array_equal(starts[0], dice.reset(12).proprioception)


def test_a_package_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ogbench.py").write_text("raise RuntimeError('operator nms does not exist')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="ogbench cannot be imported: operator nms does not exist"):
        make_robot("gymnasium/cube-single-v0")


def test_tasks_show_writes_a_sheet_and_a_video_of_it(dice: GymnasiumRobot, tmp_path: Path) -> None:
    from vjepa_mpc.showcase import show_wandering

    sheet, video = show_wandering(dice, "dice", tmp_path, steps=6)
    assert sheet.stat().st_size > 0 and video.stat().st_size > 0
