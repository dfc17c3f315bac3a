"""Mend a store's own bookkeeping in place: what lies in it twice can be written again, pictures and numbers cannot.

The table of episodes follows from the list of them and the descriptions of the arrays from the store's; neither is
guessed. Nothing that could belong to an episode is deleted: what is replaced, or lies past the last episode, is kept in
`meta/aside-<number>`.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zarr
from zarr.storage import LocalStore

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.core.files import atomic_path
from vjepa_mpc.datasets import layout
from vjepa_mpc.datasets.arrays import columns, create_array, open_arrays, read_spec
from vjepa_mpc.datasets.episode import StoreSpec
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.datasets.table_repair import TableRepair

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Repair:
    """What was mended, how many episodes there are now, and why some of them cannot be read, by their number."""

    done: tuple[str, ...]
    episodes: int
    damaged: dict[int, str]


def repair(path: Path, progress: Progress | None = None) -> Repair:
    """Mend what a dead writer or a careless copy left of the store at `path`, then read every episode.

    `InputError`: it is no store or has lost its own description, another process is writing, both the table and the
    list of episodes are lost, or the table is and the list is too torn to tell where episodes begin. Table, list and
    chunks are then as they were.
    """
    spec, done = read_spec(path), list[str]()
    (path / "meta").mkdir(exist_ok=True)
    lock = layout.acquire_lock(path)
    try:
        _mend_descriptions(path, spec, done)
        TableRepair(path, spec, done).run()
    finally:
        layout.release_lock(lock)
    before = _count(path)
    with ZarrStore.append_to(path) as store:  # opening it as a writer removes its unfinished temporary files
        if removed := before - _count(path):
            done.append(f"{removed} unfinished files of a dead writer were removed")
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


def _remove_beside(path: Path) -> list[str]:
    """Remove unfinished stores of the same name, unless somebody is writing them: `.NAME.partial`, and those that
    `atomic_folder` makes, whose 8 letters hold no dot. Those of stores whose names only begin alike stay."""
    name, found = path.resolve().name, []
    own = re.compile(rf"\.{re.escape(name)}(\.[a-z0-9_]{{8}})?\.partial")
    for folder in path.resolve().parent.glob(".*.partial"):
        if own.fullmatch(folder.name) and folder.is_dir() and layout.writer_of(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
            found.append(f"{folder.name}, an unfinished store beside it, was removed")
    return found


def _count(path: Path) -> int:
    return sum(1 for file in path.rglob("*") if file.is_file())
