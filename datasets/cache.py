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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64, UInt8
from torch import Tensor

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.core.files import fsync_folder, read_json, write_json
from vjepa_mpc.datasets.store import ZarrStore

Progress = Callable[[int, int], None]  # called with rows done and rows in all
Encode = Callable[[UInt8[Tensor, "n h w 3"]], Float[Tensor, "n p d"]]

_DECODERS = 4  # episodes unpacked at once
_SAVE_EVERY = 16  # batches between the points from which an interrupted latent cache goes on


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


@dataclass(frozen=True)
class CacheFile:
    """A cache on disk: its size in bytes, when it was last opened (seconds since 1970), and whether it is in use."""

    path: Path
    size: int
    used: float
    in_use: bool


def caches_in(folder: Path) -> list[CacheFile]:
    """The caches in `folder`, the one used longest ago first."""
    found = []
    for path in [*folder.glob("frames-*.npy"), *folder.glob("latents-*.npy")]:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                in_use = False
            except BlockingIOError:
                in_use = True
            found.append(CacheFile(path, status.st_size, status.st_mtime, in_use))
    return sorted(found, key=lambda cache: cache.used)


def bounded(folder: Path, most: int) -> list[CacheFile]:
    """Remove the caches in `folder` that were used longest ago until at most `most` bytes are left; those in use, by
    any process, stay. Returns what was removed. They can all be made again."""
    caches, removed = caches_in(folder), []
    total = sum(cache.size for cache in caches)
    for cache in caches:
        if total > most and not cache.in_use:
            cache.path.unlink(missing_ok=True)
            total -= cache.size
            removed.append(cache)
    return removed


class FrameCache(_MappedRows):
    """One camera's decoded frames, uint8 [rows, height, width, 3]. Make it with `build`."""

    @classmethod
    def build(
        cls,
        store: ZarrStore,
        camera: str | None = None,
        folder: Path | str | None = None,
        progress: Progress | None = None,
    ) -> FrameCache:
        """Open the cache of `camera` (None = the only one), made first if need be.

        It lies in `folder` (None = `<store>.cache` beside the store). A second process that wants the same
        cache waits for the first. `InputError`: no episodes, no such camera, no room on the disk.
        """
        camera, key = only_camera(store, camera), store.content_hash()
        target = cache_of(store, folder) / f"frames-{camera}-{key[:16]}.npy"
        lengths = store.lengths()
        shape = (int(lengths.sum()), *store.spec.cameras[camera], 3)
        if not len(lengths):
            raise InputError(f"{store.path} holds no episodes yet; add some with `vjepa-mpc collect`.")
        with _building(target) as partial:
            if partial is not None:
                rows = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
                _reserve(partial)
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
    """An encoder's latents of every frame, float16 [rows, p, d]. Make it with `build`."""

    @classmethod
    def build(
        cls,
        frames: FrameCache,
        encode: Encode,
        *,
        encoder_hash: str,
        preparation_hash: str,
        folder: Path | str | None = None,
        batch: int = 64,
        progress: Progress | None = None,
    ) -> LatentCache:
        """Open the latents of `frames` under an encoder, computed first if need be.

        `encode`: uint8 frames [n, h, w, 3] -> latents [n, p, d] of any float type, each frame on its own;
        it is called without gradients, always on the same batches of `batch` rows. The file is keyed by the
        store's content, `encoder_hash` and `preparation_hash`, and lies in `folder` (None = beside the
        frames). An interrupted build goes on where it was last saved. `NotFiniteError` when a latent is NaN
        or too large for float16.
        """
        parts = [frames.store_hash, frames.path.name, encoder_hash, preparation_hash]
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        target = Path(frames.path.parent if folder is None else folder) / f"latents-{key[:16]}.npy"
        with _building(target, resumable=True) as partial:
            if partial is not None:
                _encode_all(frames, encode, partial, batch, progress)
        return cls(target, frames.store_hash)

    def take(self, rows: Int64[np.ndarray, "*batch"]) -> Float16[np.ndarray, "*batch p d"]:
        """Copies of the latents in `rows`."""
        return np.asarray(self.rows[rows])


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


def _encode_all(frames: FrameCache, encode: Encode, partial: Path, batch: int, progress: Progress | None) -> None:
    """Fill `partial` with latents, going on from its side file `*.json` when there is one."""
    note = partial.with_suffix(".json")
    done, total, rows = _resume(partial, note, len(frames), batch)
    for number, start in enumerate(range(done, total, batch), 1):
        stop = min(start + batch, total)
        with torch.no_grad():
            latents = encode(torch.from_numpy(np.array(frames.rows[start:stop])))
        values = np.asarray(torch.as_tensor(latents).detach().to("cpu", torch.float16))
        if not np.isfinite(values).all():
            raise NotFiniteError(f"The encoder gave NaN, or more than float16 holds, in frames {start} to {stop}.")
        if values.ndim != 3 or len(values) != stop - start:
            raise InputError(f"encode must return [n, p, d] for {stop - start} frames, got {list(values.shape)}.")
        if rows is None:
            shape = (total, *values.shape[1:])
            rows = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
            _reserve(partial)
        rows[start:stop] = values
        if number % _SAVE_EVERY == 0 and stop < total:
            rows.flush()
            write_json(note, {"rows": stop, "batch": batch})
        if progress is not None:
            progress(stop, total)
    if rows is not None:
        rows.flush()
    note.unlink(missing_ok=True)


def _resume(partial: Path, note: Path, total: int, batch: int) -> tuple[int, int, np.memmap | None]:
    """Rows done, rows in all, and the half-made array; from the start when it cannot be trusted."""
    with contextlib.suppress(InputError, OSError, ValueError, KeyError, TypeError):
        saved = read_json(note)
        rows = np.lib.format.open_memmap(partial, mode="r+")
        if saved["batch"] == batch and 0 < saved["rows"] <= total == len(rows) and rows.dtype == np.float16:
            return int(saved["rows"]), total, rows
    return 0, total, None


@contextlib.contextmanager
def _building(target: Path, resumable: bool = False) -> Iterator[Path | None]:
    """Yield the partial file to fill, or None when `target` is there; put it in place afterwards.

    An unfinished file is removed, unless it is `resumable` and was not stopped by the disk. The lock
    makes a second builder wait; the kernel frees it when the first one dies. Its file goes only once the cache
    is there: removed earlier, it would let in a third while the second builds.
    """
    if target.exists():
        yield None
        return
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(target.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if target.exists():
                yield None
                return
            try:
                yield partial
            except BaseException as error:
                if not resumable or isinstance(error, OSError):
                    partial.unlink(missing_ok=True)
                raise
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(partial, target)
            fsync_folder(target.parent)
            Path(lock.name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"Cannot make the cache {target}: {error.strerror or error}; make room or name another folder."
        ) from error


def _reserve(path: Path) -> None:
    """Claim the disk space of a mapped file now: writing to a map on a full disk kills the process."""
    with path.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, os.fstat(stream.fileno()).st_size)


def cache_of(store: ZarrStore, folder: Path | str | None = None) -> Path:
    """The folder of a store's caches: `folder`, or `<store>.cache` beside it."""
    return Path(folder) if folder is not None else store.path.with_name(store.path.name + ".cache")
