"""Mend a store's own bookkeeping in place: what lies in it twice can be written again, pictures and numbers cannot.

The table of episodes follows from the lengths in `meta/episodes.jsonl` (every episode begins on a file of its own), and
the descriptions of the arrays from the store's; neither is guessed: an episode counts when its hash is right.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Int64
from zarr.storage import LocalStore

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.core.files import atomic_path
from vjepa_mpc.datasets import layout
from vjepa_mpc.datasets.arrays import columns, create_array, line_of, open_arrays, read_spec
from vjepa_mpc.datasets.episode import Episode, StoreSpec
from vjepa_mpc.datasets.store import ZarrStore

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Repair:
    """What was mended, how many episodes there are now, and why some of them cannot be read, by their number."""

    done: tuple[str, ...]
    episodes: int
    damaged: dict[int, str]


@dataclass(frozen=True)
class _Line:
    """A line of the list of episodes: the episode's length and digest, and where the line ends, in bytes."""

    length: int
    digest: str
    end: int


def repair(path: Path, progress: Progress | None = None) -> Repair:
    """Mend what a dead writer or a careless copy left of the store at `path`, then read every episode.

    `InputError`: it is no store or has lost its own description, another process is writing, or both the table and
    the list of episodes are lost.
    """
    spec, done = read_spec(path), list[str]()
    (path / "meta").mkdir(exist_ok=True)
    lock = layout.acquire_lock(path)
    try:
        _mend_descriptions(path, spec, done)
        _mend_table(path, spec, done)
    finally:
        layout.release_lock(lock)
    before = _count(path)
    with ZarrStore.append_to(path) as store:  # opening it as a writer removes what was never published
        if removed := before - _count(path):
            done.append(f"{removed} files of a dead writer were removed")
        done += _remove_beside(path)
        damaged = {}
        for index in range(len(store)):
            try:
                store.verify(index)
            except InputError as error:
                damaged[index] = first_line(error)
            if progress is not None:
                progress(index + 1, len(store))
        return Repair(tuple(done), len(store), damaged)


def _mend_descriptions(path: Path, spec: StoreSpec, done: list[str]) -> None:
    """Write the description of every array anew that is lost or damaged; what it says follows from the spec."""
    for name in columns(spec):
        try:
            open_arrays(path, spec, read_only=True, only=name)
        except InputError:
            with tempfile.TemporaryDirectory() as folder:
                create_array(zarr.create_group(LocalStore(folder)), name, spec)
                with atomic_path(path / name / "zarr.json") as target:
                    shutil.copyfile(Path(folder) / name / "zarr.json", target)
            done.append(f"the description of {name} was written anew")


def _mend_table(path: Path, spec: StoreSpec, done: list[str]) -> None:
    """Bring table, list and array lengths together."""
    lines = _read_lines(path)
    try:
        table: Int64[np.ndarray, "n 3"] | None = layout.read_published(path)
    except InputError:
        table = None
    if table is not None and not _sound(table, spec):
        table = None
    if table is None:
        if not lines:
            raise InputError(
                f"{path} has lost {layout.ENDS}, and {layout.EPISODES} holds nothing to make it from; restore either."
            )
        table = _table_of(lines, spec)
        _grow(path, spec, int(table[-1, 1]), [])
        # The last lines may be those of a writer that died before it published them, or lost its pictures.
        table = table[: _last_good(path, spec, table, lines)]
        layout.publish(path, table)
        done.append(f"the table of episodes was made anew from their list: {len(table)} episodes")
    _grow(path, spec, int(table[-1, 1]) if len(table) else 0, done)
    if [line.end for line in lines[: len(table)]] != table[:, 2].tolist():
        _mend_lines(path, spec, table, lines, done)


def _sound(table: Int64[np.ndarray, "n 3"], spec: StoreSpec) -> bool:
    """Whether a table is one that a writer makes."""
    firsts, ends, offsets = table.T
    starts = -(-np.concatenate([[0], ends])[:-1] // spec.file_frames) * spec.file_frames
    return bool((firsts == starts).all() and (ends > firsts).all() and (np.diff(offsets, prepend=0) > 0).all())


def _table_of(lines: list[_Line], spec: StoreSpec) -> Int64[np.ndarray, "n 3"]:
    """The table that the list of episodes calls for."""
    rows, end = [], 0
    for line in lines:
        first = -(-end // spec.file_frames) * spec.file_frames
        end = first + line.length
        rows.append((first, end, line.end))
    return np.array(rows, np.int64)


def _last_good(path: Path, spec: StoreSpec, table: Int64[np.ndarray, "n 3"], lines: list[_Line]) -> int:
    """How many episodes there are up to the last one whose content is what its line says."""
    arrays = open_arrays(path, spec, read_only=True)
    for index in reversed(range(len(table))):
        try:
            if _content(path, spec, arrays, table[index]).digest() == lines[index].digest:
                return index + 1
        except InputError:
            continue
    raise InputError(f"{path} has lost {layout.ENDS}, and no episode of its list can be read; restore it from a copy.")


def _grow(path: Path, spec: StoreSpec, end: int, done: list[str]) -> None:
    """Make the arrays as long as what is published."""
    for name, array in open_arrays(path, spec, read_only=False).items():
        if array.shape[0] < end:
            array.resize((end, *array.shape[1:]))
            done.append(f"{name} is {end} rows long again")


def _mend_lines(
    path: Path, spec: StoreSpec, table: Int64[np.ndarray, "n 3"], lines: list[_Line], done: list[str]
) -> None:
    """Write the lost end of the list of episodes anew. What was said of them is gone; their hashes are of what is
    there now."""
    known = 0
    while known < min(len(lines), len(table)) and lines[known].end == table[known, 2]:
        known += 1
    arrays, table = open_arrays(path, spec, read_only=True), table.copy()
    text = (path / layout.EPISODES).read_bytes() if (path / layout.EPISODES).exists() else b""
    parts = [text[: int(table[known - 1, 2]) if known else 0]]
    for index in range(known, len(table)):
        try:
            parts.append(line_of(_content(path, spec, arrays, table[index])))
        except InputError as error:
            length, note = int(table[index, 1] - table[index, 0]), {"repaired": first_line(error)}
            parts.append(json.dumps({"length": length, "digest": "", "metadata": note}).encode() + b"\n")
        table[index, 2] = sum(map(len, parts))
    with atomic_path(path / layout.EPISODES) as target:
        target.write_bytes(b"".join(parts))
    layout.publish(path, table)
    done.append(f"the notes on episodes {known} to {len(table) - 1} were lost; their hashes were taken anew")


def _content(path: Path, spec: StoreSpec, arrays: dict[str, Any], row: Int64[np.ndarray, "3"]) -> Episode:
    """An episode by its place, without its line. `InputError` when a file of it is missing or damaged."""
    rows = slice(int(row[0]), int(row[1]))
    values = {}
    for name, array in arrays.items():
        for number in range(rows.start // spec.file_frames, -(-rows.stop // spec.file_frames)):
            if not layout.chunk_file(path / name, number, array.ndim).exists():
                raise InputError(f"chunk {number} of {name} is missing")
        try:
            values[name] = np.asarray(array[rows])
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise InputError(f"{name} is damaged ({first_line(error)})") from error
    return Episode(
        images={camera: values[f"images/{camera}"] for camera in spec.cameras},
        states=values["states"],
        actions=values["actions"][:-1],
        times=values["times"],
        metadata={"repaired": "its notes were lost"},
    )


def _read_lines(path: Path) -> list[_Line]:
    """The lines of the list of episodes up to the first that is torn."""
    lines, end = [], 0
    try:
        text = (path / layout.EPISODES).read_bytes()
    except OSError:
        return []
    for part in text.splitlines(keepends=True):
        end += len(part)
        try:
            value = json.loads(part)
            line = _Line(int(value["length"]), str(value["digest"]), end)
        except (ValueError, KeyError, TypeError):
            break
        if not part.endswith(b"\n") or line.length < 1:
            break
        lines.append(line)
    return lines


def _remove_beside(path: Path) -> list[str]:
    """Remove unfinished stores of the same name: this one exists, so nobody is still making them."""
    name, found = path.resolve().name, []
    for folder in path.resolve().parent.glob(".*.partial"):
        if folder.is_dir() and (folder.name == f".{name}.partial" or folder.name.startswith(f".{name}.")):
            shutil.rmtree(folder, ignore_errors=True)
            found.append(f"{folder.name}, an unfinished store beside it, was removed")
    return found


def _count(path: Path) -> int:
    return sum(1 for file in path.rglob("*") if file.is_file())
