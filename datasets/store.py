"""Trajectories in a Zarr v3 group: one writer, any number of readers, safe against a crash at any moment.

The layout is documented field by field in docs/data.md, the crash-safety rule in `layout.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float32, Int64, UInt8
from zarr.storage import LocalStore

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import atomic_folder
from vjepa_mpc.datasets import layout
from vjepa_mpc.datasets.arrays import (
    DAMAGED,
    column,
    columns,
    create_array,
    line_of,
    open_arrays,
    read_chunk,
    read_spec,
)
from vjepa_mpc.datasets.episode import SCHEMA_VERSION, Episode, StoreSpec

_GROWTH = 256  # files by which arrays grow at once: one metadata write for many episodes


class ZarrStore:
    """A reader of a trajectory store: a snapshot of what was published when it was opened or refreshed."""

    def __init__(self, path: Path, spec: StoreSpec) -> None:
        self.path, self.spec = path, spec
        self._read_only = True
        self._lines: list[dict[str, Any]] = []
        self.refresh()

    @staticmethod
    def create(path: Path | str, spec: StoreSpec) -> ZarrWriter:
        """Make an empty store at `path` and return its writer. `InputError` if something is there already."""
        path = _local(path)
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise InputError(f"{path} already exists; append to it, or choose another path.")
        with atomic_folder(path) as folder:
            group = zarr.create_group(
                LocalStore(folder),
                attributes={
                    "format": layout.FORMAT,
                    "schema_version": spec.schema_version,
                    "spec": spec.to_json(),
                },
            )
            for name in columns(spec):
                create_array(group, name, spec)
            (folder / "meta").mkdir()
            (folder / layout.EPISODES).touch()
            layout.publish(folder, np.zeros((0, 3), np.int64))
        return ZarrWriter(path, spec)

    @staticmethod
    def open(path: Path | str) -> ZarrStore:
        """A reader; of a remote store too, by its address (`remote.py`). `InputError` when the store is missing,
        damaged, or of another schema or version."""
        from vjepa_mpc.datasets.remote import address, open_remote

        if (url := address(path)) is not None:
            return open_remote(url)
        return ZarrStore(Path(path), read_spec(Path(path)))

    @staticmethod
    def append_to(path: Path | str) -> ZarrWriter:
        """The writer of an existing store. Removes what a dead writer left unpublished. `InputError` as
        `open`, and when another process is writing."""
        return ZarrWriter(_local(path), read_spec(Path(path)))

    def refresh(self) -> None:
        """See the episodes published since."""
        # The table first: a writer grows arrays before it publishes, so arrays opened later cover the table.
        self._table = layout.read_published(self.path)
        self._arrays = open_arrays(self.path, self.spec, self._read_only)
        end = int(self._table[-1, 1]) if len(self._table) else 0
        for name, array in self._arrays.items():
            if array.shape[0] < end:
                raise InputError(f"{self.path}: {name} has {array.shape[0]} rows of {end} published; it was cut.")

    @property
    def name(self) -> str:
        """Where the store lies, for the user."""
        return str(self.path)

    def __len__(self) -> int:
        return len(self._table)

    def lengths(self) -> Int64[np.ndarray, "n"]:
        """Observations in each episode."""
        return self._table[:, 1] - self._table[:, 0]

    def metadata(self, index: int) -> Mapping[str, Any]:
        """What was recorded about episode `index`."""
        value: Mapping[str, Any] = self._line(index)["metadata"]
        return value

    def read(self, index: int, start: int = 0, stop: int | None = None) -> Episode:
        """Observations `start` to `stop` (exclusive; None = the end) of episode `index`, with the actions
        between them. `InputError` when the range is not in the episode or a chunk is missing or damaged."""
        first, end = self._rows(index)
        stop = end - first if stop is None else stop
        if not 0 <= start < stop <= end - first:
            raise InputError(f"Episode {index} has {end - first} observations; [{start}, {stop}) is not in it.")
        rows = slice(first + start, first + stop)
        return Episode(
            images={camera: self._slice(f"images/{camera}", rows) for camera in self.spec.cameras},
            states=self._slice("states", rows),
            actions=self._slice("actions", rows)[:-1],
            times=self._slice("times", rows),
            metadata=self.metadata(index),
        )

    def read_numbers(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """States [t, s], actions [t-1, a] and times [t] of an episode, without its pictures."""
        rows = slice(*self._rows(index))
        return self._slice("states", rows), self._slice("actions", rows)[:-1], self._slice("times", rows)

    def read_frames(
        self, index: int, camera: str, start: int = 0, stop: int | None = None
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """Frames `start` to `stop` (exclusive; None = the end) of one camera of one episode."""
        first, end = self._rows(index)
        stop = end - first if stop is None else stop
        return self._slice(f"images/{camera}", slice(first + start, first + stop))

    def states_and_actions(self) -> tuple[Float32[np.ndarray, "rows s"], Float32[np.ndarray, "rows a"]]:
        """States and actions of all episodes, one after the other without gaps, so that frame t of episode
        i is row `lengths()[:i].sum() + t`. The action in an episode's last row is 0 and means nothing."""
        rows = np.concatenate([np.zeros(0, np.int64), *(np.arange(a, b) for a, b, _ in self._table)])
        everything = slice(0, int(self._table[-1, 1]) if len(self._table) else 0)
        return self._slice("states", everything)[rows], self._slice("actions", everything)[rows]

    def content_hash(self) -> str:
        """A hash of the published episodes and of what their numbers mean; provenance, metadata and chunking
        are left out. Equal content gives an equal hash, however it was written."""
        spec = self.spec.to_json()
        for key in ("provenance", "renderer", "chunk_frames", "shard_frames"):
            spec.pop(key, None)
        lines = [self.digest(index) for index in range(len(self))]
        text = json.dumps([SCHEMA_VERSION, spec, self.lengths().tolist(), lines], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def digest(self, index: int) -> str:
        """The hash of an episode's content, taken when it was written."""
        return str(self._line(index)["digest"])

    def verify(self, index: int) -> None:
        """Read episode `index` whole and compare it with the hash taken when it was written."""
        self.compare(index, self.read(index))

    def compare(self, index: int, episode: Episode) -> None:
        """`InputError` when `episode`, read whole, is not what was written as number `index`."""
        if episode.digest() != self.digest(index):
            raise InputError(f"{self.path}: episode {index} is not what was written; restore it from a copy.")

    def _rows(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no episode {index}: {self.path} holds {len(self)}, counted from 0.")
        return int(self._table[index, 0]), int(self._table[index, 1])

    def _line(self, index: int) -> dict[str, Any]:
        """The recorded line of an episode; lines are parsed once."""
        self._rows(index)
        if len(self._lines) <= index:
            known = len(self._lines)
            start = int(self._table[known - 1, 2]) if known else 0
            with contextlib.suppress(*DAMAGED), (self.path / layout.EPISODES).open("rb") as stream:
                stream.seek(start)
                data = stream.read(int(self._table[-1, 2]) - start)
                self._lines += [json.loads(line) for line in data.splitlines()]
            if len(self._lines) <= index:
                raise InputError(f"{self.path / layout.EPISODES} is damaged or cut short; restore it from a copy.")
        return self._lines[index]

    def _slice(self, name: str, rows: slice) -> np.ndarray:
        """Rows of one array. Zarr reads a missing chunk as zeros, so each file is looked for first."""
        array, chunk = self._arrays[name], self.spec.file_frames
        result = np.empty((rows.stop - rows.start, *array.shape[1:]), array.dtype)
        for number in self._chunks(rows):
            first, end = max(rows.start, number * chunk), min(rows.stop, (number + 1) * chunk)
            file = layout.chunk_file(self.path / name, number, array.ndim)
            try:
                if self.spec.shard_frames:
                    file.stat()
                    part = np.asarray(array[first:end])
                else:
                    whole = read_chunk(file, array.chunks, array.dtype)
                    part = whole[first - number * chunk : end - number * chunk]
            except FileNotFoundError as error:
                where = file.relative_to(self.path)
                raise InputError(f"{self.path} is truncated: chunk {where} is missing.") from error
            except DAMAGED as error:
                where = file.relative_to(self.path)
                raise InputError(f"{self.path} is damaged: chunk {where} is short or broken ({error}).") from error
            result[first - rows.start : end - rows.start] = part
        return result

    def _chunks(self, rows: slice) -> range:
        """The numbers of the files that hold `rows`. Episodes leave no file between them unused."""
        return range(rows.start // self.spec.file_frames, -(-rows.stop // self.spec.file_frames))


def _local(path: Path | str) -> Path:
    """A path that can be written to; `InputError` for a remote address."""
    from vjepa_mpc.datasets.remote import address

    if (url := address(path)) is not None:
        raise InputError(f"{url} can only be read; write a local store, and copy it there.")
    return Path(path)


class ZarrWriter(ZarrStore):
    """The one writer of a store; a reader as well. Use as a context manager, or `close` it.

    `append` returns when the episode is on disk and published: from then on no crash loses it.
    """

    def __init__(self, path: Path, spec: StoreSpec) -> None:
        self._lock = layout.acquire_lock(path)
        try:
            super().__init__(path, spec)
            self._read_only = False
            self._arrays = open_arrays(path, spec, read_only=False)
            self._trim()
        except OSError as error:
            layout.release_lock(self._lock)
            raise InputError(f"Cannot write to {path}: {error.strerror or error}.") from error
        except BaseException:
            layout.release_lock(self._lock)
            raise

    def append(self, episode: Episode) -> None:
        """Add one episode. `InputError` when it is not of this store's cameras and widths or the disk is
        full; what was published before is then untouched, and the writer may go on from `len(self)`."""
        self.extend([episode])

    def extend(self, episodes: Sequence[Episode]) -> None:
        """Add several episodes at once: all are published together, with one flush to disk."""
        if self._lock.closed:  # another process may be writing by now
            raise InputError(f"This writer of {self.path} is closed; open another with ZarrStore.append_to.")
        if not episodes:
            return
        for episode in episodes:
            self.spec.check(episode)
        lines = [line_of(episode) for episode in episodes]
        table = self._extended_table(episodes, lines)
        try:
            self._write_rows(episodes, table[len(self) :])
            start = int(self._table[-1, 2]) if len(self) else 0
            layout.write_lines(self.path, start, b"".join(lines))
            layout.publish(self.path, table)
        except (OSError, InputError) as error:
            with contextlib.suppress(OSError):
                self._trim()
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(
                f"Cannot append to {self.path}: {reason}; its {len(self)} earlier episodes are intact, "
                "make room and run again."
            ) from error
        self._table = table

    def close(self) -> None:
        """Give the arrays their exact length and let other writers in."""
        if not self._lock.closed:
            with contextlib.suppress(OSError):  # a full disk leaves arrays longer than need be, which is harmless
                self._trim()
            layout.release_lock(self._lock)

    def __enter__(self) -> ZarrWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _extended_table(self, episodes: Sequence[Episode], lines: Sequence[bytes]) -> Int64[np.ndarray, "n 3"]:
        """The published table once `episodes` are in: each starts on a file of its own."""
        chunk = self.spec.file_frames
        rows = [tuple(int(v) for v in row) for row in self._table[-1:]] or [(0, 0, 0)]
        for episode, line in zip(episodes, lines, strict=True):
            first = -(-rows[-1][1] // chunk) * chunk
            rows.append((first, first + len(episode), rows[-1][2] + len(line)))
        return np.concatenate([self._table, np.array(rows[1:], np.int64).reshape(-1, 3)])

    def _write_rows(self, episodes: Sequence[Episode], table: Int64[np.ndarray, "n 3"]) -> None:
        """Write whole files past everything published, and flush them."""
        chunk = self.spec.file_frames
        first, end = int(table[0, 0]), -(-int(table[-1, 1]) // chunk) * chunk
        files = []
        for name, array in self._arrays.items():
            if array.shape[0] < end:
                array.resize((end + _GROWTH * chunk, *array.shape[1:]))
            block = np.zeros((end - first, *array.shape[1:]), array.dtype)
            for episode, (start, _, _) in zip(episodes, table, strict=True):
                values = column(episode, name)
                block[start - first : start - first + len(values)] = values
            array[first:end] = block
            numbers = range(first // chunk, end // chunk)
            files += [layout.chunk_file(self.path / name, number, array.ndim) for number in numbers]
        layout.flush(files)

    def _trim(self) -> None:
        """Remove everything unpublished and give the arrays their exact length."""
        self._table = layout.read_published(self.path)  # the truth, also when interrupted just after publishing
        end = int(self._table[-1, 1]) if len(self) else 0
        layout.remove_leftovers(
            self.path, [self.path / name for name in self._arrays], -(-end // self.spec.file_frames)
        )
        for array in self._arrays.values():
            if array.shape[0] != end:
                array.resize((end, *array.shape[1:]))
