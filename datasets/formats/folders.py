"""Folders of pictures or videos with a table of states: what one writes oneself.

An episode is a folder with `states.csv` or `states.json` (or the only CSV or JSON in it), and for every camera a
folder of pictures or a video named after it; pictures beside the table are the camera `camera`. Row i of the table
belongs to picture i in the order of their names, numbers in them counted as numbers. The source is one such
folder, a folder of them, or one video with the table given by --states.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Int64, UInt8

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.datasets.formats.pictures import decode_picture
from vjepa_mpc.datasets.formats.tables import Table, read_table
from vjepa_mpc.datasets.formats.video import describe_video, frames_by_number
from vjepa_mpc.datasets.logs import CameraInfo, LogOptions, Rows, VectorInfo, inside

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
_VIDEOS = {".mp4", ".mkv", ".mov", ".avi", ".webm"}
_TABLES = {".csv", ".json"}


class FolderLog:
    """One folder or many. See the contract in `logs.py`."""

    format: ClassVar[str] = "folders"
    robot = ""

    def __init__(self, path: Path, options: LogOptions) -> None:
        self._options = options
        self._root = path if path.is_dir() else path.parent
        self._alone = None if path.is_dir() else path.name  # a single video
        self._names = ["."] if self._alone or options.states or _table_in(path) else _episode_folders(path)
        self.rate_hz = options.rate_hz
        reasons: dict[str, str] = {}
        self.vectors: dict[str, VectorInfo] = {}
        self.cameras: dict[str, CameraInfo] = {}
        for name in self._names:
            try:
                table = self._table(name)
                self.cameras = {camera: self._size(name, camera) for camera in self._sources(name)}
            except InputError as error:
                reasons[name] = first_line(error)
                continue
            self.vectors = {
                key: VectorInfo(values.shape[1], table.names.get(key, ())) for key, values in table.columns.items()
            }
            break
        if not self.vectors:
            why = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
            raise InputError(f"{path} has no episode that can be read ({why or 'no folder with a table of states'}).")
        self.broken: Mapping[str, str] = {}
        self.suggestion = ("state",) if "state" in self.vectors else ()

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir() or path.suffix.lower() in _VIDEOS

    @classmethod
    def open(cls, path: Path, options: LogOptions) -> FolderLog:
        return cls(path, options)

    def episodes(self) -> Sequence[str]:
        return self._names

    def files(self) -> Sequence[Path]:
        if self._alone:  # what else lies in its folder is not of the log
            found = [self._root / self._alone]
        else:
            found = [Path(folder) / file for folder, _, files in os.walk(self._root) for file in files]
        states = self._options.states
        return found if states is None or states in found else [*found, states]

    def rows(self, episode: str, names: Sequence[str]) -> Rows:
        table = self._table(episode)
        absent = [name for name in names if name not in table.columns]
        if absent:
            raise InputError(f"its table lacks {', '.join(absent)}")
        wrong = [name for name in names if table.columns[name].shape[1] != self.vectors[name].width]
        if wrong:
            raise InputError(f"its {wrong[0]} has {table.columns[wrong[0]].shape[1]} numbers, elsewhere "
                             f"{self.vectors[wrong[0]].width}")
        count = len(next(iter(table.columns.values())))
        times = table.times if table.times is not None else np.arange(count) / self._rate(episode, table)
        return Rows(times, {name: table.columns[name] for name in names}, table.task)

    def frames(self, episode: str, camera: str, rows: Int64[np.ndarray, "n"]) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
        source = self._sources(episode).get(camera)
        if source is None:
            raise InputError(f"it has no camera {camera}")
        count = len(next(iter(self._table(episode).columns.values())))
        if isinstance(source, Path):
            yield from frames_by_number(source, rows, count)
            return
        if len(source) != count:
            raise InputError(f"{camera} has {len(source)} pictures for {count} rows; which row lacks one is not known")
        for row in rows.tolist():
            yield decode_picture(source[row], source[row].name)

    def _rate(self, episode: str, table: Table) -> float:
        """Rows a second of a table without times: the user's word, the file's, or that of its only video."""
        videos = [source for source in self._sources(episode).values() if isinstance(source, Path)]
        rate = self._options.rate_hz or table.rate_hz or (describe_video(videos[0])[2] if videos else None)
        if not rate:
            raise InputError("its table has no column of times; add one (seconds), or give --log-rate")
        return rate

    def _table(self, episode: str) -> Table:
        if self._options.states is not None:
            return read_table(self._options.states)
        found = _table_in(self._root / episode)
        if found is None:
            raise InputError("it has no states.csv or states.json")
        return read_table(inside(self._root, f"{episode}/{found}", self._options))

    def _sources(self, episode: str) -> dict[str, Path | list[Path]]:
        """By camera: a video, or pictures in order."""
        if self._alone:
            return {"camera": inside(self._root, self._alone, self._options)}
        folder, found = self._root / episode, dict[str, Path | list[Path]]()
        beside = _pictures(folder)
        if beside:
            found["camera"] = [inside(self._root, f"{episode}/{name}", self._options) for name in beside]
        for entry in sorted(folder.iterdir()):
            place = f"{episode}/{entry.name}"
            if entry.suffix.lower() in _VIDEOS and entry.is_file():
                found[entry.stem] = inside(self._root, place, self._options)
            elif entry.is_dir() and (names := _pictures(inside(self._root, place, self._options))):
                found[entry.name] = [inside(self._root, f"{place}/{name}", self._options) for name in names]
        if not found:
            raise InputError("it has neither pictures nor videos")
        return found

    def _size(self, episode: str, camera: str) -> CameraInfo:
        source = self._sources(episode)[camera]
        if isinstance(source, Path):
            return describe_video(source)[0]
        return CameraInfo(*decode_picture(source[0], source[0].name).shape[:2])


def _table_in(folder: Path) -> str | None:
    """The name of a folder's table of states."""
    if not folder.is_dir():
        return None
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in _TABLES)
    named = [name for name in names if Path(name).stem == "states"]
    return named[0] if named else names[0] if len(names) == 1 else None


def _episode_folders(path: Path) -> list[str]:
    """The folders of a source; one that lacks its table is told in the report, not passed over."""
    folders = (entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return sorted(folders, key=_natural)


def _pictures(folder: Path) -> list[str]:
    return sorted((entry.name for entry in folder.iterdir() if entry.suffix.lower() in _PICTURES), key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts frame2 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
