"""Stores and logs on Google Cloud Storage, read through gcsfs from an emulator that the test starts (over HTTP on this
machine). Neither package is a dependency: without them these tests are skipped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from bucket_checks import check_bound, check_commands, check_reading, check_refusals, small_store

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
    return small_store(tmp_path / "a.zarr")


def test_a_store_is_read_and_no_more_of_it_fetched_than_is_read(local: ZarrStore, folder: str) -> None:
    check_reading(local, folder)


def test_the_cache_stays_below_its_bound(local: ZarrStore, folder: str, tmp_path: Path) -> None:
    check_bound(local, folder, tmp_path / "cache")


def test_the_commands_take_gs_addresses(
    local: ZarrStore, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_commands(local, folder, tmp_path)


def test_what_cannot_be_read_is_a_sentence(local: ZarrStore, folder: str) -> None:
    check_refusals(local, folder)
