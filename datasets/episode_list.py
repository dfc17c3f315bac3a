"""The list of episodes (`meta/episodes.jsonl`) read past damage: a torn line costs its own notes and no others'."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

_PIECES = re.compile(rb"[^\n]*\n|[^\n]+")
_LEGIBLE = re.compile(rb'\{"length": (\d{1,9}), "digest": "([0-9a-f]{64})"')  # as `line_of` writes them


@dataclass(frozen=True)
class Line:
    """What can be read of an episode's line: its bytes (empty when it is torn), length (0: illegible) and digest
    (empty: illegible), and the bytes of the list that it takes."""

    text: bytes
    length: int
    digest: str
    start: int
    end: int


def lines_in(text: bytes, start: int, end: int) -> list[Line]:
    """The lines in a stretch of the list; torn ones with what is legible of them."""
    found = []
    for piece in _PIECES.finditer(text, start, end):
        if piece[0].strip():
            found += _read(piece[0], piece.start())
    return found


def lines_of_rows(text: bytes, table: Int64[np.ndarray, "n 3"], digest_of: Callable[[int], str]) -> list[Line | None]:
    """The line of each episode of a table of (first row, end row, end of its line); None where nothing is legible.

    `digest_of` gives the hash of an episode's content now ("" when it cannot be read); it is asked only when not every
    line is whole in its place. Lines are then known by that hash, then by their bytes, then by their number between
    neighbours that are known: an episode that was damaged together with another's line keeps its own hash.
    """
    ends = table[:, 2].tolist()
    own = [_only(text, start, end) for start, end in zip([0, *ends], ends, strict=False)]
    lengths = (table[:, 1] - table[:, 0]).tolist()
    if all(
        line is not None and line.text == text[line.start : line.end] and line.length == length
        for line, length in zip(own, lengths, strict=True)
    ):
        return list(own)
    digests = [digest_of(row) for row in range(len(table))]
    result: list[Line | None] = [
        line if line is not None and line.text and line.digest == digest else None
        for line, digest in zip(own, digests, strict=True)
    ]
    for rows, start, end in list(_gaps(result, len(text))):
        left = [line for line in lines_in(text, start, end) if line.text]
        for row in rows:
            at = next((i for i, line in enumerate(left) if line.digest == digests[row]), None)
            if at is not None:
                result[row], left = left[at], left[at + 1 :]
    for rows, start, end in list(_gaps(result, len(text))):
        numbered = lines_in(text, start, end)
        for number, row in enumerate(rows):
            line = own[row]
            if line is None or line.start < start or line.end > end or not (line.text or line.length == lengths[row]):
                line = numbered[number] if len(numbered) == len(rows) else None
                line = line if line is not None and line.length == lengths[row] else None
            result[row] = line
    return result


def _read(piece: bytes, start: int) -> list[Line]:
    """One line, whole; or what is legible of one, or of several whose ends were lost."""
    end = start + len(piece)
    try:
        value = json.loads(piece.decode())
        length, digest, notes = value["length"], value["digest"], value["metadata"]
        if type(length) is int and length >= 1 and isinstance(digest, str) and isinstance(notes, dict):
            return [Line(piece.rstrip(b"\n") + b"\n", length, digest, start, end)]
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    found = [Line(b"", int(length), digest.decode(), start, end) for length, digest in _LEGIBLE.findall(piece)]
    return [line for line in found if line.length] or [Line(b"", 0, "", start, end)]


def _only(text: bytes, start: int, end: int) -> Line | None:
    """The one line between two bytes, whatever became of the newline at its end; None when it is illegible."""
    lines = _read(text[start : end - 1] + b"\n", start) if start < end <= len(text) else []
    return lines[0] if len(lines) == 1 and lines[0].length else None


def _gaps(result: list[Line | None], total: int) -> Iterator[tuple[list[int], int, int]]:
    """Runs of episodes whose line is not known, each with the stretch of the list that theirs must be in."""
    rows: list[int] = []
    start = 0
    for row, line in enumerate(result):
        if line is None:
            rows.append(row)
            continue
        if rows:
            yield rows, start, line.start
        rows, start = [], line.end
    if rows:
        yield rows, start, total
