"""OGBench's datasets (Park et al. 2024, arXiv:2410.20092): one npz file with `observations`, `actions`, `terminals`
and, in the visual ones, pictures as observations.

All episodes lie one after the other; a one in `terminals` ends one. An npz is a zip of arrays: pictures are read as a
stream, forward from episode to episode, since they may be larger than memory. Pickled arrays are refused.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64, UInt8

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.datasets.logs import CameraInfo, LogOptions, Rows, VectorInfo

_MAX_BYTES = 2 << 30  # of one array of numbers: it is read whole
_ENDS = "terminals"
_LEFT_OUT = {_ENDS, "rewards", "masks"}


@dataclass(frozen=True)
class _Member:
    """An array in the file: its shape and type."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class OgbenchLog:
    """One npz file. See the contract in `logs.py`."""

    format: ClassVar[str] = "ogbench"
    robot = ""

    def __init__(self, path: Path, options: LogOptions) -> None:
        self._path, self.rate_hz = path, options.rate_hz
        self._members = _members(path)
        self.broken: Mapping[str, str] = {}
        if _ENDS not in self._members:
            raise InputError(f"{path} has no array {_ENDS!r}, which says where episodes end; is it an OGBench file?")
        self.vectors: dict[str, VectorInfo] = {}
        self.cameras: dict[str, CameraInfo] = {}
        ends = self._members[_ENDS]
        if len(ends.shape) != 1 or ends.dtype.kind not in "biuf":
            raise InputError(f"{path} has {_ENDS!r} of shape {list(ends.shape)} and type {ends.dtype}; it is damaged.")
        count = ends.shape[0]
        for name, member in self._members.items():
            if name in _LEFT_OUT or member.shape[:1] != (count,):
                continue
            if len(member.shape) == 4 and member.shape[-1] == 3 and member.dtype == np.uint8:
                self.cameras[name] = CameraInfo(member.shape[1], member.shape[2])
            elif len(member.shape) in (1, 2) and member.dtype.kind in "biuf":
                self.vectors[name] = VectorInfo(member.shape[1] if len(member.shape) == 2 else 1)
        self._numbers: dict[str, np.ndarray] = {}
        self._stream: tuple[str, int, Any] | None = None  # camera, next row, what reads on from there
        stops = np.flatnonzero(self._whole(_ENDS).reshape(-1) > 0) + 1
        if not len(stops) or stops[-1] != count:
            stops = np.append(stops, count)  # the last one was cut off
        self._ends = np.concatenate([[0], stops]).astype(np.int64)
        self.suggestion = next(((name,) for name in ("qpos", "observations") if name in self.vectors), ())

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.suffix.lower() == ".npz" and path.is_file()

    @classmethod
    def open(cls, path: Path, options: LogOptions) -> OgbenchLog:
        return cls(path, options)

    def episodes(self) -> Sequence[str]:
        return [str(number) for number in range(len(self._ends) - 1)]

    def files(self) -> Sequence[Path]:
        return [self._path]

    def rows(self, episode: str, names: Sequence[str]) -> Rows:
        if self.rate_hz is None:
            raise InputError("an npz file does not say its rate; give it with --log-rate")
        start, stop = self._span(episode)
        absent = [name for name in names if name not in self.vectors]
        if absent:
            raise InputError(f"it lacks {', '.join(absent)}")
        vectors = {
            name: self._whole(name)[start:stop].astype(np.float64).reshape(stop - start, self.vectors[name].width)
            for name in names
        }
        return Rows(np.arange(stop - start) / self.rate_hz, vectors)

    def frames(self, episode: str, camera: str, rows: Int64[np.ndarray, "n"]) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
        if camera not in self.cameras:
            raise InputError(f"it has no camera {camera}")
        shape = self._members[camera].shape[1:]
        size = int(np.prod(shape))
        for row in (rows + self._span(episode)[0]).tolist():
            stream = self._at(camera, row, size)
            try:
                data = stream.read(size)
            except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
                self._stream = None
                raise InputError(f"{camera} cannot be unpacked in row {row} ({first_line(error)})") from error
            if len(data) != size:
                self._stream = None
                raise InputError(f"{camera} ends before row {row}; the file is cut short")
            self._stream = (camera, row + 1, stream)
            yield np.frombuffer(data, np.uint8).reshape(shape)

    def _at(self, camera: str, row: int, size: int) -> Any:
        """The stream of a camera, standing before `row`: read on when it has not passed it, else begun anew."""
        if self._stream is None or self._stream[0] != camera or self._stream[1] > row:
            stream, done = _opened(self._path, camera), 0
            _header(stream, camera)
        else:
            _, done, stream = self._stream
        self._stream = None
        try:
            for _ in range(done, row):  # a picture at a time: what is passed over is not kept
                stream.read(size)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise InputError(f"{camera} cannot be unpacked before row {row} ({first_line(error)})") from error
        return stream

    def _whole(self, name: str) -> np.ndarray:
        """An array of numbers, read once."""
        if name not in self._numbers:
            member = self._members[name]
            size = member.dtype.itemsize * int(np.prod(member.shape, dtype=object))
            if size > _MAX_BYTES:
                raise InputError(f"{name} claims {size / 1e9:.1f} GB of numbers; it is damaged")
            with _opened(self._path, name) as stream:
                _header(stream, name)
                try:
                    data = stream.read(size)
                except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise InputError(f"{name} cannot be unpacked ({first_line(error)})") from error
            if len(data) != size:
                raise InputError(f"{name} is cut short")
            self._numbers[name] = np.frombuffer(data, member.dtype).reshape(member.shape)
        return self._numbers[name]

    def _span(self, episode: str) -> tuple[int, int]:
        number = int(episode)
        return int(self._ends[number]), int(self._ends[number + 1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_numbers": {}, "_stream": None}


def _members(path: Path) -> dict[str, _Member]:
    """The arrays of an npz file whose size is what their headers say."""
    found: dict[str, _Member] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no npz file that can be read ({first_line(error)}); copy it again.") from error
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        with _opened(path, name) as stream:
            shape, dtype, before = _header(stream, name)
        if dtype.hasobject:
            continue  # pickled
        if entry.file_size != before + dtype.itemsize * int(np.prod(shape, dtype=object)):
            raise InputError(
                f"{path}: {name} says {list(shape)} {dtype} and has {entry.file_size} bytes; it is damaged."
            )
        found[name] = _Member(shape, dtype)
    return found


def _opened(path: Path, name: str) -> Any:
    """A member of the zip, as a stream that lives on when the archive is let go of."""
    try:
        return zipfile.ZipFile(path).open(f"{name}.npy")
    except (OSError, zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: {name} cannot be opened ({first_line(error)}); copy it again.") from error


def _header(stream: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and length of the header of an npy stream, which then stands at the first number."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{name} is no array that can be read ({first_line(error)})") from error
    if fortran and len(shape) > 1:
        raise InputError(f"{name} is stored by columns, which is not read")
    return shape, dtype, stream.tell()
