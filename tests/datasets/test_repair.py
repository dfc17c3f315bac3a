"""`data repair` makes lost bookkeeping anew, names what is lost for good, and never loses a whole episode."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
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
    with ZarrStore.create(tmp_path / "a.zarr", replace(toy_spec(), shard_frames=request.param)) as writer:
        writer.extend([toy_episode(seed, 3 + 2 * seed) for seed in range(5)])
    return tmp_path / "a.zarr"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    with ZarrStore.create(tmp_path / "a.zarr", toy_spec()) as writer:
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
    "leftovers": (lambda p: (p / "states/c.99.0").write_bytes(b"x"), "1 files past the last episode were moved"),
    "unfinished beside": (lambda p: (p.parent / ".a.zarr.x1_y2_z3.partial").mkdir(), "unfinished store beside"),
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
    assert (path / "meta/aside-1/episodes.jsonl").read_bytes() == b"".join(lines[:keep]) + lines[keep][:10]
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


def test_unfinished_stores_of_others_and_those_being_written_stay(tmp_path: Path) -> None:
    for name in ("logs", ".logs.zarr.partial", ".logs.zarr.ab12cd34.partial", ".logs.12345678.partial"):
        ZarrStore.create(tmp_path / name, toy_spec()).close()
    ZarrStore.create(tmp_path / ".logs.partial", toy_spec()).close()
    with ZarrStore.append_to(tmp_path / ".logs.12345678.partial"):
        report = repair(tmp_path / "logs")
    assert report.done == (".logs.partial, an unfinished store beside it, was removed",)
    stay = ["logs", ".logs.zarr.partial", ".logs.zarr.ab12cd34.partial", ".logs.12345678.partial"]
    assert {entry.name for entry in tmp_path.iterdir()} == set(stay)


def spoil(path: Path, line: int, find: bytes, put: bytes) -> list[bytes]:
    """Replace something in a line of the list; what the list was."""
    lines = (path / layout.EPISODES).read_bytes().splitlines(keepends=True)
    assert find in lines[line]
    torn = [part.replace(find, put, 1) if i == line else part for i, part in enumerate(lines)]
    (path / layout.EPISODES).write_bytes(b"".join(torn))
    return lines


TEARS = {
    "brace": (b"{", b"\x00"),
    "length": (b'"length": 5', b'"length": 7'),
    "length torn": (b'"length"', b'"le\xffgth"'),
    "digest torn": (b'"digest"', b'"di\xffest"'),
    "both torn": (b'"length": 5, "dig', b"\x00" * 17),
    "metadata": (b'"metadata": {', b'"metadata": ['),
    "newline": (b"}\n", b"}}"),
    "shorter": (b'"length": 5, ', b""),
}


@pytest.mark.parametrize("name", list(TEARS))
def test_a_torn_line_without_a_table_loses_no_episode(plain: Path, name: str) -> None:
    path = plain
    lines = spoil(path, 1, *TEARS[name])
    (path / layout.ENDS).unlink()
    chunks = sorted(path.rglob("c.*"))
    report = repair(path)
    assert report.episodes == 5 and not report.damaged and sorted(path.rglob("c.*")) == chunks
    store = ZarrStore.open(path)
    for seed in range(5):
        np.testing.assert_array_equal(toy_episode(seed, 3 + 2 * seed).states, store.read(seed).states)
    after = (path / layout.EPISODES).read_bytes().splitlines(keepends=True)
    kept = [0, 3, 4] if name == "newline" else [0, 2, 3, 4]  # without its newline a line takes the next along
    assert all(after[i] == lines[i] for i in kept)
    assert repair(path).done == ()


@pytest.mark.parametrize("name", list(TEARS))
def test_a_torn_line_costs_no_other_and_hides_no_damage(plain: Path, name: str) -> None:
    path = plain
    first, _, _ = layout.read_published(path)[4]
    rows = ZarrStore.open(path).spec.file_frames
    shutil.copyfile(path / "states/c.0.0", path / f"states/c.{first // rows}.0")
    lines = spoil(path, 1, *TEARS[name])
    torn = (path / layout.EPISODES).read_bytes()
    report = repair(path)
    assert set(report.damaged) == {4} and report.episodes == 5
    after = (path / layout.EPISODES).read_bytes().splitlines(keepends=True)
    assert [after[i] for i in (0, 2, 3, 4)] == [lines[i] for i in (0, 2, 3, 4)]
    assert (path / "meta/aside-1/episodes.jsonl").read_bytes() == torn
    assert repair(path).done == () and set(repair(path).damaged) == {4}


@pytest.mark.parametrize("line", range(5))
def test_a_lost_line_is_the_only_one_lost(tmp_path: Path, line: int) -> None:
    with ZarrStore.create(tmp_path / "a.zarr", toy_spec()) as writer:
        writer.extend([toy_episode(seed, 6) for seed in range(5)])  # lines of equal length
    path = tmp_path / "a.zarr"
    lines = (path / layout.EPISODES).read_bytes().splitlines(keepends=True)
    (path / layout.EPISODES).write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
    assert not repair(path).damaged
    store = ZarrStore.open(path)
    notes = [store.metadata(seed).get("seed") for seed in range(5)]
    assert notes == [None if seed == line else seed for seed in range(5)]


def test_the_times_of_one_clock_do_not_join_episodes(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with ZarrStore.create(path, toy_spec()) as writer:
        for seed in range(4):
            episode = toy_episode(seed, 8)  # fills its two files
            writer.append(replace(episode, times=episode.times + 100.0 * seed))
    spoil(path, 1, b'"length": 8, "digest"', b"\x00" * 21)
    (path / layout.ENDS).unlink()
    assert repair(path).episodes == 4 and ZarrStore.open(path).lengths().tolist() == [8] * 4


def test_an_older_table_deletes_no_newer_episode(path: Path) -> None:
    old = layout.read_published(path)[:2]
    layout.publish(path, old)
    report = repair(path)
    assert report.episodes == 5 and not report.damaged and "3 episodes that were in the list" in report.done[0]
    for seed in range(5):
        assert_same(ZarrStore.open(path).read(seed), toy_episode(seed, 3 + 2 * seed))
    layout.publish(path, old)
    (path / layout.EPISODES).write_bytes((path / layout.EPISODES).read_bytes()[: old[-1, 2]])
    chunks = len(list(path.rglob("c.*")))
    report = repair(path)  # nothing says any more what the chunks are
    assert report.episodes == 2 and "were moved to meta/aside-2" in report.done[0]
    assert len(list(path.rglob("c.*"))) == chunks and len(list((path / "meta/aside-2").rglob("c.*"))) > 0


def test_what_cannot_be_told_is_refused_and_left(plain: Path) -> None:
    path = plain
    first, _, _ = layout.read_published(path)[1]
    rows = ZarrStore.open(path).spec.file_frames
    spoil(path, 1, b'"length": 5, "dig', b"\x00" * 17)
    (path / layout.ENDS).unlink()
    (path / f"times/c.{first // rows}").unlink()
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name[:2] in ("c.", "ep")}
    with pytest.raises(InputError, match="too damaged to tell where episodes begin"):
        repair(path)
    assert before == {file: file.read_bytes() for file in before} and not (path / layout.ENDS).exists()


def test_a_store_being_written_is_left_alone(path: Path) -> None:
    with ZarrStore.append_to(path), pytest.raises(InputError, match="being written"):
        repair(path)
