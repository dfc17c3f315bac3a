"""The bench's ways all read the same clips, and the bars are computed from one run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vjepa_mpc import data_peers
from vjepa_mpc.cli.bench import app
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.data_bench import LENGTH, Speed, bars, make_store, readers
from vjepa_mpc.data_peers import Reader, peer_reader
from vjepa_mpc.datasets.store import ZarrStore


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


def exact(store: ZarrStore, folder: Path, length: int) -> tuple[Reader, Path]:
    """A peer that gives what it was given, as floats with the channels first would be."""
    frames = np.concatenate([store.read_frames(index, "top") for index in range(len(store))])

    def read(rows: np.ndarray) -> np.ndarray:
        return np.stack([data_peers._bytes(frames[r : r + length].transpose(0, 3, 1, 2) / 255) for r in rows])

    return read, store.path


def broken(store: ZarrStore, folder: Path, length: int) -> tuple[Reader, Path]:
    raise RuntimeError("no decoder\nat all")


def test_peers_are_measured_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_peers, "PEERS", {"lerobot": exact})
    arguments = "data --size 64 --episodes 2 --frames 20 --seconds 0.1 --workers 0 --peer lerobot --json"
    result = CliRunner().invoke(app, arguments.split())
    value = json.loads(result.stdout)
    assert [speed["name"] for speed in value["speeds"]][-1] == "peer: lerobot"
    assert value["bars"][-1]["text"] == "cached clips / peer: lerobot, 64 px"


def test_a_peer_that_is_absent_fails_or_lies_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "a.zarr", 64, 2, 8)
    with pytest.raises(InputError, match="lerobot"):
        peer_reader("lerobo", store, tmp_path, LENGTH)
    monkeypatch.setitem(sys.modules, "stable_worldmodel", None)
    with pytest.raises(InputError, match=r"lance cannot be used: .* install stable-worldmodel"):
        peer_reader("lance", store, tmp_path, LENGTH)
    others = make_store(tmp_path / "b.zarr", 64, 2, 9)
    lying = {"broken": broken, "other": lambda _, folder, length: exact(others, folder, length + 1)}
    monkeypatch.setattr(data_peers, "PEERS", lying)
    with pytest.raises(InputError, match=r"broken fails \(RuntimeError: no decoder\)\."):
        peer_reader("broken", store, tmp_path, LENGTH)
    with pytest.raises(InputError, match="gives other pictures"):
        peer_reader("other", store, tmp_path, LENGTH)


def test_the_command_prints_speeds_and_bars() -> None:
    arguments = "data --size 64 --episodes 2 --frames 20 --seconds 0.1 --workers 0 --json"
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code in (0, 3), result.output
    value = json.loads(result.stdout)
    assert len(value["speeds"]) == 7 and len(value["bars"]) == 3 and value["same_epoch"]
