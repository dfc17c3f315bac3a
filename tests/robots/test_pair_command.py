"""`vjepa-mpc tasks pair`: a start and goal pictures to plan between."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vjepa_mpc.robots.factory import find_task, make_robot
from vjepa_mpc.showcase import write_pair


def test_a_pair_is_what_the_task_draws_and_what_plan_is_told(tmp_path: Path) -> None:
    line = "-m", "vjepa_mpc", "tasks", "pair", "push-t", "--seed", "3", "--size", "32", "--out", tmp_path / "pair"
    ran = subprocess.run([sys.executable, *line], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    printed = ran.stdout
    start, goal = find_task("push-t").sample_pair(np.random.default_rng(3))
    with make_robot("push-t", camera_size=32) as robot:
        for name, state in (("start", start), ("goal", goal)):
            picture = np.asarray(Image.open(tmp_path / f"pair/{name}.png"))
            np.testing.assert_array_equal(picture, robot.place(state).images["top"])
    np.testing.assert_allclose(json.loads((tmp_path / "pair/goal.json").read_text())["state"], goal, atol=1e-6)
    assert not (tmp_path / "pair/start.json").exists()
    said = printed.split('--start="')[1].split('"')[0]
    np.testing.assert_allclose([float(value) for value in said.split(",")], start, atol=1e-5)
    assert printed.strip().endswith(f"--goal {tmp_path / 'pair/goal.png'}")


def test_sub_goals_are_shown_in_order(tmp_path: Path) -> None:
    task = find_task("reacher")
    start, goal = task.sample_pair(np.random.default_rng(0))
    between = (start + goal) / 2

    class ByWay(type(task)):  # type: ignore[misc]
        def sub_goals(self, start: np.ndarray, goal: np.ndarray) -> Any:
            (last,) = task.sub_goals(start, goal)
            return (type(last)(between, 5), last)

    with make_robot("reacher", camera_size=16) as robot:
        _, goals = write_pair(robot, ByWay(), tmp_path, 0)
    assert [path.name for path in goals] == ["goal-1.png", "goal.png"]
    np.testing.assert_allclose(list(goals.values()), [between, goal], atol=1e-6)
