"""The worked example of docs/tasks.md, taken from the page and used as its reader would use it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.factory import find_task, make_robot
from vjepa_mpc.robots.tasks import load_manifest
from vjepa_mpc.robots.two_rooms import TwoRoomsTask

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")


LATE = """from vjepa_mpc.robots.task import Task


class Late(Task):
    spec = sample_pair = distance = script = None

    def __init__(self, camera_size=64, backend="auto"):
        1 / 0
"""


REAL = """from vjepa_mpc.robots.two_rooms import TwoRoomsTask


class Arm:
    spec = None

    def __init__(self, camera_size, backend): ...
    def reset(self, seed=None): ...
    def observe(self): ...
    def apply(self, action): ...
    def stop(self): ...
    def close(self): ...


class Real(TwoRoomsTask):
    robot = "real:Arm"
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    command = [sys.executable, "-m", "vjepa_mpc.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def test_the_pages_task_is_shown_frozen_collected_and_evaluated(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_dial.py").write_text(example, encoding="utf-8")
    task = "my_dial:DialTask"
    shown = run(tmp_path, "tasks", "show", task, "--out", "shown", "--size", "32")
    assert "the script holds" in shown.stdout, shown.stderr
    assert {path.suffix for path in (tmp_path / "shown").iterdir()} == {".png", ".mp4"}
    frozen = run(
        tmp_path, "tasks", "freeze", task, "--split", "mine", "--seed", "1", "--pairs", "4", "--out", "a.json"
    )
    assert "held 4 of 4" in frozen.stdout, frozen.stderr
    collected = run(
        tmp_path, "collect", "--task", task, "--episodes", "2", "--workers", "1", "--frames", "9", "--size", "16",
        "--out", "a.zarr", "--json",
    )  # fmt: skip
    assert json.loads(collected.stdout)["frames"] == 18, collected.stderr
    played = run(tmp_path, "evaluate", "--task", task, "--manifest", "a.json", "--greedy", "--json")
    results = json.loads(played.stdout)["results"]
    assert results["scripted (ceiling)"]["held"]["rate"] == 1.0 and results["no-op"]["held"]["rate"] == 0.0
    assert set(results) == {"random", "no-op", "greedy-pixel", "scripted (ceiling)"}
    again = run(tmp_path, "tasks", "freeze", task, "--split", "mine", "--seed", "2", "--out", "a.json")
    assert again.returncode == 2 and "not replaced" in again.stderr


def test_a_task_without_shipped_pairs_says_how_to_freeze_some() -> None:
    class Mine(TwoRoomsTask):
        robot: ClassVar[str] = "mine"

    with pytest.raises(InputError, match=r"mine has no shipped manifests, .* tasks freeze TASK --split dev"):
        load_manifest("dev", Mine())


@pytest.mark.parametrize(
    ("name", "message"),
    [("push", "did you mean 'push-t'"), ("nowhere:Task", "cannot be imported"), ("collections:Counter", "not a task"),
     ("vjepa_mpc.robots.task:Task", "cannot be built"), ("gymnasium/cube-single-v0", "no goal or success is known"),
     ("torn:Task", r"SyntaxError in .*torn.py, line 1: .*; mend it"),
     ("hasty:Task", r"NameError in .*hasty.py, line 2"),
     ("late:Late", r"cannot be built: ZeroDivisionError in .*late.py, line 8: division by zero; mend it")],
)  # fmt: skip
def test_tasks_that_are_none_are_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torn.py").write_text("class Task(", encoding="utf-8")
    (tmp_path / "hasty.py").write_text("\nTask = later", encoding="utf-8")
    (tmp_path / "late.py").write_text(LATE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=message):
        find_task(name)


def test_a_stranger_s_world_that_fails_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late.py").write_text(LATE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"Robot 'late:Late' cannot be built: ZeroDivisionError in .*late.py, line 8"):
        make_robot("late:Late", camera_size=8)
    with pytest.raises(InputError, match=r"cannot be built with \{'colour': 3\}"):
        make_robot("late:Late", colour=3)


def test_a_package_that_is_broken_hides_no_other_task(tmp_path: Path) -> None:
    installed = tmp_path / "broken-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n", encoding="utf-8")
    (installed / "entry_points.txt").write_text("[vjepa_mpc.tasks]\nlost = no_such_module:Lost\n", encoding="utf-8")
    listed = run(tmp_path, "tasks")
    reason = "Task 'lost' (no_such_module:Lost) cannot be imported"
    assert listed.returncode == 0 and "reacher " in listed.stdout, listed.stderr
    assert f"lost         not here: {reason}" in listed.stdout
    rows = {row["name"]: row for row in json.loads(run(tmp_path, "tasks", "--json").stdout)}
    assert rows["lost"]["missing"].startswith(reason) and rows["reacher"]["missing"] is None
    asked = run(tmp_path, "tasks", "cost", "lost", "--steps", "1")
    assert asked.returncode == 2 and asked.stderr.startswith(f"Error: {reason}")


def test_a_task_of_a_robot_that_cannot_be_placed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real.py").write_text(REAL, encoding="utf-8")
    for command in (("check",), ("show",)):
        said = run(tmp_path, "tasks", *command, "real:Real")
        assert said.returncode == 2 and "real:Arm is no simulated robot" in said.stderr
