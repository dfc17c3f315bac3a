"""HDF5 files as logs keep them: opened with damage told in a sentence, members taken without following links."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.datasets.formats.pictures import MAX_PIXELS
from vjepa_mpc.datasets.logs import CameraInfo

_MOST_CHUNK = 1 << 30  # bytes: a chunk is unpacked whole


def kind_of(item: Any) -> str:
    """numpy's letter for the type of a dataset's numbers, "" for types that numpy has not (bit fields, ...)."""
    try:
        return str(item.dtype.kind)
    except TypeError:
        return ""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file; what HDF5 says of damage becomes an `InputError`. Links to other files are not in the format."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path.") from error
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{path} is cut short or damaged ({first_line(error)}); copy it again.") from error


def member(group: Any, path: str) -> Any:
    """`group[path]`, refused when it is missing, or when links or external storage lead to other files."""
    import h5py

    item = group
    for name in path.split("/"):
        link = item.get(name, getlink=True) if isinstance(item, h5py.Group) else None
        if link is None:
            raise InputError(f"it lacks {path}")
        if not isinstance(link, h5py.HardLink):
            raise InputError(f"{path} is a link to elsewhere, which is not followed")
        item = item[name]
    if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
        raise InputError(f"{path} keeps its numbers in another file, which is not followed")
    if isinstance(item, h5py.Dataset) and item.chunks and math.prod(item.chunks) * item.dtype.itemsize > _MOST_CHUNK:
        raise InputError(f"{path} claims chunks of {list(item.chunks)} numbers; it is damaged, or a bomb")
    return item


def pictures(group: Any, path: str, camera: CameraInfo, rows: int) -> Any:
    """`member(group, path)`, checked before anything of it is read: `rows` RGB pictures of the announced size, or
    more."""
    item = member(group, path)
    if item.shape[1:] != (camera.height, camera.width, 3) or item.dtype != "uint8":
        raise InputError(
            f"{path} has pictures of shape {list(item.shape[1:])}, elsewhere [{camera.height}, {camera.width}, 3]"
        )
    if camera.height * camera.width > MAX_PIXELS:
        raise InputError(f"{path} claims pictures of {camera.width} x {camera.height} pixels")
    if len(item) < rows:
        raise InputError(f"{path} has {len(item)} pictures for {rows} rows")
    return item
