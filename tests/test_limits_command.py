"""`plan` and `evaluate` with `--ball` and `--rate-limit`: what the shipped model's robot is really sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import plan_command
import pytest
import torch

from vjepa_mpc.cli.main import main
from vjepa_mpc.episodes import Scene

BALL, RATES = ["--ball", "shoulder_delta,wrist_delta=0.2"], ["--rate-limit", "shoulder_delta=0.05"]
QUICK = ["--samples", "12", "--elites", "3", "--iterations", "2", "--backend", "rays"]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[list[np.ndarray]]:
    """The actions applied, one list an episode in the order in which they begin."""
    episodes: dict[int, list[np.ndarray]] = {}
    order: list[list[np.ndarray]] = []
    begin, act = Scene.begin, Scene.act

    def begun(scene: Scene, *given: Any) -> Any:
        episodes[id(scene)] = []
        order.append(episodes[id(scene)])
        return begin(scene, *given)

    def acted(scene: Scene, action: np.ndarray) -> Any:
        moved = act(scene, action)
        episodes[id(scene)].append(moved.applied)
        return moved

    monkeypatch.setattr(Scene, "begin", begun)
    monkeypatch.setattr(Scene, "act", acted)
    return order


def evaluate(*arguments: object) -> None:
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as left:
            main(["evaluate", *QUICK, "--no-floors", *map(str, arguments)])
    finally:
        torch.set_num_threads(threads)
    assert left.value.code == 0


def kept(actions: list[np.ndarray]) -> tuple[float, float]:
    """The largest norm, and the largest change of the first action, from rest on."""
    path = np.stack([np.zeros(2), *actions])
    return float(np.linalg.norm(path, axis=1).max()), float(np.abs(np.diff(path[:, 0])).max())


@pytest.mark.slow
def test_the_shipped_robot_is_sent_what_was_asked_for(
    sent: list[list[np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate("--pairs", 2, "--batch", 2, *BALL, *RATES, "--out", tmp_path)
    evaluate("--pairs", 1, "--knots", "blocks:2", "--legs", 3, *BALL)
    evaluate("--pairs", 1, *BALL)
    evaluate("--pairs", 1)
    first, second, knots, ball, free = map(kept, sent)
    for norm, change in (first, second):
        assert 0.1 < norm <= 0.2 + 1e-6 and 0.05 - 1e-6 <= change <= 0.05 + 1e-6
    for norm, change in (knots, ball):
        assert 0.15 < norm <= 0.2 + 1e-6 and change > 0.1  # legs go in equal steps
    assert free[0] > 0.3 and free[1] > 0.1
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["settings"]["ball"] == BALL[1:] and record["settings"]["rate_limit"] == RATES[1:]
    with pytest.raises(SystemExit) as left:
        main(["evaluate", *QUICK, "--no-floors", *BALL, "--change-limit", "0.1,0.1"])
    assert left.value.code == 2 and "lead out of a --ball" in capsys.readouterr().err


def test_plan_tells_them_and_keeps_them(goal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--goal", goal, "--start", plan_command.START, *QUICK, "--threads", "1", "--quiet", "--out", tmp_path)
    assert plan_command.run(*given, "--max-steps", 6, *BALL, *RATES) in (0, 3)
    record = json.loads((tmp_path / "plan.json").read_text())
    norm, change = kept([np.array(step["applied"]) for step in record["steps"][:6]])
    assert 0.1 < norm <= 0.2 + 1e-6 and change <= 0.05 + 1e-6
    told = record["settings"]["control"]["limits"]
    assert told["balls"] == [{"members": [0, 1], "radius": 0.2}] and told["rates"] == [[0, 0.05]]
    assert plan_command.run(*given, *RATES, "--legs", 3) == 2
    assert "--legs out" in capsys.readouterr().err
