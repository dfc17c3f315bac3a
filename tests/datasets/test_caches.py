"""Caches are whole or absent, are keyed by what they were made from, and resume to the same bytes."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_trajectories import toy_episode, toy_spec

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.datasets import cache_files
from vjepa_mpc.datasets.cache import FrameCache, LatentCache
from vjepa_mpc.datasets.cache_files import bounded, caches_in
from vjepa_mpc.datasets.encoding import Encode, here, whole
from vjepa_mpc.datasets.store import ZarrStore

FRAMES = 90


@pytest.fixture
def frames(tmp_path: Path) -> FrameCache:
    with ZarrStore.create(tmp_path / "a.zarr", toy_spec(chunk_frames=30)) as writer:
        writer.extend([toy_episode(seed, 30) for seed in range(3)])
        return FrameCache.build(writer, "top")


def encode(images: Tensor) -> Tensor:
    """Two tokens of three numbers: the first pixel's colour, and minus it."""
    colour = images[:, 0, 0].float()
    return torch.stack([colour, -colour], dim=1)


class Counting:
    """Counts frames encoded; fails after `limit` of them as if interrupted."""

    def __init__(self, limit: int = 10**9) -> None:
        self.seen, self.limit = 0, limit

    def __call__(self, images: Tensor) -> Tensor:
        if self.seen >= self.limit:
            raise KeyboardInterrupt
        self.seen += len(images)
        return encode(images)


class Killed(Counting):
    """Is killed after `limit` frames."""

    def __call__(self, images: Tensor) -> Tensor:
        if self.seen >= self.limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(images)


def build(frames: FrameCache, function: Encode, **settings: object) -> LatentCache:
    options = {"encoder_hash": "e", "preparation_hash": "p", "batch": 4, **settings}
    return LatentCache.build(frames, here(function), **options)  # type: ignore[arg-type]


def test_frames_are_decoded_once_and_reported(tmp_path: Path, frames: FrameCache) -> None:
    expected = np.concatenate([toy_episode(seed, 30).images["top"] for seed in range(3)])
    np.testing.assert_array_equal(frames.rows, expected)
    assert frames.path.parent == tmp_path / "a.zarr.cache"
    store, calls = ZarrStore.open(tmp_path / "a.zarr"), []
    other = FrameCache.build(store, "top", tmp_path / "elsewhere", lambda done, total: calls.append((done, total)))
    assert calls == [(30, FRAMES), (60, FRAMES), (90, FRAMES)] and other.path.parent == tmp_path / "elsewhere"
    calls.clear()
    FrameCache.build(store, "top", tmp_path / "elsewhere", lambda done, total: calls.append((done, total)))
    assert not calls
    assert sorted(file.suffix for file in (tmp_path / "elsewhere").iterdir()) == [".npy"]


def test_an_interrupted_frame_cache_is_made_again(tmp_path: Path, frames: FrameCache) -> None:
    store = ZarrStore.open(tmp_path / "a.zarr")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FrameCache.build(store, "top", tmp_path / "new", stop)
    assert [file.suffix for file in (tmp_path / "new").iterdir()] == [".lock"]
    np.testing.assert_array_equal(FrameCache.build(store, "top", tmp_path / "new").rows, frames.rows)


def test_latents_are_the_encoders_in_float16(frames: FrameCache) -> None:
    latents = build(frames, encode)
    assert latents.rows.dtype == np.float16 and latents.rows.shape == (FRAMES, 2, 3)
    np.testing.assert_array_equal(latents.rows, encode(torch.from_numpy(frames.rows.copy())).half().numpy())
    rows = np.array([[5, 6], [89, 0]])
    np.testing.assert_array_equal(latents.take(rows), latents.rows[rows])


@pytest.mark.parametrize("killed", [False, True])
def test_latents_resume_where_they_were_saved(tmp_path: Path, frames: FrameCache, killed: bool) -> None:
    """An interruption keeps everything; a process killed after 80 frames was last saved after 16 batches of 4."""
    if killed:
        child = multiprocessing.get_context("fork").Process(target=build, args=(frames, Killed(limit=80)))
        child.start()
        child.join(60)
        assert child.exitcode == -9
    else:
        with pytest.raises(KeyboardInterrupt):
            build(frames, Counting(limit=80))
    (unfinished,) = [cache for cache in caches_in(frames.path.parent) if cache.path.suffix == ".partial"]
    assert not unfinished.in_use
    rest = Counting()
    resumed = build(frames, rest)
    assert rest.seen == FRAMES - (64 if killed else 80)
    straight = build(frames, encode, folder=tmp_path / "straight")
    assert resumed.path.read_bytes() == straight.path.read_bytes()
    again = Counting()
    build(frames, again)
    assert again.seen == 0
    assert not [file for file in resumed.path.parent.iterdir() if "partial" in file.name]


def test_another_encoder_or_preparation_is_another_cache(frames: FrameCache) -> None:
    paths = {
        build(frames, encode, encoder_hash=encoder, preparation_hash=preparation).path
        for encoder in "ab"
        for preparation in "ab"
    }
    assert len(paths) == 4


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_what_float16_cannot_hold_is_loud(frames: FrameCache, value: float) -> None:
    with pytest.raises(NotFiniteError, match="frames 0 to 4"):
        build(frames, lambda images: torch.full((len(images), 1, 1), value))
    assert not list(frames.path.parent.glob("latents-*.npy"))


def test_a_second_builder_waits_and_uses_the_firsts_work(frames: FrameCache) -> None:
    slow, second, entered = Counting(), Counting(), threading.Event()

    def first_encode(images: Tensor) -> Tensor:
        entered.set()
        return slow(images)

    first = threading.Thread(target=build, args=(frames, first_encode))
    first.start()
    assert entered.wait(20)
    latents = build(frames, second)
    first.join()
    assert slow.seen == FRAMES and second.seen == 0 and len(latents) == FRAMES


def test_a_full_disk_is_an_input_error(tmp_path: Path, frames: FrameCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_files.os, "posix_fallocate", full)
    with pytest.raises(InputError, match="No space left on device; make room"):
        FrameCache.build(ZarrStore.open(tmp_path / "a.zarr"), "top", tmp_path / "full")
    assert [file.suffix for file in (tmp_path / "full").iterdir()] == [".lock"]


def test_caches_in_use_stay_and_the_oldest_of_the_others_goes(tmp_path: Path, frames: FrameCache) -> None:
    from test_data_command import run

    first, second = build(frames, encode), build(frames, encode, encoder_hash="another")
    place = frames.path.parent
    sizes = [path.stat().st_size for path in (frames.path, first.path, second.path)]
    assert {cache.path: cache.in_use for cache in caches_in(place)} == dict.fromkeys(place.glob("*.npy"), True)
    assert bounded(place, 0) == []
    for age, path in ((50, frames.path), (90, first.path), (70, second.path)):
        os.utime(path, (1e9 - age, 1e9 - age))
    kept, gone = frames, first.path
    del first
    assert [cache.path for cache in bounded(place, sizes[0] + sizes[2])] == [gone]
    second_path = second.path
    del second
    text = run("caches", str(tmp_path / "a.zarr"), "--most", "0")
    assert f"removed {second_path.name}" in text and "1 caches" in text and "in use" in text
    np.testing.assert_array_equal(kept.take(np.array([3])), kept.rows[3:4])
    build(frames, encode)  # made again
    assert gone.exists()


def test_frames_are_decoded_by_several_threads_to_the_same_rows(tmp_path: Path) -> None:
    with ZarrStore.create(tmp_path / "many.zarr", toy_spec()) as writer:
        writer.extend([toy_episode(seed) for seed in range(40)])
    done: list[int] = []
    cache = FrameCache.build(writer, "top", tmp_path / "c", lambda rows, total: done.append(rows))
    expected = np.concatenate([toy_episode(seed).images["top"] for seed in range(40)])
    np.testing.assert_array_equal(cache.rows, expected)
    assert done == np.cumsum(writer.lengths()).tolist()
    (writer.path / "images/top/c.3.0.0.0").unlink()
    with pytest.raises(InputError, match="is missing"):
        FrameCache.build(writer, "top", tmp_path / "d")
    assert not list((tmp_path / "d").glob("*.npy*partial"))


def test_bfloat16_latents_reach_further_and_are_another_cache(frames: FrameCache) -> None:
    def large(images: Tensor) -> Tensor:
        return encode(images) * 1e6 / 3

    with pytest.raises(NotFiniteError, match="more than fp16 holds"):
        build(frames, large)
    latents = build(frames, large, numbers="bf16")
    expected = large(torch.from_numpy(frames.rows.copy())).bfloat16().float().numpy()
    rows = np.array([[5, 6], [89, 0]])
    np.testing.assert_array_equal(latents.take(rows), expected[rows])
    assert latents.rows.itemsize == 2 and latents.path != build(frames, encode).path
    with pytest.raises(NotFiniteError, match="more than bf16 holds"):
        build(frames, lambda images: torch.full((len(images), 1, 1), 3.4e38), numbers="bf16", encoder_hash="other")
    with pytest.raises(InputError, match="fp8"):
        build(frames, encode, numbers="fp8")


def test_whole_reads_the_bits_of_bfloat16() -> None:
    values = torch.tensor([0.0, -1.5, 3.25, float("inf"), 1e-40, 6.5e37]).bfloat16()
    np.testing.assert_array_equal(whole(values.view(torch.int16).numpy().view(np.uint16)), values.float().numpy())


def test_a_new_cache_makes_room_for_itself(tmp_path: Path, frames: FrameCache) -> None:
    first, place = build(frames, encode), frames.path.parent
    kept, gone, size = frames.path.stat().st_size, first.path, first.path.stat().st_size
    del first
    most = kept + size + 10
    second = build(frames, encode, encoder_hash="second", most=most)
    assert not gone.exists() and second.path.exists()
    # Both others are in use now; the unfinished file of the refused one goes, too.
    with pytest.raises(InputError, match=r"those in use .* may hold .* allow more"):
        build(frames, encode, encoder_hash="third", most=most)
    assert {path.name for path in place.glob("*.npy*")} >= {frames.path.name, second.path.name}
    assert sum(cache.size for cache in caches_in(place)) <= most
    with pytest.raises(InputError, match="allow more"):
        FrameCache.build(ZarrStore.open(tmp_path / "a.zarr"), "wrist", most=most)


def test_what_a_killed_build_left_is_counted_and_goes_first_when_room_is_needed(frames: FrameCache) -> None:
    place = frames.path.parent
    with pytest.raises(KeyboardInterrupt):
        build(frames, Counting(limit=80))
    assert len(bounded(place, 0)) == 1
    assert [path.name for path in place.iterdir()] == [frames.path.name]


def test_a_lock_removed_while_it_was_waited_for_is_not_the_lock(tmp_path: Path) -> None:
    entered, order, path = threading.Event(), [], tmp_path / "a.lock"

    def second() -> None:
        with cache_files._locked(path):
            order.append("second")

    with cache_files._locked(path):
        waiting = threading.Thread(target=second)
        waiting.start()
        entered.wait(0.3)
        path.unlink()
        with path.open("w") as stream:  # a third, with a lock of its own
            fcntl.flock(stream, fcntl.LOCK_EX)
            order.append("third")
            entered.wait(0.1)
    waiting.join()
    assert order == ["third", "second"]
