"""A killed writer loses at most the episode in hand; readers see whole episodes at every moment."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_trajectories import assert_same, toy_episode, toy_spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets import layout
from vjepa_mpc.datasets.repairing import repair
from vjepa_mpc.datasets.store import ZarrStore

SCRIPT = Path(__file__).with_name("append_until_killed.py")


def start_writer(store: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(store)], stdout=subprocess.PIPE, text=True, env=environment
    )


def assert_whole(store: ZarrStore, known: int = 0) -> None:
    """Every published episode from `known` on is what its seed gives."""
    for index in range(known, len(store)):
        assert_same(store.read(index), toy_episode(index))


def run_and_kill(path: Path, appends: int, delay_s: float) -> int:
    """Let a writer append a few times, watching it as a reader; kill it; return the episodes acknowledged."""
    child = start_writer(path)
    assert child.stdout is not None
    try:
        acknowledged = int(child.stdout.readline())
        reader = ZarrStore.open(path)
        for _ in range(appends):
            acknowledged = int(child.stdout.readline()) + 1
            reader.refresh()
            assert len(reader) >= acknowledged
            assert_whole(reader, len(reader) - 1)
        time.sleep(delay_s)
    finally:
        child.kill()
        rest = child.stdout.read().split("\n")
        child.wait()
    return max([acknowledged, *(int(line) + 1 for line in rest[:-1])])


def kill_many_times(path: Path, kills: int) -> None:
    ZarrStore.create(path, toy_spec()).close()
    chance = random.Random(0)
    for _ in range(kills):
        before = len(ZarrStore.open(path))
        acknowledged = run_and_kill(path, appends=chance.randrange(4), delay_s=chance.uniform(0.0, 0.06))
        store = ZarrStore.open(path)
        assert acknowledged <= len(store) <= acknowledged + 1
        assert_whole(store, before)
    assert_whole(ZarrStore.open(path))
    with ZarrStore.append_to(path) as writer:
        writer.append(toy_episode(len(writer)))
    assert_no_leftovers(path)


def assert_no_leftovers(path: Path) -> None:
    store = ZarrStore.open(path)
    assert not list(path.rglob("*partial*"))
    chunks = sum(-(-int(length) // 4) for length in store.lengths())
    for name in ("images/top", "images/wrist", "states", "actions", "times"):
        assert len(list((path / name).glob("c.*"))) == chunks


def test_killing_the_writer_loses_nothing_acknowledged(tmp_path: Path) -> None:
    kill_many_times(tmp_path / "a.zarr", kills=12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killing_the_writer_fifty_times(tmp_path: Path) -> None:
    kill_many_times(tmp_path / "a.zarr", kills=50)


def test_a_second_writer_is_refused_with_the_first_ones_pid_and_a_dead_one_does_not_block(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.zarr"
    ZarrStore.create(path, toy_spec()).close()
    child = start_writer(path)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(InputError, match=rf"being written by process {child.pid} on host \S+;"):
            ZarrStore.append_to(path)
        holder = layout.writer_of(path)
        assert holder is not None and holder["pid"] == child.pid
        ZarrStore.open(path)  # reading is always allowed
    finally:
        child.kill()
        child.communicate()
    assert layout.writer_of(path) is None
    ZarrStore.append_to(path).close()


def test_two_writers_in_one_process_are_refused(tmp_path: Path) -> None:
    with ZarrStore.create(tmp_path / "a.zarr", toy_spec()), pytest.raises(InputError, match=str(os.getpid())):
        ZarrStore.append_to(tmp_path / "a.zarr")


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_who_is_refused_touches_nothing_of_a_live_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the worst moment: the rows of an episode are written, and not published yet."""
    path, real, asked = tmp_path / "a.zarr", layout.publish, 0
    with ZarrStore.create(path, toy_spec()) as writer:
        writer.append(toy_episode(0, length=6))

        def published(store: Path, table: Any) -> None:
            nonlocal asked
            before = contents(path)
            assert any(name.startswith("states/c.2") for name in before), "there are unpublished chunks"
            who = rf"process {os.getpid()} on host {socket.gethostname()};"
            for attempt in (ZarrStore.append_to, repair):
                with pytest.raises(InputError, match=who):
                    attempt(path)
            assert contents(path) == before
            asked += 1
            real(store, table)

        monkeypatch.setattr(layout, "publish", published)
        writer.append(toy_episode(1, length=7))
    assert asked == 1
    assert_whole_of(ZarrStore.open(path), [6, 7])


def test_a_reader_who_asks_who_writes_keeps_no_writer_out(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    ZarrStore.create(path, toy_spec()).close()
    with (path / layout.LOCK).open() as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)  # as `writer_of` does, for a moment
        timer = threading.Timer(0.2, lambda: fcntl.flock(stream, fcntl.LOCK_UN))
        timer.start()
        ZarrStore.append_to(path).close()
        timer.join()
        fcntl.flock(stream, fcntl.LOCK_SH)
        with pytest.raises(InputError, match="being written by another process"):
            ZarrStore.append_to(path)


def test_a_closed_writer_writes_no_more(tmp_path: Path) -> None:
    writer = ZarrStore.create(tmp_path / "a.zarr", toy_spec())
    writer.close()
    with ZarrStore.append_to(tmp_path / "a.zarr") as other:
        other.append(toy_episode(0))
        with pytest.raises(InputError, match="is closed; open another"):
            writer.append(toy_episode(1))
    assert len(ZarrStore.open(tmp_path / "a.zarr")) == 1


@pytest.mark.parametrize("failing", range(0, 12, 3))
def test_a_full_disk_at_any_flush_keeps_the_earlier_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    path, calls, real = tmp_path / "a.zarr", 0, os.fsync
    with ZarrStore.create(path, toy_spec()) as writer:
        writer.append(toy_episode(0, length=6))

        def full(descriptor: int) -> None:
            nonlocal calls
            calls += 1
            if calls > failing:
                raise OSError(28, "No space left on device")
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(InputError, match=r"No space left on device.* intact"):
                writer.append(toy_episode(1, length=3))
        reader = ZarrStore.open(path)
        assert_whole_of(reader, [6])
        writer.append(toy_episode(1, length=3))  # room was made: the same writer goes on
    assert_whole_of(ZarrStore.open(path), [6, 3])
    assert_no_leftovers(path)


def test_a_write_that_the_system_refuses_is_an_input_error(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.zarr"
    with ZarrStore.create(path, toy_spec(chunk_frames=64)) as writer:
        writer.append(toy_episode(0, length=3))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # noise does not compress: 64 frames are more
        try:
            with pytest.raises(InputError, match="Cannot append"):
                writer.append(toy_episode(1, length=64))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_whole_of(ZarrStore.open(path), [3])


def assert_whole_of(store: ZarrStore, lengths: list[int]) -> None:
    np.testing.assert_array_equal(store.lengths(), lengths)
    for index, length in enumerate(lengths):
        assert_same(store.read(index), toy_episode(index, length=length))
