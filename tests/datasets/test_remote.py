"""Remote stores read like local ones, through a cache that stays small, and never serve what is not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from test_data_command import run
from toy_logs import LENGTHS, write_robomimic
from toy_trajectories import assert_same, toy_episode, toy_spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets import remote
from vjepa_mpc.datasets.clips import ClipDataset
from vjepa_mpc.datasets.remote import RemoteStore, address, fetch_log, open_remote
from vjepa_mpc.datasets.store import ZarrStore

URL = "memory://bucket/logs.zarr"


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    yield
    files = fsspec.filesystem("memory")
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


@pytest.fixture
def local(tmp_path: Path) -> ZarrStore:
    with ZarrStore.create(tmp_path / "a.zarr", toy_spec()) as writer:
        writer.extend([toy_episode(seed, 10) for seed in range(4)])
    return ZarrStore.open(tmp_path / "a.zarr")


def upload(path: Path, url: str = URL, **options: Any) -> None:
    files, root = fsspec.core.url_to_fs(url, **options)
    if files.exists(root):
        files.rm(root, recursive=True)
    for file in path.rglob("*"):
        if file.is_file():
            place = f"{root}/{file.relative_to(path)}"
            files.makedirs(place.rpartition("/")[0], exist_ok=True)
            files.pipe_file(place, file.read_bytes())


def check(store: ZarrStore, local: ZarrStore) -> None:
    assert isinstance(store, RemoteStore) and store.content_hash() == local.content_hash()
    for index in range(len(local)):
        assert_same(store.read(index), local.read(index))
        store.verify(index)


def chunks(store: ZarrStore) -> int:
    return len(list(store.path.rglob("c.*")))


def test_addresses_are_told_from_paths(tmp_path: Path) -> None:
    assert address("s3://bucket/a.zarr/") == "s3://bucket/a.zarr" == address(Path("s3://bucket/a.zarr"))
    assert address("logs.zarr") is None and address(tmp_path) is None and address("/a/b:c") is None


def test_it_reads_what_a_local_store_reads_and_fetches_no_more(local: ZarrStore) -> None:
    upload(local.path)
    store = ZarrStore.open(Path(URL))
    assert chunks(store) == 0
    np.testing.assert_array_equal(store.read_frames(1, "top", 4, 6), toy_episode(1, 10).images["top"][4:6])
    assert chunks(store) == 1
    check(store, local)
    again = ZarrStore.open(URL)
    assert_same(again.read(2), local.read(2))
    clips = [ClipDataset(each, 2, 1, "top").batch(np.arange(5)) for each in (again, local)]
    np.testing.assert_array_equal(clips[0].frames, clips[1].frames)


def test_a_store_that_grew_is_seen_and_one_that_was_replaced_is_not_mixed_up(local: ZarrStore, tmp_path: Path) -> None:
    upload(local.path)
    store = ZarrStore.open(URL)
    check(store, local)
    with ZarrStore.append_to(local.path) as writer:
        writer.append(toy_episode(9, 7))
    upload(local.path)
    before = chunks(store)
    store.refresh()
    assert len(store) == 5 and chunks(store) == before
    assert_same(store.read(4), toy_episode(9, 7))
    with ZarrStore.create(tmp_path / "b.zarr", toy_spec()) as writer:
        writer.extend([toy_episode(seed, 10) for seed in range(20, 24)])
    upload(tmp_path / "b.zarr")
    check(ZarrStore.open(URL), ZarrStore.open(tmp_path / "b.zarr"))


def test_the_cache_stays_below_its_bound(local: ZarrStore, tmp_path: Path) -> None:
    upload(local.path)
    store = open_remote(URL, tmp_path / "cache", most=4000)
    for _ in range(2):
        for index in range(4):
            assert_same(store.read(index), local.read(index))
            assert sum(file.stat().st_size for file in store.path.rglob("c.*")) <= 4000
    other = open_remote(URL, tmp_path / "cache", most=4000)
    with store._locked(remote.fcntl.LOCK_SH):  # somebody reads: nothing is removed, and reading goes on
        assert_same(other.read(3), local.read(3))
        assert_same(other.read(0), local.read(0))


def test_a_missing_chunk_is_named_not_served_as_zeros(local: ZarrStore) -> None:
    upload(local.path)
    fsspec.filesystem("memory").rm("/bucket/logs.zarr/states/c.4.0")
    with pytest.raises(InputError, match=r"chunk states/c\.4\.0 is missing"):
        ZarrStore.open(URL).read(1)


def test_the_commands_take_addresses(local: ZarrStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(local.path)
    monkeypatch.chdir(tmp_path)
    value = json.loads(run("info", URL, "--json"))
    assert value["episodes"] == 4 and value["path"] == URL
    run("view", URL, "--no-check")
    assert (tmp_path / "logs.zarr.html").exists()
    with pytest.raises(InputError, match="can only be read"):
        ZarrStore.append_to(URL)
    with pytest.raises(InputError, match="can only be read"):
        ZarrStore.create(Path(URL), toy_spec())
    with pytest.raises(InputError, match=r"memory://bucket/none\.zarr is no trajectory store"):
        run("info", "memory://bucket/none.zarr")
    with pytest.raises(InputError, match="use an address that fsspec knows"):
        run("info", "nosuch://bucket/none.zarr")
    assert not [path for path in tmp_path.iterdir() if ":" in path.name]


def test_a_remote_log_is_imported(tmp_path: Path) -> None:
    source = write_robomimic(tmp_path / "low.hdf5")
    fsspec.filesystem("memory").pipe_file("/bucket/low.hdf5", source.read_bytes())
    shutil.copy(source, tmp_path / "gone")
    text = run("import", "memory://bucket/low.hdf5", str(tmp_path / "b.zarr"), "--state", "obs/state")
    assert "3 episodes" in text and ZarrStore.open(tmp_path / "b.zarr").lengths().tolist() == list(LENGTHS)
    with pytest.raises(InputError, match="may be kept"):
        fetch_log("memory://bucket/low.hdf5", most=1000)
    with pytest.raises(InputError, match="does not exist"):
        fetch_log("memory://bucket/none")
