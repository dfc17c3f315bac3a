"""What the kill tests run in processes of their own: an import that tells its progress, and writers on a small disk."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
from toy_trajectories import assert_same, toy_episode, toy_spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets import importing
from vjepa_mpc.datasets.importing import ImportSettings, prepare
from vjepa_mpc.datasets.store import ZarrStore

DEMOS, ROWS, SIZE = 30, 10, (12, 16)


def demo_frames(demo: int) -> np.ndarray:
    return np.random.default_rng(demo).integers(1, 256, (ROWS, *SIZE, 3), dtype=np.uint8)


def demo_states(demo: int) -> np.ndarray:
    return np.stack([0.01 * np.arange(ROWS) + demo, np.full(ROWS, 1.0 + demo)], axis=1)


def write_demos(path: Path) -> Path:
    """A robomimic file of 30 demonstrations of noise."""
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = '{"env_kwargs": {"control_freq": 10}}'
        for demo in range(DEMOS):
            group = data.create_group(f"demo_{demo}")
            group["obs/state"], group["obs/top_image"] = demo_states(demo), demo_frames(demo)
    return path


def import_demos(source: Path, out: Path, said: Path) -> None:
    """Import, and append a byte to `said` for every episode whose publication has been acknowledged."""
    plan = prepare(ImportSettings(source, out, state=("obs/state",), chunk_frames=4))
    with said.open("ab", buffering=0) as stream:
        names = map(plan.converter.convert, plan.survey.frames)
        importing.run(plan, lambda todo: (item for item in names if item.name in todo), lambda *_: stream.write(b"."))


def assert_imported(out: Path) -> int:
    """Everything published is the log's, in its order; how many episodes."""
    store = ZarrStore.open(out)
    for index in range(len(store)):
        episode = store.read(index)
        assert episode.metadata["source"]["episode"] == f"demo_{index}"
        np.testing.assert_array_equal(episode.images["top"], demo_frames(index))
        np.testing.assert_array_equal(episode.states, demo_states(index).astype(np.float32))
    return len(store)


def mount_small(path: Path, kilobytes: int) -> None:
    """A disk of its own in memory (the process has a mount namespace of its own)."""
    path.mkdir(parents=True)
    if ctypes.CDLL(None, use_errno=True).mount(b"x", bytes(path), b"tmpfs", 0, f"size={kilobytes}k".encode()):
        raise OSError(ctypes.get_errno(), "no mount")


def fill_with_episodes(disk: Path) -> int:
    """Append until the disk is full, make room, go on; returns the episodes there were when it was full."""
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * 65536)
    ZarrStore.create(disk / "a.zarr", toy_spec()).close()
    with ZarrStore.append_to(disk / "a.zarr") as writer:
        try:
            while True:
                writer.append(toy_episode(len(writer), 6))
        except InputError as error:
            assert "No space left" in str(error) and "intact" in str(error), error
        full = len(writer)
        reader = ZarrStore.open(disk / "a.zarr")
        assert len(reader) == full
        for index in range(full):
            assert_same(reader.read(index), toy_episode(index, 6))
        ballast.unlink()
        writer.append(toy_episode(full, 6))  # room was made: the same writer goes on
    reader = ZarrStore.open(disk / "a.zarr")
    assert len(reader) == full + 1
    assert_same(reader.read(full), toy_episode(full, 6))
    return full


def fill_with_import(disk: Path, source: Path) -> int:
    """Import until the disk is full, twice: refused in a sentence, and nothing that was published is lost."""
    before = 0
    for _ in range(2):
        try:
            import_demos(source, disk / "b.zarr", source.with_name("said"))
        except InputError as error:
            assert "No space left" in str(error), error
        else:
            raise AssertionError("the disk was to be too small")
        done = assert_imported(disk / "b.zarr") if (disk / "b.zarr").exists() else 0
        assert done >= before
        before = done
    return before


if __name__ == "__main__":
    folder, chance = Path(sys.argv[1]), random.Random(int(sys.argv[3]))
    demos = write_demos(folder / "demos.hdf5")
    real = shutil.disk_usage
    shutil.disk_usage = lambda path: real("/")  # otherwise the import would see beforehand that it cannot fit
    for number in range(int(sys.argv[2])):
        small = folder / f"disk{number}"
        mount_small(small / "a", chance.randrange(160, 600))
        mount_small(small / "b", chance.randrange(40, 500))
        print(fill_with_episodes(small / "a"), fill_with_import(small / "b", demos), flush=True)
    os._exit(0)
