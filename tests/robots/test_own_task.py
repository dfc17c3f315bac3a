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
from vjepa_mpc.robots.factory import find_task
from vjepa_mpc.robots.tasks import load_manifest
from vjepa_mpc.robots.two_rooms import TwoRoomsTask

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")


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
     ("hasty:Task", r"NameError in .*hasty.py, line 2")],
)  # fmt: skip
def test_tasks_that_are_none_are_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torn.py").write_text("class Task(", encoding="utf-8")
    (tmp_path / "hasty.py").write_text("\nTask = later", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=message):
        find_task(name)
