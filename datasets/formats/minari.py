"""Minari's datasets in HDF5 (Farama Foundation): `main_data.hdf5` with a group an episode.

An episode of t actions has t + 1 observations, which may be nested: `observations/image`, `observations/agent_pos`.
There are no time stamps: the rate is the user's to say (--log-rate).
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64, UInt8

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.formats.hdf5 import kind_of, member, opened, pictures
from vjepa_mpc.datasets.logs import CameraInfo, LogOptions, Rows, VectorInfo

_FILE = "main_data.hdf5"
_MAX_BYTES = 1 << 30  # of the vectors of one episode
_LEFT_OUT = ("rewards", "terminations", "truncations", "infos")


class MinariLog:
    """One Minari dataset. See the contract in `logs.py`."""

    format: ClassVar[str] = "minari"
    robot = ""

    def __init__(self, path: Path, options: LogOptions) -> None:
        self._path, self.rate_hz = _file(path) or path, options.rate_hz
        self.broken: Mapping[str, str] = {}
        self.vectors: dict[str, VectorInfo] = {}
        self.cameras: dict[str, CameraInfo] = {}
        with opened(self._path) as file:
            names = [name for name in file if re.fullmatch(r"episode_[0-9]{1,18}", name)]
            self._names = sorted(names, key=lambda name: int(name.split("_")[1]))
            for name in self._names:
                with contextlib.suppress(OSError, RuntimeError, KeyError, AttributeError, InputError):
                    member(file, name).visititems(self._note)
                    if self.vectors:
                        break
        if not self.vectors:
            raise InputError(f"{self._path} has no episode that can be read; is it a Minari file?")
        self.suggestion = ("observations",) if "observations" in self.vectors else ()

    def _note(self, name: str, item: Any) -> None:
        import h5py

        if not isinstance(item, h5py.Dataset) or not kind_of(item) or name.split("/")[0] in _LEFT_OUT:
            return
        if item.ndim == 4 and item.dtype == np.uint8 and item.shape[-1] == 3:
            self.cameras[name] = CameraInfo(int(item.shape[1]), int(item.shape[2]))
        elif item.ndim in (1, 2) and item.dtype.kind in "biuf":
            self.vectors[name] = VectorInfo(int(np.prod(item.shape[1:], dtype=int)))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return _file(path) is not None

    @classmethod
    def open(cls, path: Path, options: LogOptions) -> MinariLog:
        return cls(path, options)

    def episodes(self) -> Sequence[str]:
        return self._names

    def files(self) -> Sequence[Path]:
        return [self._path]

    def rows(self, episode: str, names: Sequence[str]) -> Rows:
        if self.rate_hz is None:
            raise InputError("a Minari file does not say its rate; give it with --log-rate")
        with opened(self._path) as file:
            group = member(file, episode)
            arrays = {name: member(group, name) for name in names}
            if sum(8 * array.size for array in arrays.values()) > _MAX_BYTES:
                raise InputError("it claims more than a gigabyte of numbers; it is damaged")
            count = len(member(group, "actions")) + 1
            vectors = {name: _padded(np.asarray(array[()], np.float64), count) for name, array in arrays.items()}
        return Rows(np.arange(count) / self.rate_hz, vectors)

    def frames(self, episode: str, camera: str, rows: Int64[np.ndarray, "n"]) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
        with opened(self._path) as file:
            count = int(rows[-1]) + 1 if len(rows) else 0
            found = pictures(member(file, episode), camera, self.cameras[camera], count)
            for row in rows.tolist():
                yield np.asarray(found[row], np.uint8)


def _padded(values: np.ndarray, count: int) -> np.ndarray:
    """[n] or [n, w] as [n, w]; actions, one fewer than observations, get a last row that means nothing."""
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    return np.concatenate([flat, np.zeros((1, flat.shape[1]))]) if len(flat) == count - 1 else flat


def _file(path: Path) -> Path | None:
    """The HDF5 file of a dataset, of its folder or of its data folder."""
    places = (path, path / _FILE, path / "data" / _FILE)
    return next((place for place in places if place.name == _FILE and place.is_file()), None)
