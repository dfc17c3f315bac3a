"""The files of caches: made whole by one process while others wait, kept within a size, listed."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import fsync_folder
from vjepa_mpc.datasets.store import ZarrStore

PARTIAL = ".partial"


@dataclass(frozen=True)
class CacheFile:
    """A cache on disk: its size in bytes, when it was last opened (seconds since 1970), and whether it is in use."""

    path: Path
    size: int
    used: float
    in_use: bool


def caches_in(folder: Path) -> list[CacheFile]:
    """The caches in `folder`, unfinished ones too, the one used longest ago first."""
    found = []
    for path in (path for kind in ("frames", "latents") for path in folder.glob(f"{kind}-*.npy*")):
        if path.suffix not in (".npy", PARTIAL):
            continue
        # Who reads a cache holds it; who makes it holds the lock beside it.
        held = path if path.suffix == ".npy" else _lock_of(path.with_suffix(""))
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append(CacheFile(path, status.st_size, status.st_mtime, _is_held(held)))
    return sorted(found, key=lambda cache: cache.used)


def bounded(folder: Path, most: int) -> list[CacheFile]:
    """Remove the caches in `folder` that were used longest ago until at most `most` bytes are left; those in use, by
    any process, stay. Returns what was removed. They can all be made again."""
    caches, removed = caches_in(folder), []
    total = sum(cache.size for cache in caches)
    for cache in caches:
        if total > most and not cache.in_use:
            cache.path.unlink(missing_ok=True)
            if cache.path.suffix == PARTIAL:
                cache.path.with_suffix(".json").unlink(missing_ok=True)
                _lock_of(cache.path.with_suffix("")).unlink(missing_ok=True)
            total -= cache.size
            removed.append(cache)
    return removed


def make_room(target: Path, need: int, most: int | None) -> None:
    """Let a cache of `need` bytes, which is being made, and the others in its folder together take `most` bytes: those
    used longest ago go. `InputError` when that is not enough."""
    if most is None:
        return
    own = next((cache.size for cache in caches_in(target.parent) if cache.path.name == target.name + PARTIAL), 0)
    bounded(target.parent, max(most - need, 0) + own)
    left = sum(cache.size for cache in caches_in(target.parent)) - own
    if left + need > most:
        raise InputError(
            f"The cache {target.name} takes {need / 1e9:.3g} GB, those in use {left / 1e9:.3g} GB, and "
            f"{target.parent} may hold {most / 1e9:.3g} GB; allow more, or name another folder."
        )


def _lock_of(target: Path) -> Path:
    return target.with_name(target.name + ".lock")


def _is_held(path: Path) -> bool:
    """Whether some process has locked a file; one that is not there is not."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock that lies at `path` at this moment, not one that was removed while it was waited for."""
    while True:
        with path.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                yield
                return


@contextlib.contextmanager
def building(target: Path, resumable: bool = False) -> Iterator[Path | None]:
    """Yield the partial file to fill, or None when `target` is there; put it in place afterwards.

    An unfinished file is removed, unless it is `resumable` and was not stopped by the disk. The lock
    makes a second builder wait; the kernel frees it when the first one dies. Its file goes only once the cache
    is there: removed earlier, it would let in a third while the second builds.
    """
    if target.exists():
        yield None
        return
    partial = target.with_name(target.name + PARTIAL)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(_lock_of(target)):
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
            _lock_of(target).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"Cannot make the cache {target}: {error.strerror or error}; make room or name another folder."
        ) from error


def reserve(path: Path) -> None:
    """Claim the disk space of a mapped file now: writing to a map on a full disk kills the process."""
    with path.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, os.fstat(stream.fileno()).st_size)


def cache_of(store: ZarrStore, folder: Path | str | None = None) -> Path:
    """The folder of a store's caches: `folder`, or `<store>.cache` beside it."""
    return Path(folder) if folder is not None else store.path.with_name(store.path.name + ".cache")
