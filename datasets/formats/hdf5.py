"""HDF5 files as logs keep them: opened with damage told in a sentence, members taken without following links."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vjepa_mpc.core.errors import InputError, first_line


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
    if isinstance(item, h5py.Dataset) and item.external:
        raise InputError(f"{path} keeps its numbers in another file, which is not followed")
    return item
