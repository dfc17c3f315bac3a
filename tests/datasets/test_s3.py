"""Stores and logs on S3, read through s3fs from a server that the test starts (moto's, over HTTP on this machine)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from bucket_checks import check_bound, check_commands, check_reading, check_refusals, small_store, upload

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.remote import fetch_log
from vjepa_mpc.datasets.store import ZarrStore

WHY = "belongs to the test extra: pip install -c constraints.txt '.[test]'"
pytest.importorskip("moto", reason=f"moto {WHY}")
pytest.importorskip("s3fs", reason=f"s3fs {WHY}")
pytest.importorskip("flask_cors", reason=f"flask-cors {WHY}")

SETTINGS = {
    "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}  # fmt: skip


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A process of its own, as a real server is: it says its port once it answers."""
    code = (
        "import sys; from moto.server import ThreadedMotoServer as Server;"
        "server = Server(ip_address='127.0.0.1', port=0, verbose=False); server.start();"
        "print(server.get_host_and_port()[1], flush=True); sys.stdin.read(); server.stop()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(child.stdout.readline())}"
    finally:
        child.stdin.close()  # its word to stop
        child.wait(timeout=30)


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket, found as a user's own configuration says: by the environment, as s3fs reads it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for name, value in {**SETTINGS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    name = tmp_path.name.replace("_", "-").lower()[:60].strip("-")
    fsspec.filesystem("s3").mkdir(name)
    yield f"s3://{name}"
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def local(tmp_path: Path) -> ZarrStore:
    return small_store(tmp_path / "a.zarr")


def test_a_store_is_read_and_no_more_of_it_fetched_than_is_read(local: ZarrStore, bucket: str) -> None:
    check_reading(local, bucket)


def test_the_cache_stays_below_its_bound(local: ZarrStore, bucket: str, tmp_path: Path) -> None:
    check_bound(local, bucket, tmp_path / "cache")


def test_the_commands_take_s3_addresses(
    local: ZarrStore, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_commands(local, bucket, tmp_path)


def test_a_log_that_grew_is_fetched_again_and_only_what_is_new(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "one").write_bytes(b"1" * 10)
    upload(tmp_path / "log", f"{bucket}/log")
    place = fetch_log(f"{bucket}/log")
    first = (place / "one").stat().st_mtime_ns
    (tmp_path / "log" / "two").write_bytes(b"2" * 20)
    upload(tmp_path / "log", f"{bucket}/log")
    assert fetch_log(f"{bucket}/log") == place
    assert (place / "two").read_bytes() == b"2" * 20 and (place / "one").stat().st_mtime_ns == first


def test_marks_of_folders_and_odd_names_are_no_obstacle(bucket: str, tmp_path: Path) -> None:
    files: Any = fsspec.filesystem("s3")
    named = {"": b"", "sub/": b"", "sub/a.txt": b"a", "\u00fc b#%20?.txt": b"b"}
    for name, data in named.items():  # the first two are what a web console leaves where it made a folder
        files.call_s3("put_object", Bucket=bucket[5:], Key=f"log/{name}", Body=data)
    place = fetch_log(f"{bucket}/log")
    found = {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}
    assert found == {"sub/a.txt": b"a", "\u00fc b#%20?.txt": b"b"}
    for name in ("x", "x/y"):
        files.call_s3("put_object", Bucket=bucket[5:], Key=f"both/{name}", Body=b"1")
    with pytest.raises(InputError, match="x/y lies below another file"):
        fetch_log(f"{bucket}/both")
    files.call_s3("put_object", Bucket=bucket[5:], Key="out/a/../../../evil", Body=b"1")
    with pytest.raises(InputError, match="lies outside of it"):
        fetch_log(f"{bucket}/out")


def test_what_cannot_be_read_is_a_sentence(
    local: ZarrStore, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_refusals(local, bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody answers
    fsspec.filesystem("s3").clear_instance_cache()
    started = time.monotonic()
    with pytest.raises(InputError, match=r"cannot be read .*check address, network and credentials"):
        ZarrStore.open(f"{bucket}/other.zarr")
    assert time.monotonic() - started < 60
