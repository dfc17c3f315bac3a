"""`data repair` makes lost bookkeeping anew, names what is lost for good, and never loses a whole episode."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_data_command import run
from toy_trajectories import assert_same, toy_episode, toy_spec
from typer.testing import CliRunner

from vjepa_mpc.cli.data import app
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets import layout
from vjepa_mpc.datasets.repairing import repair
from vjepa_mpc.datasets.store import ZarrStore


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(params=[0, 8], ids=["chunks", "shards"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    from dataclasses import replace

    with ZarrStore.create(tmp_path / "a.zarr", replace(toy_spec(), shard_frames=request.param)) as writer:
        writer.extend([toy_episode(seed, 3 + 2 * seed) for seed in range(5)])
    return tmp_path / "a.zarr"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def shorten(path: Path) -> None:
    file = path / "times/zarr.json"
    file.write_text(file.read_text().replace('"shape": [', '"shape": [ 3,').replace("[ 3,", "[3]" + ', "was": [', 1))


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no table": (lambda p: (p / layout.ENDS).unlink(), "made anew from their list: 5 episodes"),
    "table torn": (lambda p: cut(p / layout.ENDS), "made anew from their list: 5 episodes"),
    "no description": (lambda p: (p / "images/top/zarr.json").unlink(), "description of images/top"),
    "description torn": (lambda p: cut(p / "states/zarr.json"), "description of states"),
    "array cut": (shorten, "times is"),
    "leftovers": (lambda p: (p / "states/c.99.0").write_bytes(b"x"), "1 files of a dead writer"),
    "unfinished beside": (lambda p: (p.parent / ".a.zarr.x1.partial").mkdir(), "unfinished store beside"),
}


@pytest.mark.parametrize("name", list(BREAKS))
def test_bookkeeping_is_made_anew(path: Path, name: str) -> None:
    damage, words = BREAKS[name]
    damage(path)
    report = repair(path)
    assert any(words in line for line in report.done) and report.episodes == 5 and not report.damaged
    store = ZarrStore.open(path)
    for seed in range(5):
        assert_same(store.read(seed), toy_episode(seed, 3 + 2 * seed))
    assert repair(path).done == () and [entry.name for entry in path.parent.iterdir()] == ["a.zarr"]
    with ZarrStore.append_to(path) as writer:
        writer.append(toy_episode(9))


@pytest.mark.parametrize("keep", [0, 2])
def test_lost_notes_are_said_and_the_numbers_stay(path: Path, keep: int) -> None:
    lines = (path / layout.EPISODES).read_bytes().splitlines(keepends=True)
    (path / layout.EPISODES).write_bytes(b"".join(lines[:keep]) + lines[keep][:10])
    report = repair(path)
    assert f"notes on episodes {keep} to 4 were lost" in report.done[0] and not report.damaged
    store = ZarrStore.open(path)
    for seed in range(5):
        ours, theirs = toy_episode(seed, 3 + 2 * seed), store.read(seed)
        np.testing.assert_array_equal(ours.images["wrist"], theirs.images["wrist"])
        assert theirs.metadata == ({"seed": seed} if seed < keep else {"repaired": "its notes were lost"})


def test_an_unpublished_line_is_not_believed(path: Path) -> None:
    (path / layout.ENDS).unlink()
    with (path / layout.EPISODES).open("ab") as stream:
        stream.write(json.dumps({"length": 4, "digest": "0" * 64, "metadata": {}}).encode() + b"\n")
    assert repair(path).episodes == 5


def test_lost_pictures_are_named_and_everything_lost_is_refused(path: Path) -> None:
    first, _, _ = layout.read_published(path)[2]
    rows = ZarrStore.open(path).spec.file_frames
    (path / f"images/top/c.{first // rows}.0.0.0").unlink()
    shown = CliRunner().invoke(app, ["repair", str(path)])
    assert shown.exit_code == 3 and "Episode 2 cannot be read" in shown.stdout and "4 of 5" in shown.stdout
    assert json.loads(CliRunner().invoke(app, ["repair", str(path), "--json"]).stdout)["damaged"].keys() == {"2"}
    assert "4 episodes" in run("validate", str(path), "--fix", str(path.with_name("b.zarr")))
    shutil.rmtree(path / "meta")
    with pytest.raises(InputError, match="restore either"):
        repair(path)


def test_a_store_being_written_is_left_alone(path: Path) -> None:
    with ZarrStore.append_to(path), pytest.raises(InputError, match="being written"):
        repair(path)
