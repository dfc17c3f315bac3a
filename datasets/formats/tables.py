"""States written down as CSV or JSON: columns by name, times in seconds."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vjepa_mpc.core.errors import InputError, first_line

_TIME = ("time", "times", "time_s", "timestamp", "timestamps", "t")
_MAX_BYTES = 128 << 20  # a table of an episode; in memory it takes some twenty times as much


@dataclass(frozen=True)
class Table:
    """`columns`: [n, w] by name; `names`: of the numbers of a column, where the file gives them. `times` in
    seconds, None when the file has none."""

    columns: Mapping[str, np.ndarray]
    names: Mapping[str, tuple[str, ...]]
    times: np.ndarray | None
    rate_hz: float | None = None
    task: str = ""


def read_table(path: Path) -> Table:
    """Read a table. CSV: a line of names, then numbers; the columns whose names begin with "action" together
    are `action`, the others `state`. JSON: a list of objects (as CSV), or an object of arrays, each with one
    entry a row, and perhaps `rate_hz` and `task`. An empty cell is NaN. `InputError` when it cannot be read."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path.name} has more than {_MAX_BYTES >> 20} MB, which no table of states has")
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as stream:
                return _from_lines(csv.reader(stream, strict=True), path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path.name} is missing") from error
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name} cannot be read ({first_line(error)})") from error
    if isinstance(value, list):
        return _from_records(value, path)
    if isinstance(value, dict):
        return _from_arrays(value, path)
    raise InputError(f"{path.name} is neither a list of rows nor an object of columns")


def _from_lines(lines: Iterator[list[str]], path: Path) -> Table:
    """CSV: a line of names, then a cell for each; missing ones at a line's end are empty."""
    names = [name.strip() for name in next(lines, [])]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"{path.name} has two columns named {twice[0]!r}; name them apart")
    cells: dict[str, list[Any]] = {name: [] for name in names}
    for line in lines:
        if len(line) > len(names):
            raise InputError(f"{path.name} has a row with more cells than names")
        if line:
            for name, cell in itertools.zip_longest(names, line):
                cells[name].append(cell)
    return _from_cells(cells, path)


def _from_records(records: list[Any], path: Path) -> Table:
    """Rows that are objects with the same keys."""
    if not records or not isinstance(records[0], dict):
        raise InputError(f"{path.name} holds no rows")
    cells = {
        key.strip(): [record.get(key) if isinstance(record, dict) else None for record in records]
        for key in records[0]
    }
    return _from_cells(cells, path)


def _from_cells(cells: Mapping[str, list[Any]], path: Path) -> Table:
    """Columns of cells by name; those of words are left out."""
    if not any(cells.values()):
        raise InputError(f"{path.name} holds no rows")
    columns = {}
    for key, column in cells.items():
        if any(isinstance(cell, list) for cell in column):
            raise InputError(f"{path.name} has a row with more cells than names")
        values = _numbers(column, f"{path.name}: column {key!r}")
        if values is not None:
            columns[key] = values
    times = next((columns.pop(name) for name in _TIME if name in columns), None)
    groups = {
        "state": [name for name in columns if not name.startswith("action")],
        "action": [name for name in columns if name.startswith("action")],
    }
    found = {name: values[:, None] for name, values in columns.items()}
    for group, members in groups.items():
        if members and group not in columns:
            found[group] = np.stack([columns[name] for name in members], axis=1)
    if not found:
        raise InputError(f"{path.name} has no column of numbers")
    return Table(found, {group: tuple(members) for group, members in groups.items()}, times)


def _numbers(cells: list[Any], name: str) -> np.ndarray | None:
    """Cells as numbers, NaN where empty; None for a column of words. A column of numbers in which some cell is
    none is an `InputError`: left out, it would be missed silently."""
    values, bad = [], []
    for row, cell in enumerate(cells):
        try:
            values.append(float("nan") if cell in ("", None) else float(cell))
        except (TypeError, ValueError, OverflowError):
            bad.append((row, cell))
    if not bad:
        return np.array(values)
    if np.count_nonzero(~np.isnan(values)) <= len(bad):
        return None
    row, cell = bad[0]
    raise InputError(f"{name} has {str(cell)[:40]!r} in row {row}, which is no number")


def _from_arrays(value: dict[str, Any], path: Path) -> Table:
    columns = {}
    for key, cells in value.items():
        if not isinstance(cells, list) or not cells or isinstance(cells[0], str):
            continue
        try:
            array = np.array(cells, np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path.name}: {key} is no even table of numbers ({first_line(error)})") from error
        columns[key] = array.reshape(len(array), -1)
    times = next((columns.pop(name)[:, 0] for name in _TIME if name in columns), None)
    if not columns:
        raise InputError(f"{path.name} has no array of numbers")
    if "states" in columns and "state" not in columns:
        columns["state"] = columns.pop("states")
    if "actions" in columns and "action" not in columns:
        columns["action"] = columns.pop("actions")
    names = {
        key: tuple(map(str, value[f"{key}_names"]))
        for key in columns
        if isinstance(value.get(f"{key}_names"), list) and len(value[f"{key}_names"]) == columns[key].shape[1]
    }
    rate = value.get("rate_hz")
    rate_hz = float(rate) if isinstance(rate, int | float) and rate > 0 else None
    return Table(columns, names, times, rate_hz, str(value.get("task") or ""))
