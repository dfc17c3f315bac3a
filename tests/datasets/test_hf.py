"""Stores and logs on the Hugging Face hub, read through `HfFileSystem` from a small server that speaks the few requests
it makes (its HTTP interface: what a repository is, its tree, its files by ranges)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec
import numpy as np
import pytest
from toy_logs import LENGTHS, write_lerobot_v3
from toy_trajectories import assert_same, toy_episode, toy_spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.remote import fetch_log, open_remote
from vjepa_mpc.datasets.store import ZarrStore

REPOSITORY = "datasets/somebody/logs"
COMMIT = "0" * 39 + "1"


class Hub(ThreadingHTTPServer):
    """Serves `folder` as the one dataset repository there is, branch `main`. `asked`: the files read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.folder = folder
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Requests(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        place = unquote(urlsplit(self.path).path).strip("/")
        api, tree, files = f"api/{REPOSITORY}", f"api/{REPOSITORY}/tree/main", f"{REPOSITORY}/resolve/main/"
        if place in (api, f"{api}/revision/main"):
            self.answer({"_id": "1", "id": REPOSITORY.partition("/")[2], "sha": COMMIT, "siblings": [], "tags": []})
        elif place == tree or place.startswith(f"{tree}/"):
            self.tree(self.server.folder / place[len(tree) :].strip("/"))
        elif place.startswith(files):
            self.file(self.server.folder / place[len(files) :])
        else:
            self.missing("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        places = [self.server.folder / path for path in asked["paths"]]
        self.answer([self.entry(place) for place in places if place.exists()])

    def tree(self, folder: Path) -> None:
        if not folder.is_dir():
            return self.missing("EntryNotFound")
        deep = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        self.answer([self.entry(path) for path in sorted(folder.rglob("*") if deep else folder.iterdir())])

    def entry(self, path: Path) -> dict[str, Any]:
        name, kind = str(path.relative_to(self.server.folder)), "directory" if path.is_dir() else "file"
        return {"type": kind, "oid": "0" * 40, "size": 0 if path.is_dir() else path.stat().st_size, "path": name}

    def file(self, path: Path) -> None:
        if not path.is_file():
            return self.missing("EntryNotFound")
        self.server.asked.append(str(path.relative_to(self.server.folder)))
        data, asked = path.read_bytes(), self.headers.get("Range")
        first, last = 0, len(data) - 1
        if asked:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        about = {"ETag": '"1"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if asked:
            about["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self.send(206 if asked else 200, data[first : last + 1], about)

    def missing(self, code: str) -> None:
        self.send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": "not found"})

    def answer(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, data: bytes, about: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **about}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server. The package reads HF_ENDPOINT when it is imported: here it is told its address as an option."""
    (tmp_path / "hub").mkdir()
    server = Hub(tmp_path / "hub")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    yield server
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    server.shutdown()
    server.server_close()


def test_a_store_is_read_and_no_more_of_it_fetched_than_is_read(hub: Hub) -> None:
    with ZarrStore.create(hub.folder / "logs.zarr", toy_spec(chunk_frames=8)) as writer:
        writer.extend([toy_episode(seed, 10) for seed in range(3)])
    local = ZarrStore.open(hub.folder / "logs.zarr")
    store = open_remote(f"hf://{REPOSITORY}/logs.zarr", endpoint=hub.url)
    np.testing.assert_array_equal(store.read_frames(1, "top", 2, 4), toy_episode(1, 10).images["top"][2:4])
    assert [name for name in hub.asked if "/c." in name] == ["logs.zarr/images/top/c.2.0.0.0"]
    assert store.content_hash() == local.content_hash()
    for index in range(3):
        assert_same(store.read(index), local.read(index))
        store.verify(index)


def test_a_store_that_grew_is_seen(hub: Hub) -> None:
    with ZarrStore.create(hub.folder / "logs.zarr", toy_spec()) as writer:
        writer.append(toy_episode(0, 10))
        store = open_remote(f"hf://{REPOSITORY}/logs.zarr", endpoint=hub.url)
        assert_same(store.read(0), toy_episode(0, 10))
        writer.append(toy_episode(9, 7))
    store.refresh()
    assert len(store) == 2
    for index, episode in enumerate((toy_episode(0, 10), toy_episode(9, 7))):
        assert_same(store.read(index), episode)
        store.verify(index)


def test_a_missing_chunk_and_a_missing_repository_are_sentences(hub: Hub) -> None:
    with ZarrStore.create(hub.folder / "logs.zarr", toy_spec(chunk_frames=8)) as writer:
        writer.extend([toy_episode(seed, 10) for seed in range(2)])
    (hub.folder / "logs.zarr/states/c.2.0").unlink()
    with pytest.raises(InputError, match=r"chunk states/c\.2\.0 is missing"):
        open_remote(f"hf://{REPOSITORY}/logs.zarr", endpoint=hub.url).read(1)
    for url in (f"hf://{REPOSITORY}/none.zarr", "hf://datasets/nobody/logs/logs.zarr"):
        with pytest.raises(InputError, match="no trajectory store that can be read"):
            open_remote(url, endpoint=hub.url)
    for url in (f"hf://{REPOSITORY}/none", "hf://datasets/nobody/logs"):
        with pytest.raises(InputError, match="does not exist"):
            fetch_log(url, endpoint=hub.url)


def test_a_log_is_fetched_once_and_imported_by_the_command(hub: Hub, tmp_path: Path) -> None:
    write_lerobot_v3(hub.folder, "libx264")
    place = fetch_log(f"hf://{REPOSITORY}", endpoint=hub.url)
    assert sorted(hub.asked) == sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    before = len(hub.asked)
    environment = {**os.environ, "HF_ENDPOINT": hub.url}
    command = [sys.executable, "-m", "vjepa_mpc", "data", "import", f"hf://{REPOSITORY}", "a.zarr"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ZarrStore.open(tmp_path / "a.zarr").lengths().tolist() == list(LENGTHS)
    assert len(hub.asked) == before  # what is there is not fetched again


def test_a_log_deep_in_a_repository_that_grew_is_fetched_again(hub: Hub) -> None:
    (hub.folder / "deep").mkdir()
    (hub.folder / "deep/one").write_bytes(b"1")
    place = fetch_log(f"hf://{REPOSITORY}/deep", endpoint=hub.url)
    (hub.folder / "deep/one").write_bytes(b"12")
    assert fetch_log(f"hf://{REPOSITORY}/deep", endpoint=hub.url) == place
    assert (place / "one").read_bytes() == b"12"
