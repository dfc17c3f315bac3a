"""The bench's ways all read the same clips, and the bars are computed from one run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vjepa_mpc.cli.bench import app
from vjepa_mpc.data_bench import LENGTH, Speed, bars, make_store, readers


def test_every_way_reads_the_same_clips(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", 64, 2, 12)
    ways = readers(tmp_path, store)
    rows = np.array([0, 3, 8, 12, 17])
    expected = np.stack([store.read_frames(r // 12, "top", r % 12, r % 12 + LENGTH) for r in rows.tolist()])
    assert len(ways) == 7
    for name, (way, path) in ways.items():
        clips = way(rows)
        assert clips.shape == expected.shape and path.exists(), name
        difference = np.abs(clips.astype(int) - expected)
        assert difference.mean() < 8 if "MP4" in name else not difference.any(), name


def test_bars_are_ratios_of_one_run() -> None:
    rates = {"cached clips": 70, "np.memmap": 100, "the store": 15, "plain zarr": 10, "MP4, AV1 (LeRobot's)": 30}
    found = bars([Speed(name, size, rate, 0) for size in (96, 256) for name, rate in rates.items()])
    assert [(bar.ratio, bar.held) for bar in found] == [
        (0.7, True), (1.5, False), (pytest.approx(7 / 3), True), (0.7, True), (1.5, True), (pytest.approx(7 / 3), True),
    ]  # fmt: skip


def test_the_command_prints_speeds_and_bars() -> None:
    arguments = "data --size 64 --episodes 2 --frames 20 --seconds 0.1 --workers 0 --json"
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code in (0, 3), result.output
    value = json.loads(result.stdout)
    assert len(value["speeds"]) == 7 and len(value["bars"]) == 3 and value["same_epoch"]
