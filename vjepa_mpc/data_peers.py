"""Other projects' own loaders, for `vjepa-mpc bench data --peer`: used when they are installed, never needed.

A peer is handed the bench's store, writes it with its own writer below a folder and reads clips with its own dataset
class. What it gives back is compared with the store's frames: they keep pictures with loss, and may not be other ones.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from vjepa_mpc.core.errors import InputError, first_line, unknown_name
from vjepa_mpc.datasets.export_lerobot import export_lerobot
from vjepa_mpc.datasets.store import ZarrStore

Reader = Callable[[Int64[np.ndarray, "b"]], UInt8[np.ndarray, "b t h w 3"]]  # first rows to clips
Peer = Callable[[ZarrStore, Path, int], tuple[Reader, Path]]  # store, folder, frames a clip


def lerobot(store: ZarrStore, folder: Path, length: int) -> tuple[Reader, Path]:
    """LeRobot's dataset of AV1 videos, with the frames of a clip asked for by time as its policies do."""
    module: Any = importlib.import_module("lerobot.datasets.lerobot_dataset")
    place, key = folder / "lerobot", "observation.images.top"
    export_lerobot(store, place, "av1")
    times = [step * store.spec.control_period_s for step in range(length)]
    dataset = module.LeRobotDataset("vjepa-mpc/bench", root=place, delta_timestamps={key: times})

    def read(rows: Int64[np.ndarray, "b"]) -> UInt8[np.ndarray, "b t h w 3"]:
        return np.stack([_bytes(dataset[int(row)][key]) for row in rows])

    return read, place


def lance(store: ZarrStore, folder: Path, length: int) -> tuple[Reader, Path]:
    """stable-worldmodel's Lance tables of JPEG pictures, by its writer and its batched reader."""
    module: Any = importlib.import_module("stable_worldmodel.data.formats.lance")
    place = folder / "bench.lance"
    with module.LanceWriter(place) as writer:
        for index in range(len(store)):
            episode = store.read(index)
            writer.write_episode({"pixels": list(episode.images["top"]), "state": list(episode.states)})
    dataset = module.LanceDataset(place, num_steps=length, keys_to_load=["pixels"])
    first = store.lengths().cumsum() - store.lengths()
    number = {int(first[episode]) + start: i for i, (episode, start) in enumerate(dataset.clip_indices)}

    def read(rows: Int64[np.ndarray, "b"]) -> UInt8[np.ndarray, "b t h w 3"]:
        return np.stack([_bytes(clip["pixels"]) for clip in dataset.__getitems__([number[int(row)] for row in rows])])

    return read, place


PEERS: dict[str, Peer] = {"lerobot": lerobot, "lance": lance}
_NEEDS = {"lerobot": "lerobot", "lance": "stable-worldmodel with its lance extra"}
_LOSS = 12.0  # mean difference of bytes up to which a picture is the same one, kept with loss


def peer_reader(name: str, store: ZarrStore, folder: Path, length: int) -> tuple[Reader, Path]:
    """A peer's reader of the store's clips, and where its files lie.

    `InputError`: there is no such peer, it is not installed or fails here, or it gives other pictures.
    """
    if name not in PEERS:
        raise unknown_name("peer", name, PEERS)
    try:
        read, place = PEERS[name](store, folder, length)
        got = read(np.zeros(1, np.int64))[0]
    except ImportError as error:
        why = f"{first_line(error)}; install {_NEEDS[name]} here, or in an environment of its own beside this package"
        raise InputError(f"The peer {name} cannot be used: {why}.") from error
    except Exception as error:  # of another project, by whatever version is installed
        raise InputError(f"The peer {name} fails ({type(error).__name__}: {first_line(error)}).") from error
    wanted = store.read_frames(0, "top", 0, length)
    if got.shape != wanted.shape or np.abs(got.astype(int) - wanted).mean() > _LOSS:
        raise InputError(f"The peer {name} gives other pictures than it was given; it is not measured.")
    return read, place


def _bytes(frames: Any) -> UInt8[np.ndarray, "t h w 3"]:
    """Frames [t, 3, h, w], of bytes or of floats up to 1, as a training would lay them out here."""
    values = np.asarray(frames).transpose(0, 2, 3, 1)
    return values if values.dtype == np.uint8 else (values * 255).round().astype(np.uint8)
