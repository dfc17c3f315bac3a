"""What holds wherever a store lies: the checks that every kind of bucket is put to, at the address `place`."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
from test_data_command import run
from toy_logs import LENGTHS, write_robomimic
from toy_trajectories import assert_same, toy_episode, toy_spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.remote import RemoteStore, fetch_log, open_remote
from vjepa_mpc.datasets.store import ZarrStore


def small_store(path: Path) -> ZarrStore:
    """Three episodes of ten frames, in chunks smaller than an episode."""
    with ZarrStore.create(path, toy_spec(chunk_frames=8)) as writer:
        writer.extend([toy_episode(seed, 10) for seed in range(3)])
    return ZarrStore.open(path)


def upload(path: Path, url: str) -> None:
    # As another process would: what the reader's own file system knows of the place is not told.
    files, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    there = [file for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    files.pipe({f"{root}/{file.relative_to(path)}" if path.is_dir() else root: file.read_bytes() for file in there})


def cached(store: ZarrStore) -> int:
    return sum(file.stat().st_size for file in store.path.rglob("c.*"))


def check_reading(local: ZarrStore, place: str) -> None:
    """No more is fetched than is read, and what was published since is seen."""
    upload(local.path, f"{place}/logs.zarr")
    store = ZarrStore.open(f"{place}/logs.zarr")
    assert isinstance(store, RemoteStore) and cached(store) == 0
    np.testing.assert_array_equal(store.read_frames(1, "top", 2, 4), toy_episode(1, 10).images["top"][2:4])
    assert 0 < cached(store) < 2000
    assert store.content_hash() == local.content_hash()
    for index in range(3):
        assert_same(store.read(index), local.read(index))
        store.verify(index)
    with ZarrStore.append_to(local.path) as writer:
        writer.append(toy_episode(9, 7))
    upload(local.path, f"{place}/logs.zarr")
    store.refresh()
    assert len(store) == 4
    assert_same(store.read(3), toy_episode(9, 7))


def check_bound(local: ZarrStore, place: str, cache: Path) -> None:
    """The cache stays below its bound."""
    upload(local.path, f"{place}/logs.zarr")
    store = open_remote(f"{place}/logs.zarr", cache, most=4000)
    for _ in range(2):
        for index in range(3):
            assert_same(store.read(index), local.read(index))
            assert cached(store) <= 4000


def check_commands(local: ZarrStore, place: str, folder: Path) -> None:
    """`data info` and `data import` take the address; `folder` is the working directory."""
    upload(local.path, f"{place}/logs.zarr")
    assert json.loads(run("info", f"{place}/logs.zarr", "--json"))["episodes"] == 3
    upload(write_robomimic(folder / "low.hdf5"), f"{place}/low.hdf5")
    run("import", f"{place}/low.hdf5", "b.zarr", "--state", "obs/state")
    assert ZarrStore.open("b.zarr").lengths().tolist() == list(LENGTHS)
    assert not [path for path in folder.iterdir() if ":" in path.name]


def check_refusals(local: ZarrStore, place: str) -> None:
    """A chunk, a store, a log and a bucket that are not there: a sentence each."""
    upload(local.path, f"{place}/logs.zarr")
    files, root = fsspec.core.url_to_fs(place, skip_instance_cache=True)
    files.rm(f"{root}/logs.zarr/states/c.2.0")
    with pytest.raises(InputError, match=r"chunk states/c\.2\.0 is missing"):
        ZarrStore.open(f"{place}/logs.zarr").read(1)
    nowhere = f"{place.partition('://')[0]}://no-such-bucket"
    for url in (f"{place}/none.zarr", f"{nowhere}/logs.zarr"):
        with pytest.raises(InputError, match="no trajectory store that can be read"):
            ZarrStore.open(url)
    for url in (f"{place}/none", f"{nowhere}/log"):
        with pytest.raises(InputError, match="does not exist"):
            fetch_log(url)
