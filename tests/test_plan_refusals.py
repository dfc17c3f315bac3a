"""`vjepa-mpc plan`: every bad input is refused in one sentence, and nothing is lost or half-written."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from plan_command import FAST, START, run
from tiny_world import save_tiny_model

from vjepa_mpc.planning import known_goal_state
from vjepa_mpc.robots.reacher import reacher_spec


class Explodes:
    def __reduce__(self) -> Any:
        return Path.touch, (Path(os.environ["CANARY"]),)


def broken_goal(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.png"
    if kind == "empty":
        path.touch()
    elif kind == "corrupt":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "text":
        path.write_text("a picture says more than a thousand words")
    elif kind == "huge":
        Image.new("L", (16, 16)).save(path)
        header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
        png = bytearray(path.read_bytes())
        png[12:33] = header + struct.pack(">I", zlib.crc32(header))
        path.write_bytes(png)
    elif kind == "folder":
        path.mkdir()
    return path


def broken_model(kind: str, folder: Path, whole: Path) -> Path:
    if kind == "uncalibrated":
        return save_tiny_model(folder / kind, calibration=None)
    if kind == "bounds":
        return save_tiny_model(folder / kind, robot=reacher_spec(64, delta_limit=0.2))
    copy = folder / kind
    if kind == "nowhere":
        return copy
    shutil.copytree(whole, copy)
    weights = copy / "model.safetensors"
    if kind == "weightless":
        weights.unlink()
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif kind == "pickle":
        os.environ["CANARY"] = str(folder / "canary")
        weights.write_bytes(pickle.dumps(Explodes()))
    elif kind == "config":
        (copy / "config.json").write_text((copy / "config.json").read_text()[:300])
    return copy


def refused(out: Path, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Exit 2, one line on stderr, nothing on stdout, nothing in `out`. The line."""
    before = sorted(out.iterdir()) if out.is_dir() else None
    capsys.readouterr()
    assert run(*arguments, "--out", out) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), shown.err
    assert (sorted(out.iterdir()) if out.is_dir() else None) == before
    return lines[0]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "does not exist"), ("empty", "is empty"), ("corrupt", "damaged picture"),
        ("text", "not a picture"), ("huge", "64 megapixels"), ("folder", "is a folder"),
    ],
)  # fmt: skip
def test_bad_goal(
    kind: str, words: str, tmp_path: Path, goal: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = broken_goal(kind, tmp_path)
    assert words in refused(tmp_path / "out", capsys, "--goal", bad, "--model", tiny_model, *FAST)
    given = ("--goal", goal, "--observation", bad, "--state", "0,0", "--model", tiny_model)
    assert words in refused(tmp_path / "out", capsys, *given)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nowhere", "does not exist"), ("weightless", "no weights"), ("truncated", "not a whole safetensors file"),
        ("pickle", "not a whole safetensors file"), ("config", "not readable JSON"),
        ("uncalibrated", "untrained weights are not planned with"), ("bounds", "action_low = (-0.2, -0.2)"),
    ],
)  # fmt: skip
def test_bad_model(
    kind: str, words: str, tmp_path: Path, goal: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = broken_model(kind, tmp_path, tiny_model)
    line = refused(tmp_path / "out", capsys, "--goal", goal, "--model", bad, "--start", START, *FAST)
    assert words in line
    assert not (tmp_path / "canary").exists(), "a pickle was executed"
    if kind == "bounds":
        assert "the robot has (-0.3, -0.3)" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--horizon", "0"], "horizon"), (["--horizon", "-2"], "horizon"), (["--horizon", "50"], "at most 6 ahead"),
        (["--samples", "3", "--elites", "5"], "5 elites from 3 samples"), (["--samples", "0"], "samples"),
        (["--iterations", "0"], "iterations >= 1"), (["--max-steps", "0"], "--max-steps"), (["--seed", "-1"], "--seed"),
        (["--seed", "one"], "--seed"), (["--threads", "0"], "--threads"),
        (["--planner", "cemm"], "did you mean 'cem'"), (["--planner", "gradient", "--elites", "3"], "no elites"),
        (["--robot", "reachr"], "did you mean 'reacher'"), (["--robot", "nowhere:Robot"], "cannot be imported"),
        (["--backend", "elg"], "did you mean 'egl'"), (["--device", "gpu"], "device"),
        (["--horizn", "3"], "--horizon"), (["--start", "nan,0"], "not finite"), (["--start", "1"], "2 values"),
        (["--start", "1,2,3"], "2 values"), (["--start", "0,3.1"], "outside reacher's range"),
        (["--start", "a,b"], "not a list of numbers"), (["--start", ""], "2 values"),
        (["--goal-state", "0,inf"], "not finite"), (["--start", "9,9"], "if 9 was meant in degrees, give 0.1571"),
        (["--keep-out", "0.1,0.1"], "has 2 of 3 numbers"),
        (["--state", "0,0"], "--observation"), (["--appearance", "-4"], "--appearance"),
    ],
)  # fmt: skip
def test_bad_option(
    arguments: list[str], words: str, tmp_path: Path, goal: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--goal", goal, "--model", tiny_model, "--backend", "rays", "--threads", 1]
    start = [] if "--start" in arguments else ["--start", START]
    assert words in refused(tmp_path / "out", capsys, *base, *start, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs --state"), (["--state", "nan,0"], "not finite"), (["--state", "0"], "2 values"),
        (["--state", "0,0", "--start", "0,0"], "--start is for driving a robot"),
        (["--state", "0,0", "--robot", "reacher"], "--robot is for driving a robot"),
        (["--state", "0,0", "--max-steps", "3"], "--max-steps is for driving"),
        (["--state", "0,0", "--backend", "rays"], "--backend is for driving"),
        (["--state", "0,0", "--watchdog", "3"], "--watchdog is for driving"),
    ],
)  # fmt: skip
def test_bad_observation(
    arguments: list[str], words: str, tmp_path: Path, goal: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--goal", goal, "--model", tiny_model, "--observation", goal, "--threads", 1]
    assert words in refused(tmp_path / "out", capsys, *base, *arguments)


def test_no_goal_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "--goal" in capsys.readouterr().err


def test_unwritable_out(tmp_path: Path, goal: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("--goal", goal, "--model", tiny_model, "--start", START, *FAST)
    (tmp_path / "file").write_text("mine")
    assert "is not a folder" in refused(tmp_path / "file", capsys, *base)
    assert "is not a folder" in refused(tmp_path / "file" / "out", capsys, *base)
    assert (tmp_path / "file").read_text() == "mine"
    assert "Cannot write" in refused(Path("/proc/self/plan/out"), capsys, *base)


def test_disk_full_while_saving_keeps_the_old(
    tmp_path: Path, goal: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.json").write_text("{}")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("vjepa_mpc.core.files.os.replace", full)
    line = refused(
        out, capsys, "--goal", goal, "--model", tiny_model, "--start", START, "--quiet", *FAST
    )
    assert "No space left" in line
    assert (out / "plan.json").read_text() == "{}"


def test_a_gl_back_end_that_does_not_work(
    tmp_path: Path, goal: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vjepa_mpc.robots.rendering._probe", lambda name: "no display")
    base = ("--goal", goal, "--model", tiny_model, "--start", START, "--threads", 1)
    line = refused(tmp_path / "out", capsys, *base, "--backend", "egl")
    assert "'egl' does not work here (no display)" in line and "apt-get install" in line


def test_a_sidecar_of_something_else_is_no_error(tmp_path: Path) -> None:
    picture, sidecar, spec = tmp_path / "goal.png", tmp_path / "goal.json", reacher_spec()
    assert known_goal_state(picture, spec) == (None, None)
    for content in ('{"other": 1}', "[]"):
        sidecar.write_text(content)
        assert known_goal_state(picture, spec) == (None, None)
    for content in ("not json", '{"state": [1]}', '{"state": "x"}', '{"state": [NaN, 0]}', '{"state": [0, 9]}'):
        sidecar.write_text(content)
        state, note = known_goal_state(picture, spec)
        assert state is None and note is not None and "is not used for distances" in note
    for content in ("", "not json", '{"state": [1'):  # as `plan --goal goal.png --json > goal.json` finds it
        sidecar.write_text(content)
        note = str(known_goal_state(picture, spec)[1])
        assert "goal.json beside the goal picture is no JSON" in note and '{"state": [...]}' in note
        assert "Expecting" not in note and "char" not in note
    sidecar.write_text('{"state": [0.5, -1]}')
    state, note = known_goal_state(picture, spec)
    assert state is not None and state.tolist() == [0.5, -1.0] and note is None
    assert known_goal_state(sidecar, spec) == (None, None), "no picture is its own sidecar"
