"""Memory-mapped caches made once from a store: decoded frames, and the latents of an encoder.

Zarr keeps; a memory map trains: random clips come about 50 times faster from one. A cache is a `.npy` file
keyed by a hash of the store's published content, built to `*.partial` and renamed when whole; frame t of
episode i is row `lengths()[:i].sum() + t`. Caches may be deleted at any time: they are made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Int64, UInt8

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.datasets.cache_files import building, cache_of, make_room, reserve
from vjepa_mpc.datasets.encoding import FLOATS, Encoding, Progress, encode_all, whole
from vjepa_mpc.datasets.store import ZarrStore

_DECODERS = 4  # episodes unpacked at once


class _MappedRows:
    """A memory-mapped array whose rows are a store's frames; pickles by its path."""

    def __init__(self, path: Path, store_hash: str) -> None:
        self.path, self.store_hash = path, store_hash
        try:
            # Held as long as this object lives: a cache in use is not removed for room (`bounded`).
            self._use = path.open("rb")
            with contextlib.suppress(OSError):  # a file system without locks; a cache that is another user's
                fcntl.flock(self._use, fcntl.LOCK_SH)
                os.utime(path)
            self.rows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"The cache {path} is damaged ({error}); delete it, it is made again.") from error

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "store_hash": self.store_hash}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["store_hash"])  # type: ignore[misc]


class FrameCache(_MappedRows):
    """One camera's decoded frames, uint8 [rows, height, width, 3]. Make it with `build`."""

    @classmethod
    def build(
        cls,
        store: ZarrStore,
        camera: str | None = None,
        folder: Path | str | None = None,
        progress: Progress | None = None,
        most: int | None = None,
    ) -> FrameCache:
        """Open the cache of `camera` (None = the only one), made first if need be.

        It lies in `folder` (None = `<store>.cache` beside the store). A second process that wants the same
        cache waits for the first. `most`: bytes that all caches in the folder may take with it (None: any); those
        used longest ago go. `InputError`: no episodes, no such camera, no room on the disk or within `most`.
        """
        camera, key = only_camera(store, camera), store.content_hash()
        target = cache_of(store, folder) / f"frames-{camera}-{key[:16]}.npy"
        lengths = store.lengths()
        shape = (int(lengths.sum()), *store.spec.cameras[camera], 3)
        if not len(lengths):
            raise InputError(f"{store.path} holds no episodes yet; add some with `vjepa-mpc collect`.")
        with building(target) as unfinished:
            if unfinished is not None:
                make_room(target, int(np.prod(shape, dtype=np.int64)), most)
                rows = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
                reserve(unfinished)
                _decode_all(store, camera, rows, progress)
                rows.flush()
        return cls(target, key)

    def take(self, rows: Int64[np.ndarray, "*batch"]) -> UInt8[np.ndarray, "*batch h w 3"]:
        """Copies of the frames in `rows`."""
        return np.asarray(self.rows[rows])


class StoreFrames:
    """One camera's frames read straight from a store: for a few clips, where a cache does not pay."""

    def __init__(self, store: ZarrStore, camera: str) -> None:
        self.store, self.camera = store, only_camera(store, camera)
        self.store_hash = store.content_hash()
        self._ends = store.lengths().cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, rows: Int64[np.ndarray, "*batch"]) -> UInt8[np.ndarray, "*batch h w 3"]:
        """Copies of the frames in `rows`, numbered as in a `FrameCache`."""
        episodes = self._ends.searchsorted(rows.ravel(), side="right")
        first = self._ends - self.store.lengths()
        frames = [
            self.store.read_frames(int(episode), self.camera, int(row - first[episode]), int(row - first[episode]) + 1)
            for episode, row in zip(episodes, rows.ravel(), strict=True)
        ]
        return np.concatenate(frames).reshape(*rows.shape, *frames[0].shape[1:])


class LatentCache(_MappedRows):
    """An encoder's latents of every frame [rows, p, d], in float16 or bfloat16. Make it with `build`."""

    @classmethod
    def build(
        cls,
        frames: FrameCache,
        encoding: Encoding,
        *,
        encoder_hash: str,
        preparation_hash: str,
        folder: Path | str | None = None,
        batch: int = 64,
        numbers: str = "fp16",
        progress: Progress | None = None,
        most: int | None = None,
    ) -> LatentCache:
        """Open the latents of `frames` under an encoder, computed first if need be.

        `encoding`: who encodes, frames uint8 [n, h, w, 3] to latents [n, p, d] of any float type, each on its
        own, always in the same batches of `batch` rows: `here(encode)`, or several workers. The file is keyed by the
        store's content, `encoder_hash`, `preparation_hash` and `numbers` ("fp16" or "bf16"), not by who encodes, and
        lies in `folder` (None = beside the frames). An interrupted build goes on where it was last saved; a second
        process that wants the same cache waits. `most` as for frames. `NotFiniteError` when a latent is NaN
        or too large for its numbers.
        """
        if numbers not in FLOATS:
            raise unknown_name("kind of numbers", numbers, FLOATS)
        parts = [frames.store_hash, frames.path.name, encoder_hash, preparation_hash]
        parts += [numbers] if numbers != "fp16" else []
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        target = Path(frames.path.parent if folder is None else folder) / f"latents-{key[:16]}.npy"
        with building(target, resumable=True) as unfinished:
            if unfinished is not None:
                room = partial(make_room, target, most=most)
                encode_all(frames.rows, encoding, numbers, unfinished, batch, progress, room)
        return cls(target, frames.store_hash)

    def take(
        self, rows: Int64[np.ndarray, "*batch"]
    ) -> Float16[np.ndarray, "*batch p d"] | Float32[np.ndarray, "*batch p d"]:
        """Copies of the latents in `rows`: float16 as they are, bfloat16 as float32, which numpy has."""
        return np.asarray(whole(self.rows[rows]))


def _decode_all(store: ZarrStore, camera: str, rows: np.memmap, progress: Progress | None) -> None:
    """Fill `rows` with a camera's frames, several episodes at once: unpacking leaves other threads running."""
    ends = np.cumsum(store.lengths())

    def decode(index: int) -> int:
        frames = store.read_frames(index, camera)
        rows[ends[index] - len(frames) : ends[index]] = frames
        return int(ends[index])

    with ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1)) as pool:
        try:
            for done in pool.map(decode, range(len(ends))):
                if progress is not None:
                    progress(done, len(rows))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # do not finish what nobody waits for
            raise


def only_camera(store: ZarrStore, camera: str | None) -> str:
    """`camera`, or the store's only one; `InputError` listing them otherwise."""
    names = sorted(store.spec.cameras)
    if camera is None and len(names) == 1:
        return names[0]
    if camera not in names:
        raise InputError(f"{store.path} has cameras {', '.join(names)}; name one of them, got {camera!r}.")
    return camera
