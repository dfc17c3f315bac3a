"""Arrays of a Zarr v2 group, in a folder or in a zip file, read by rows. Nothing is unpacked to disk, and nothing is
decompressed beyond what an array's own description says a chunk holds: a zip or codec bomb is refused.
"""

from __future__ import annotations

import itertools
import json
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.datasets.logs import LogOptions, inside

MAX_CHUNK = 512 << 20  # bytes of one chunk, unpacked
_MAX_JSON = 1 << 20
_MOST_CHUNKS = 10_000  # beside each other: looked for one by one
_CODECS = ("blosc", "lz4", "zstd", "zlib", "gzip")


@dataclass(frozen=True)
class Files:
    """The files of a group by their names in it: below a folder, or in a zip file, there below `head`."""

    root: Path
    options: LogOptions
    head: str = ""

    @classmethod
    def of(cls, root: Path, marker: str, options: LogOptions) -> Files:
        """Open `root`, a group in which the file `marker` lies. `InputError` when it does not."""
        if root.is_dir():
            if not (root / marker).is_file():
                raise InputError(f"{root} has no {marker}.")
            return cls(root, options)
        found = sorted((name for name in _names(root) if f"/{name}".endswith(f"/{marker}")), key=len)
        if not found:
            raise InputError(f"{root} holds no {marker}.")
        return cls(root, options, found[0][: -len(marker)])

    def read(self, name: str, most: int) -> bytes | None:
        """A file's content, None when there is no such file; `InputError` when it claims more than `most` bytes."""
        if self.root.is_dir():
            path = inside(self.root, name, self.options)
            if not path.is_file():
                return None
            if path.stat().st_size > most:
                raise InputError(f"{name} has {path.stat().st_size} bytes and should have at most {most}")
            return path.read_bytes()
        try:
            with zipfile.ZipFile(self.root) as archive:
                entry = archive.getinfo(self.head + name)
                if entry.file_size > most:  # reading stops there, whatever the packed bytes would unpack to
                    raise InputError(f"{name} claims {entry.file_size} bytes and should have at most {most}")
                return archive.read(entry)
        except KeyError:
            return None
        except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{name} in {self.root.name} cannot be unpacked ({first_line(error)})") from error

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        if self.root.is_dir():
            return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())
        return sorted(name[len(self.head) :] for name in _names(self.root) if name.startswith(self.head))


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no zip file that can be read ({first_line(error)}); copy it again.") from error


@dataclass(frozen=True)
class ArrayV2:
    """One array, by its `.zarray`."""

    files: Files
    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    order: str
    codec: dict[str, Any] | None
    fill: float
    separator: str

    @classmethod
    def open(cls, files: Files, name: str) -> ArrayV2:
        """Read an array's description; `InputError` when it is missing, damaged, or of what is not read here."""
        text = files.read(f"{name}/.zarray", _MAX_JSON)
        if text is None:
            raise InputError(f"it lacks {name}")
        try:
            value = json.loads(text)
            shape, chunks = tuple(map(int, value["shape"])), tuple(map(int, value["chunks"]))
            dtype, codec, fill = np.dtype(value["dtype"]), value["compressor"], value.get("fill_value")
            order, separator = str(value.get("order", "C")), str(value.get("dimension_separator", "."))
            fill = float(fill or 0)
            known = not value.get("filters") and (codec is None or codec["id"] in _CODECS)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(f"{name}/.zarray is damaged ({first_line(error)})") from error
        if dtype.kind not in "biuf" or not known or order not in "CF":
            raise InputError(f"{name} is {dtype} packed by {codec}; numbers packed by {', '.join(_CODECS)} are read")
        if len(shape) != len(chunks) or min((*shape, 0)) < 0 or min((*chunks, 1)) < 1:
            raise InputError(f"{name} has shape {shape} and chunks {chunks}; its .zarray is damaged")
        if dtype.itemsize * int(np.prod(chunks, dtype=object)) > MAX_CHUNK:
            raise InputError(f"{name} claims chunks of more than {MAX_CHUNK >> 20} MB")
        return cls(files, name, shape, chunks, dtype, order, codec, fill, separator)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` (exclusive)."""
        parts = [self._row_of_chunks(number) for number in range(start // self.chunks[0], -(-stop // self.chunks[0]))]
        first = start // self.chunks[0] * self.chunks[0]
        return np.concatenate(parts)[start - first : stop - first]

    def each(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The increasing `rows`, one after the other; each chunk is unpacked once, and one row of them kept."""
        held, number = None, -1
        for row in rows.tolist():
            if row // self.chunks[0] != number or held is None:
                number = row // self.chunks[0]
                held = None  # let go of the last before the next is unpacked
                held = self._row_of_chunks(number)
            yield held[row - number * self.chunks[0]]

    def _row_of_chunks(self, number: int) -> np.ndarray:
        """All chunks that begin at row `number * chunks[0]`, put together."""
        grid = [range(-(-size // chunk)) for size, chunk in zip(self.shape[1:], self.chunks[1:], strict=True)]
        if self.dtype.itemsize * self.chunks[0] * int(np.prod(self.shape[1:], dtype=object)) > MAX_CHUNK:
            raise InputError(f"{self.name} claims rows of more than {MAX_CHUNK >> 20} MB")
        if math.prod(map(len, grid)) > _MOST_CHUNKS:
            raise InputError(f"{self.name} claims more than {_MOST_CHUNKS} chunks a row; it is damaged")
        result = np.full((self.chunks[0], *self.shape[1:]), self.fill, self.dtype)
        for place in itertools.product(*grid):
            chunk = self._chunk((number, *place))
            if chunk is not None:
                here = tuple(
                    slice(i * c, min((i + 1) * c, size))
                    for i, c, size in zip(place, self.chunks[1:], self.shape[1:], strict=True)
                )
                result[(slice(None), *here)] = chunk[(slice(None), *(slice(0, s.stop - s.start) for s in here))]
        return result[: self.shape[0] - number * self.chunks[0]]

    def _chunk(self, place: tuple[int, ...]) -> np.ndarray | None:
        """One chunk; None when it was never written (then it is the fill value everywhere)."""
        size = self.dtype.itemsize * int(np.prod(self.chunks))
        name = f"{self.name}/{self.separator.join(map(str, place))}"
        data = self.files.read(name, size + size // 8 + 65536)  # what cannot be packed grows a little
        if data is None:
            return None
        plain = data if self.codec is None else _unpacked(data, self.codec, size, name)
        if len(plain) != size:
            raise InputError(f"{name} unpacks to {len(plain)} bytes, its array says {size}; it is damaged or a bomb")
        return np.frombuffer(plain, self.dtype).reshape(self.chunks, order="F" if self.order == "F" else "C")


def _unpacked(data: bytes, codec: dict[str, Any], size: int, name: str) -> bytes:
    """The bytes of a chunk; what would be more than `size` of them is refused before it is unpacked."""
    import numcodecs

    kind = codec["id"]
    try:
        if kind in ("zlib", "gzip"):
            worker = zlib.decompressobj(31 if kind == "gzip" else 15)
            plain = worker.decompress(data, size + 1)
            return plain
        claimed = {"blosc": _blosc_size, "lz4": _lz4_size, "zstd": zstd_size}[kind](data)
        if claimed != size:
            raise InputError(f"{name} unpacks to {claimed} bytes, its array says {size}; it is damaged or a bomb")
        return bytes(numcodecs.get_codec({"id": kind}).decode(data))
    except InputError:
        raise
    except (zlib.error, RuntimeError, ValueError, IndexError) as error:
        raise InputError(f"{name} cannot be unpacked ({first_line(error)}); it is cut short or damaged") from error


def _blosc_size(data: bytes) -> int:
    return int.from_bytes(data[4:8], "little")  # of the header: version, codec's version, flags, type size, nbytes


def _lz4_size(data: bytes) -> int:
    return int.from_bytes(data[:4], "little")


def zstd_size(data: bytes) -> int:
    """The content's size by the frame header (RFC 8878, section 3.1.1.1); -1 when it does not say."""
    if data[:4] != b"\x28\xb5\x2f\xfd":
        raise ValueError("no zstd frame")
    flags = data[4]
    single, width = flags >> 5 & 1, (0, 2, 4, 8)[flags >> 6]
    width = 1 if single and width == 0 else width
    if width == 0:
        return -1
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(data[at : at + width], "little") + (256 if width == 2 else 0)
