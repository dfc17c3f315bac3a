"""`bench rollout`: both of our ways give the same energies, and the published code is only taken from a clone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from vjepa_mpc.cli.main import build_app
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.rollout_bench import RolloutCase, RolloutTimes, _cached, _made, _plain, measure, summary

SMALL = RolloutCase(horizon=3, width=24, depth=2, heads=2, grid=2, latent_dim=10, candidates=5, chunk=2)


def test_cached_and_plain_judge_alike() -> None:
    predictor, context, goal, actions = _made(SMALL)
    with torch.no_grad():
        cached, plain = _cached(predictor, context, goal, actions, 2), _plain(predictor, context, goal, actions)
    torch.testing.assert_close(cached, plain, rtol=0, atol=1e-5)


def test_times_and_ratios() -> None:
    times = measure(SMALL, repeats=1)
    assert min(times.cached + times.other) > 0 and not times.published and times.difference is None
    assert times.ratio() == times.other[0] / times.cached[0] == pytest.approx(summary([times]))
    assert times.bar() is None


def test_the_ratio_is_the_median_of_pairs_and_bars_are_for_the_usual_shape() -> None:
    times = RolloutTimes(RolloutCase(2), (1.0, 2.0, 1.0), (2.0, 8.0, 3.0), True, 0.0)
    assert times.ratio() == 3 and times.ratio_of_least() == 2 and times.bar() == 2.0
    assert dataclasses.replace(times, case=RolloutCase(2, width=768)).bar() is None
    assert dataclasses.replace(times, published=False).bar() is None


def test_the_command(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    shape = ("--width", "24", "--depth", "1", "--heads", "2", "--grid", "2", "--latent", "10", "--candidates", "3")
    arguments = ["bench", "rollout", *shape, "--horizon", "1", "--horizon", "2", "--repeats", "1", "--threads", "1"]
    result = CliRunner().invoke(build_app(), [*arguments, "--out", str(tmp_path), "--json"])
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rollout.json").read_text())["rows"]
    assert [(row["case"]["precision"], row["case"]["horizon"]) for row in rows] == [
        ("float32", 1), ("float32", 2), ("bfloat16", 1), ("bfloat16", 2),
    ]  # fmt: skip


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no clone of facebookresearch/vjepa2"):
        measure(SMALL, 1, tmp_path)
    with pytest.raises(InputError, match="did you mean 'float32'"):
        RolloutCase(horizon=1, precision="float23")
    with pytest.raises(InputError, match="2 candidates"):
        RolloutCase(horizon=1, candidates=1)
