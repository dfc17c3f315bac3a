"""Stores whose files hold several chunks: fewer files, the same content, damage found all the same."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_logs import LENGTHS, write_pictures
from toy_trajectories import assert_same, toy_episode, toy_spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets import importing
from vjepa_mpc.datasets.cache import FrameCache
from vjepa_mpc.datasets.importing import ImportSettings, prepare
from vjepa_mpc.datasets.store import ZarrStore


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def written(path: Path, shard: int) -> ZarrStore:
    with ZarrStore.create(path, replace(toy_spec(), shard_frames=shard)) as writer:
        writer.append(toy_episode(0, 30))
        writer.extend([toy_episode(seed, 9 + seed) for seed in range(1, 4)])
    return ZarrStore.open(path)


def test_the_content_is_the_same_in_fewer_files(tmp_path: Path) -> None:
    plain, sharded = written(tmp_path / "a.zarr", 0), written(tmp_path / "b.zarr", 12)
    counts = [len(list((store.path / "images/top").glob("c.*"))) for store in (plain, sharded)]
    assert counts == [8 + 3 + 3 + 3, 3 + 1 + 1 + 1]
    assert plain.content_hash() == sharded.content_hash()
    for index in range(4):
        assert_same(plain.read(index), sharded.read(index))
    np.testing.assert_array_equal(sharded.read_frames(0, "top", 13, 15), toy_episode(0, 30).images["top"][13:15])
    np.testing.assert_array_equal(FrameCache.build(plain, "top").rows, FrameCache.build(sharded, "top").rows)
    versions = [json.loads((s.path / "zarr.json").read_text())["attributes"] for s in (plain, sharded)]
    assert [v["schema_version"] for v in versions] == [1, 2] and "shard_frames" not in versions[0]["spec"]


def test_writing_goes_on_and_damage_is_found(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr", 8)
    with ZarrStore.append_to(store.path) as writer:
        writer.append(toy_episode(7, 17))
    store.refresh()
    assert_same(store.read(4), toy_episode(7, 17))
    (store.path / "times/c.1").unlink()
    with pytest.raises(InputError, match=r"chunk times/c\.1 is missing"):
        store.read(0)
    file = store.path / "images/wrist/c.4.0.0.0"
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 255
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"c\.4\.0\.0\.0|not what was written"):
        store.verify(1)
    file.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(InputError, match=r"c\.4\.0\.0\.0 is short or broken"):
        store.read(1)


def test_a_file_is_made_of_whole_chunks() -> None:
    with pytest.raises(InputError, match="multiple of 4"):
        replace(toy_spec(), shard_frames=10)


def test_an_import_that_would_make_very_many_files_puts_chunks_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_pictures(tmp_path / "log")
    settings = ImportSettings(source, tmp_path / "a.zarr", chunk_frames=2)
    assert prepare(settings).spec.shard_frames == 0
    assert prepare(replace(settings, shard_frames=6)).spec.shard_frames == 6
    monkeypatch.setattr(importing, "_MANY_FILES", 20)
    plan = prepare(settings)
    assert plan.spec.shard_frames == 10  # the episode in the middle has 9 frames
    importing.run(plan, lambda names: map(plan.converter.convert, names))
    assert ZarrStore.open(tmp_path / "a.zarr").lengths().tolist() == list(LENGTHS)
    assert len(list((tmp_path / "a.zarr/images/top").glob("c.*"))) == 4
