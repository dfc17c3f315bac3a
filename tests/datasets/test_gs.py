"""Stores and logs on Google Cloud Storage, read through gcsfs from an emulator that the test starts (over HTTP on this
machine). Neither package is a dependency: without them these tests are skipped."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from test_data_command import run
from test_remote import chunks, upload
from toy_logs import LENGTHS, write_robomimic
from toy_trajectories import assert_same, toy_episode, toy_spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.remote import RemoteStore, fetch_log, open_remote
from vjepa_mpc.datasets.store import ZarrStore

WHY = "pip install -c constraints.txt gcsfs gcp-storage-emulator"
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # read on import; asks for credentials otherwise
pytest.importorskip("gcsfs", reason=WHY)
pytest.importorskip("gcp_storage_emulator", reason=WHY)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A process of its own, as a real server is; it says when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import sys; from gcp_storage_emulator.server import create_server;"
        f"server = create_server('127.0.0.1', {port}, in_memory=True, default_bucket='bucket'); server.start();"
        "print(flush=True); sys.stdin.read(); server.stop()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None
    try:
        assert child.stdout.readline() == "\n"
        yield f"http://127.0.0.1:{port}"
    finally:
        child.stdin.close()  # its word to stop
        child.wait(timeout=30)


@pytest.fixture
def folder(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A place in the bucket, found by the environment, as gcsfs reads it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # or gcsfs looks for Google's own machines' server
    yield f"gs://bucket/{tmp_path.name}"
    fsspec.get_filesystem_class("gs").clear_instance_cache()


@pytest.fixture
def local(tmp_path: Path) -> ZarrStore:
    with ZarrStore.create(tmp_path / "a.zarr", toy_spec(chunk_frames=8)) as writer:
        writer.extend([toy_episode(seed, 10) for seed in range(3)])
    return ZarrStore.open(tmp_path / "a.zarr")


def test_a_store_is_read_and_no_more_of_it_fetched_than_is_read(local: ZarrStore, folder: str) -> None:
    upload(local.path, f"{folder}/logs.zarr", skip_instance_cache=True)
    store = ZarrStore.open(f"{folder}/logs.zarr")
    assert isinstance(store, RemoteStore) and chunks(store) == 0
    np.testing.assert_array_equal(store.read_frames(1, "top", 2, 4), toy_episode(1, 10).images["top"][2:4])
    assert chunks(store) == 1
    for index in range(3):
        assert_same(store.read(index), local.read(index))
        store.verify(index)
    with ZarrStore.append_to(local.path) as writer:
        writer.append(toy_episode(9, 7))
    upload(local.path, f"{folder}/logs.zarr", skip_instance_cache=True)
    store.refresh()
    assert len(store) == 4
    assert_same(store.read(3), toy_episode(9, 7))


def test_the_cache_stays_below_its_bound(local: ZarrStore, folder: str, tmp_path: Path) -> None:
    upload(local.path, f"{folder}/logs.zarr", skip_instance_cache=True)
    store = open_remote(f"{folder}/logs.zarr", tmp_path / "cache", most=4000)
    for index in (0, 1, 2, 0):
        assert_same(store.read(index), local.read(index))
        assert sum(file.stat().st_size for file in store.path.rglob("c.*")) <= 4000


def test_the_commands_take_gs_addresses(
    local: ZarrStore, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    upload(local.path, f"{folder}/logs.zarr", skip_instance_cache=True)
    assert json.loads(run("info", f"{folder}/logs.zarr", "--json"))["episodes"] == 3
    files, root = fsspec.core.url_to_fs(folder, skip_instance_cache=True)
    files.pipe_file(f"{root}/low.hdf5", write_robomimic(tmp_path / "low.hdf5").read_bytes())
    run("import", f"{folder}/low.hdf5", "b.zarr", "--state", "obs/state")
    assert ZarrStore.open("b.zarr").lengths().tolist() == list(LENGTHS)


def test_what_cannot_be_read_is_a_sentence(local: ZarrStore, folder: str) -> None:
    upload(local.path, f"{folder}/logs.zarr", skip_instance_cache=True)
    files, root = fsspec.core.url_to_fs(folder, skip_instance_cache=True)
    files.rm(f"{root}/logs.zarr/states/c.2.0")
    with pytest.raises(InputError, match=r"chunk states/c\.2\.0 is missing"):
        ZarrStore.open(f"{folder}/logs.zarr").read(1)
    for url in (f"{folder}/none.zarr", "gs://no-such-bucket/logs.zarr"):
        with pytest.raises(InputError, match="no trajectory store that can be read"):
            ZarrStore.open(url)
    for url in (f"{folder}/none", "gs://no-such-bucket/log"):
        with pytest.raises(InputError, match="does not exist"):
            fetch_log(url)
