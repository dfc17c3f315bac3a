"""The files of a trajectory store that are not arrays: what is published, who writes, what is left over.

The rule that makes a store crash-safe: rows and metadata are written and flushed first, past everything
published; then `meta/episode_ends.npy` is replaced whole. Readers trust only that file. No published byte
is ever written again: every episode starts on a chunk boundary, so that chunks are never shared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from jaxtyping import Int64

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import atomic_path, fsync_folder

FORMAT = "vjepa-mpc trajectories"
ENDS = Path("meta/episode_ends.npy")
EPISODES = Path("meta/episodes.jsonl")
LOCK = Path("meta/writer.lock")
_PATIENCE_S = 1.0


def read_published(store: Path) -> Int64[np.ndarray, "n 3"]:
    """The published table: one row an episode with its first row, its end row (exclusive) in the arrays,
    and the end of its line in `meta/episodes.jsonl` in bytes. `InputError` when missing or cut short."""
    path = store / ENDS
    try:
        with path.open("rb") as stream:
            table = np.lib.format.read_array(stream, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{store} has lost {ENDS}, which says what is in it; restore the store.") from error
    except (OSError, ValueError, EOFError, MemoryError, OverflowError, SyntaxError, TokenError) as error:
        raise InputError(f"{path} is damaged ({error}); restore the store from a copy.") from error
    if table.ndim != 2 or table.shape[1] != 3 or table.dtype != np.int64:
        raise InputError(f"{path} is of another schema ({table.dtype} {list(table.shape)}).")
    return np.asarray(table)


def publish(store: Path, table: Int64[np.ndarray, "n 3"]) -> None:
    """Make `table` what readers see: temporary file, flush to disk, replace."""
    with atomic_path(store / ENDS) as temporary, temporary.open("wb") as stream:
        np.save(stream, table, allow_pickle=False)


def write_lines(store: Path, offset: int, lines: bytes) -> None:
    """Put metadata `lines` at byte `offset` (the published end), dropping what a dead writer left."""
    with (store / EPISODES).open("r+b") as stream:
        stream.seek(offset)
        stream.write(lines)
        stream.truncate()
        stream.flush()
        os.fsync(stream.fileno())


def flush(files: Sequence[Path]) -> None:
    """Flush files and the folders that list them to disk; several at once, which file systems merge."""
    with ThreadPoolExecutor(min(8, len(files))) as pool:
        list(pool.map(_flush_file, files))
    for folder in {file.parent for file in files}:
        fsync_folder(folder)


def _flush_file(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def chunk_file(array: Path, chunk: int, dimensions: int) -> Path:
    """Where chunk number `chunk` along the rows lies (Zarr's default key encoding with separator ".")."""
    return array / ".".join(["c", str(chunk), *["0"] * (dimensions - 1)])


def remove_leftovers(store: Path, arrays: Iterable[Path], chunks: int) -> None:
    """Remove what a dead or failed writer left: chunks from number `chunks` on, and unfinished files."""
    for array in arrays:
        for entry in os.scandir(array):
            parts = entry.name.split(".")
            number = int(parts[1]) if parts[0] == "c" and len(parts) > 1 and parts[1].isdecimal() else -1
            if parts[-1] == "partial" or number >= chunks:
                Path(entry.path).unlink(missing_ok=True)
    for folder in (store, store / "meta", store / "images"):
        for entry in os.scandir(folder):
            if ".partial" in entry.name and entry.is_file():
                Path(entry.path).unlink(missing_ok=True)


def acquire_lock(store: Path) -> IO[str]:
    """Become the one writer of `store`, or `InputError` naming who is. The kernel frees the lock of a dead
    process, so a killed writer never blocks the next one.

    Nothing of the store is looked at, let alone removed, before the lock is had. A holder that is not known is
    waited for briefly: it is a writer that has yet to write its name, or a reader who asks who writes.
    """
    try:
        stream = (store / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot write to {store}: {error.strerror}; choose another path.") from error
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (11, 13):  # EAGAIN, EACCES: held by another; anything else is no lock at all
                stream.close()
                raise InputError(f"Cannot lock {store}: {error.strerror}; use a local disk.") from error
            holder = _holder(store)
            if holder or time.monotonic() > deadline:
                stream.close()
                raise InputError(
                    f"{store} is being written by {_name(holder)}; wait for it to end, or stop it."
                ) from error
        time.sleep(0.02)
    stream.truncate(0)
    stream.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    stream.flush()
    return stream


def release_lock(stream: IO[str]) -> None:
    """Stop being the writer."""
    with contextlib.suppress(OSError):
        stream.truncate(0)
    stream.close()


def writer_of(store: Path) -> dict[str, Any] | None:
    """Host and pid of the process writing `store` now, or None."""
    try:
        with (store / LOCK).open(encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(store)
    except OSError:
        return None
    return None


def _holder(store: Path) -> dict[str, Any]:
    try:
        value = json.loads((store / LOCK).read_text(encoding="utf-8"))
        return {"host": str(value["host"]), "pid": int(value["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on host {holder['host']}" if holder else "another process"
