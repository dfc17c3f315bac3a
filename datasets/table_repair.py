"""Bring the table of episodes, their list and the lengths of the arrays of a store together again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.core.files import atomic_path
from vjepa_mpc.datasets import layout
from vjepa_mpc.datasets.arrays import DAMAGED, columns, line_of, open_arrays
from vjepa_mpc.datasets.episode import Episode, StoreSpec
from vjepa_mpc.datasets.episode_list import Line, lines_in, lines_of_rows

_LOST = "its notes were lost"


class TableRepair:
    """One repair of the store at `path`, whose arrays can be opened and whose lock is held. `done` is told what was
    done. Chunks, table and list that are not kept in their place go to `meta/aside-<number>`."""

    def __init__(self, path: Path, spec: StoreSpec, done: list[str]) -> None:
        self.path, self.spec, self.done = path, spec, done
        number = 1
        while (path / f"meta/aside-{number}").exists():
            number += 1
        self._aside = path / f"meta/aside-{number}"
        self._arrays: dict[str, Any] = {}

    def run(self) -> None:
        """`InputError`, with all of it left as it was, when the table is lost and the list does not give it back."""
        text = (self.path / layout.EPISODES).read_bytes() if (self.path / layout.EPISODES).exists() else b""
        published = self._table()
        lost = published is None
        table: Int64[np.ndarray, "n 3"] = np.zeros((0, 3), np.int64) if published is None else published
        if lost and not any(line.length for line in lines_in(text, 0, len(text))):
            raise InputError(
                f"{self.path} has lost {layout.ENDS}, and {layout.EPISODES} holds nothing to make it from; restore "
                "either."
            )
        self._grow(int(table[-1, 1]) if len(table) else 0, self.done)
        lines = lines_of_rows(text, table, lambda row: self._digest(*table[row, :2].tolist()))
        known = lines[-1].end if lines and lines[-1] is not None else int(table[-1, 2]) if len(table) else 0
        more = lines_in(text, known, len(text))
        rows = self._place(more, int(table[-1, 1]) if len(table) else 0, lost)
        if lost:
            self.done.append(f"the table of episodes was made anew from their list: {len(rows)} episodes")
        elif rows:
            self.done.append(f"{len(rows)} episodes that were in the list and whole, but not in the table, were added")
        lines += more[: len(rows)]
        table = np.concatenate([table, np.array([(*row, 0) for row in rows], np.int64).reshape(-1, 3)])
        self._write(text, table, lines, lost or bool(rows))
        self._set_chunks_aside(-(-(int(table[-1, 1]) if len(table) else 0) // self.spec.file_frames))

    def _table(self) -> Int64[np.ndarray, "n 3"] | None:
        """The published table, if it is one that a writer makes."""
        try:
            table = layout.read_published(self.path)
        except InputError:
            return None
        firsts, ends, offsets = table.T
        starts = -(-np.concatenate([[0], ends])[:-1] // self.spec.file_frames) * self.spec.file_frames
        sound = (firsts == starts).all() and (ends > firsts).all() and (np.diff(offsets, prepend=0) > 0).all()
        return table if sound else None

    def _place(self, lines: Sequence[Line], end: int, lost: bool) -> list[tuple[int, int]]:
        """First and end row of the episodes whose lines follow the `end` of the table: up to the last whose content is
        what its line says. If the table was `lost` also those after it that have files: they were published."""
        if lines:
            self._grow(max([end, *(self._files_end(name) for name in columns(self.spec))]), [])
        rows: list[tuple[int, int]] = []
        good = 0
        for number, line in enumerate(lines):
            first = self._next_file(rows[-1][1] if rows else end)
            length = self._length(first, line, lines[number + 1 : number + 2])
            if not length:
                break
            rows.append((first, first + length))
            if line.digest and self._digest(*rows[-1]) == line.digest:
                good = len(rows)
        if not lost:
            return rows[:good]
        while len(rows) > good and not self._file("times", rows[-1][0]).exists():
            rows.pop()  # of a writer that died before it published it
        torn = next((i for i, line in enumerate(lines) if i >= good and not line.length), len(lines))
        if not good or any(line.length for line in lines[torn:]):
            raise InputError(
                f"{self.path} has lost {layout.ENDS}, and {layout.EPISODES} is too damaged to tell where episodes "
                "begin; restore either from a copy. Neither was changed."
            )
        return rows

    def _length(self, first: int, line: Line, following: Sequence[Line]) -> int:
        """Observations of the episode that begins in row `first`: what its line says if its content or the next one's
        agrees, else what the times say that increase within an episode; 0 when nothing is known."""
        if line.length and line.digest and self._digest(first, first + line.length) == line.digest:
            return line.length
        rising, files = self._rising(first), self.spec.file_frames
        for choices in ([line.length, rising], range(files, rising, files)):  # times may go on into the next episode's
            for length in filter(None, choices):
                if line.digest and self._digest(first, first + length) == line.digest:
                    return length
            for length in filter(None, choices):
                start = self._next_file(first + length)
                if any(near.digest and self._digest(start, start + near.length) == near.digest for near in following):
                    return length
        return line.length or rising

    def _rising(self, first: int) -> int:
        """Rows from `first` on, a file's first, whose times increase; those past an episode's end are 0."""
        length, last, files = 0, -np.inf, self.spec.file_frames
        while self._file("times", first + length).exists():
            try:
                times = np.asarray(self._arrays["times"][first + length : first + length + files])
            except DAMAGED:
                break
            rises = np.diff(times, prepend=last) > 0
            count = len(times) if rises.all() else int(np.argmin(rises))
            length += count
            if count < files:
                break
            last = times[-1]
        return length

    def _write(self, text: bytes, table: Int64[np.ndarray, "n 3"], lines: list[Line | None], changed: bool) -> None:
        """The list, each whole line to the byte, and the table, unless both are so already."""
        parts, lost = [], []
        for row, line in enumerate(lines):
            first, end = table[row, :2].tolist()
            if line is not None and line.text and line.length == end - first:
                parts.append(line.text)
            elif line is not None and line.text:
                parts.append(json.dumps({**json.loads(line.text), "length": end - first}).encode() + b"\n")
            else:
                parts.append(self._new_line(first, end, line.digest if line is not None else ""))
                lost.append(row)
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        whole = b"".join(parts)
        if not changed and whole == text and ends.tolist() == table[:, 2].tolist():
            return
        table = np.concatenate([table[:, :2], ends[:, None]], 1)
        if whole != text:
            self._keep(layout.EPISODES)
            with atomic_path(self.path / layout.EPISODES) as target:
                target.write_bytes(whole)
        self._keep(layout.ENDS)
        layout.publish(self.path, table)
        if lost:
            self.done.append(f"the notes on episodes {_ranges(lost)} were lost; hashes that were, too, were taken anew")
        if whole != text:
            where = self._aside.relative_to(self.path)
            self.done.append(f"the list of episodes was written anew; the old one is in {where}")

    def _new_line(self, first: int, end: int, digest: str) -> bytes:
        """A line for an episode whose own is lost; its hash is the old one when that is legible."""
        note = _LOST
        if not digest:
            try:
                return line_of(self._content(first, end))
            except InputError as error:
                note = first_line(error)
        return json.dumps({"length": end - first, "digest": digest, "metadata": {"repaired": note}}).encode() + b"\n"

    def _digest(self, first: int, end: int) -> str:
        """The hash of what lies in these rows; "" when it cannot be read."""
        try:
            return self._content(first, end).digest()
        except InputError:
            return ""

    def _content(self, first: int, end: int) -> Episode:
        """An episode by its place, without its line. `InputError` when a file of it is missing or damaged."""
        values = {}
        for name, array in self._arrays.items():
            for row in range(first, end, self.spec.file_frames):
                if not self._file(name, row).exists():
                    raise InputError(f"chunk {row // self.spec.file_frames} of {name} is missing")
            try:
                values[name] = np.asarray(array[first:end])
            except DAMAGED as error:
                raise InputError(f"{name} is damaged ({first_line(error)})") from error
        return Episode(
            images={camera: values[f"images/{camera}"] for camera in self.spec.cameras},
            states=values["states"],
            actions=values["actions"][:-1],
            times=values["times"],
            metadata={"repaired": _LOST},
        )

    def _grow(self, end: int, done: list[str]) -> None:
        """Open the arrays, and make them as long as what is to be read."""
        self._arrays = open_arrays(self.path, self.spec, read_only=False)
        for name, array in self._arrays.items():
            if array.shape[0] < end:
                array.resize((end, *array.shape[1:]))
                done.append(f"{name} is {end} rows long again")

    def _set_chunks_aside(self, chunks: int) -> None:
        """Move the files from number `chunks` on out of the way: they may be episodes that nothing knows any more."""
        moved = 0
        for name in columns(self.spec):
            for file, number in self._files(name):
                if number >= chunks:
                    target = self._aside / name / file.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, target)
                    moved += 1
        if moved:
            where = self._aside.relative_to(self.path)
            self.done.append(f"{moved} files past the last episode were moved to {where}; delete it if none is missed")

    def _keep(self, name: Path) -> None:
        """Copy a file of `meta` that is about to be replaced."""
        if (self.path / name).exists():
            self._aside.mkdir(exist_ok=True)
            shutil.copyfile(self.path / name, self._aside / name.name)

    def _files(self, name: str) -> list[tuple[Path, int]]:
        """The chunk files of an array and their numbers."""
        found = [(Path(entry.path), entry.name.split(".")) for entry in os.scandir(self.path / name)]
        return [(file, int(parts[1])) for file, parts in found if parts[0] == "c" and parts[1:] and parts[1].isdigit()]

    def _files_end(self, name: str) -> int:
        return self.spec.file_frames * (1 + max((number for _, number in self._files(name)), default=-1))

    def _file(self, name: str, row: int) -> Path:
        return layout.chunk_file(self.path / name, row // self.spec.file_frames, self._arrays[name].ndim)

    def _next_file(self, row: int) -> int:
        return -(-row // self.spec.file_frames) * self.spec.file_frames


def _ranges(numbers: list[int]) -> str:
    """Numbers in rising order as "1, 3 to 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join(" to ".join(map(str, part)) for part in parts)
