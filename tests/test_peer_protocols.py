"""`vjepa-mpc bench peers`: others' protocols by imitations of their packages; what is said where they are missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import peer_world
import pytest

from vjepa_mpc.cli.main import main
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.peer_policy import NoOpPeer
from vjepa_mpc.peer_protocols import DatasetProtocol, Recordings, TaskProtocol, drawn
from vjepa_mpc.robots.gymnasium_robot import GymnasiumRobot


def run(*arguments: str, out: Path) -> dict[str, Any]:
    with pytest.raises(SystemExit) as left:
        main(["bench", "peers", *arguments, "--out", str(out)])
    assert left.value.code == 0
    (path,) = out.iterdir()
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def test_a_protocol_with_a_model_leaves_a_file_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer_world.install(monkeypatch)
    record = run(
        "--model", str(tiny_model), "--pairs", "3", "--batch", "2", "--budget", "3", "--goal-offset", "5",
        "--samples", "4", "--iterations", "1", "--elites", "2", "--horizon", "2", out=tmp_path,
    )  # fmt: skip
    assert (tmp_path / "stable-worldmodel_swm-TwoRoom-v1.json").is_file()
    told = record["protocol"]
    assert (told["name"], told["env"], told["goal_offset"], told["budget"]) == (
        "stable-worldmodel", "swm/TwoRoom-v1", 5, 3
    )  # fmt: skip
    assert "recorded here by stable_worldmodel.envs.two_room.ExpertPolicy" in told["starts"]
    assert [row["policy"] for row in record["rows"]] == ["random", "no-op", "cem"]
    for row in record["rows"]:
        assert row["episodes"] == len(row["successes"]) == 3 and row["success"]["count"] == sum(row["successes"])
        assert row["success"]["wilson_high"] > row["success"]["rate"] == sum(row["successes"]) / 3
    assert record["model"]["robot"] == "reacher" and record["model"]["state"] == ["proprio"]
    output = capsys.readouterr()
    assert "Not comparable with `bench`" in output.out and "taken on trust" in output.err


def test_starts_are_drawn_among_those_that_have_a_goal() -> None:
    lengths = np.array([10, 3, 8, 30])
    episodes, starts = drawn(lengths, 5, 33, 0)  # all there are: 5, none, 3 and 25
    assert sorted(zip(episodes.tolist(), starts.tolist(), strict=True)) == [
        (episode, start) for episode, count in ((0, 5), (2, 3), (3, 25)) for start in range(count)
    ]
    one, other = drawn(lengths, 5, 4, 1), drawn(lengths, 5, 4, 2)
    assert np.array_equal(one[1], drawn(lengths, 5, 4, 1)[1]) and not np.array_equal(one, other)
    with pytest.raises(InputError, match="hold 33 starts with a goal 5 steps later, 34 are asked for"):
        drawn(lengths, 5, 34, 0)
    with pytest.raises(InputError, match="0 episodes of at most 0 steps"):
        drawn(np.zeros(0, np.int64), 5, 1, 0)


def test_a_data_set_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded by the package; a column that an environment is set by must be there, whatever stands for a /."""
    peer_world.install(monkeypatch)
    package: Any = sys.modules["stable_worldmodel"]
    data = Recordings()
    recorder = peer_world.Loop("", 2, (8, 8))
    recorder.set_policy(peer_world.Wanderer(0))
    recorder.collect(data, 2, 0, False)
    package.data.load_dataset = {"mine": data}.__getitem__
    protocol = DatasetProtocol("swm/TwoRoom-v1", pairs=2, goal_offset=4, budget=2, data="mine", size=8)
    assert protocol.told()["starts"] == "mine"
    assert [row["episodes"] for row in protocol.play({"no-op": NoOpPeer})] == [2]
    cube = DatasetProtocol("swm/OGBCube-v0", pairs=2, goal_offset=4, budget=2, data="mine", size=8)
    with pytest.raises(InputError, match="has no qpos, which swm/OGBCube-v0 is set by; it has pixels"):
        cube.play({"no-op": NoOpPeer})
    for name in ("qpos", "qvel", "privileged_block_0_pos", "privileged_block_0_quat"):
        for episode in data._episodes:
            episode[name] = episode["proprio"]
    calls: list[Any] = []
    monkeypatch.setattr(peer_world.Loop, "evaluate", lambda self, **given: calls.append(given["callables"]) or {
        "episode_successes": [True, False]
    })  # fmt: skip
    cube.play({"no-op": NoOpPeer})
    (((_, target),),) = (calls,)
    assert target["args"] == {
        "cube_id": {"value": 0, "in_dataset": False},
        "target_pos": {"value": "goal_privileged_block_0_pos", "in_dataset": True},
        "target_quat": {"value": "goal_privileged_block_0_quat", "in_dataset": True},
    }
    with pytest.raises(InputError, match="cannot load the data set yours"):
        DatasetProtocol("swm/TwoRoom-v1", data="yours").play({})


class TwoTasks(gymnasium.Env[np.ndarray, np.ndarray]):
    """Of OGBench's kind: its first task is won by doing nothing, its second never; three steps at most."""

    num_tasks, metadata = 2, {"render_modes": ["rgb_array"], "render_fps": 10}
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.cur_task_id, self.moved, self.steps = render_mode, 0, False, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.cur_task_id, self.moved, self.steps = (options or {}).get("task_id", 1), False, 0
        drawn_goal = np.full((32, 32, 3), 9, np.uint8) if (options or {}).get("render_goal") else None
        return np.zeros(2), {"goal_rendered": drawn_goal, "proprio/effector_pos": np.zeros(2)}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.moved, self.steps = self.moved or bool(action.any()), self.steps + 1
        won = self.cur_task_id == 1 and not self.moved and self.steps == 2
        return np.zeros(2), 0.0, won, self.steps == 3, {"success": won, "proprio/effector_pos": np.zeros(2)}

    def render(self) -> Any:
        return np.zeros((32, 32, 3), np.uint8)


@pytest.fixture
def two_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setitem(sys.modules, "ogbench", ModuleType("ogbench"))
    gymnasium.register("TwoTasks-v0", entry_point=lambda **settings: TwoTasks(**settings))
    yield "TwoTasks-v0"
    gymnasium.registry.pop("TwoTasks-v0", None)


def test_numbered_tasks_with_goal_pictures(two_tasks: str, tmp_path: Path) -> None:
    record = run("--protocol", "ogbench", "--env", two_tasks, "--episodes", "3", out=tmp_path)
    random, still = record["rows"]
    assert (random["success"]["count"], still["success"]["count"], still["episodes"]) == (0, 3, 6)
    assert {task: one["count"] for task, one in still["by_task"].items()} == {"1": 3, "2": 0}
    with GymnasiumRobot(two_tasks, camera_size=16) as robot:
        observation, goal = robot.begin_task(2, 5)
        assert goal.shape == (16, 16, 3) and (goal == 9).all() and not observation.images["view"].any()
        assert not robot.ended
        for _ in range(3):
            robot.apply(np.zeros(2))
        assert robot.ended and robot.info["success"] is False
        for bad in (0, 3):
            with pytest.raises(InputError, match="2 numbered tasks"):
                robot.begin_task(bad, 0)


class Misfit(NoOpPeer):
    """Takes no environment at all."""

    def set_env(self, env: Any) -> None:
        raise InputError("not with me")


def test_a_policy_that_does_not_fit_is_told_before_anything_is_played(
    monkeypatch: pytest.MonkeyPatch, two_tasks: str
) -> None:
    peer_world.install(monkeypatch)
    for kind, way in ((peer_world.Loop, "collect"), (GymnasiumRobot, "begin_task")):
        monkeypatch.setattr(kind, way, lambda self, *_, **__: pytest.fail("something was played"))
    for protocol in (DatasetProtocol("swm/TwoRoom-v1"), TaskProtocol(two_tasks)):
        with pytest.raises(InputError, match="not with me"):
            protocol.play({"no-op": NoOpPeer, "misfit": Misfit})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "stable-worldmodel cannot be used"),
        (["--protocol", "ogbench"], "pip install ogbench"),
        (["--protocol", "metaworld"], "The valid names are ogbench, stable-worldmodel"),
        (["--planner", "cen"], "did you mean 'cem'"),
    ],
)
def test_what_is_missing_is_said(
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("stable_worldmodel", "ogbench"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as left:
        main(["bench", "peers", *arguments, "--out", str(tmp_path)])
    assert left.value.code == 2 and words in " ".join(capsys.readouterr().err.split())


def test_an_environment_that_nobody_can_set_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer_world.install(monkeypatch)
    with pytest.raises(SystemExit) as left:
        main(["bench", "peers", "--env", "swm/PushT-v2", "--out", str(tmp_path)])
    assert left.value.code == 2 and "did you mean 'swm/PushT-v1'" in " ".join(capsys.readouterr().err.split())
