"""Export a store to one HDF5 file in robomimic's layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import atomic_path
from vjepa_mpc.datasets.formats.robomimic import OWN
from vjepa_mpc.datasets.store import ZarrStore

Progress = Callable[[int, int], None]


def export_hdf5(store: ZarrStore, out: Path, progress: Progress | None = None) -> None:
    """Write `data/demo_<i>/{obs/state, obs/<camera>_image, actions, times}`; the file is whole or absent.

    robomimic has one action a row: the last row's is 0 and means nothing. The control rate is in `env_args`, names
    and units of states and actions are attributes of `data`, as is the store's description.
    """
    import h5py

    if not len(store):
        raise InputError(f"{store.path} holds no episodes; there is nothing to export.")
    spec = store.spec
    with atomic_path(out) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = int(store.lengths().sum())
        data.attrs["env_args"] = json.dumps(
            {"env_name": spec.robot, "type": 0, "env_kwargs": {"control_freq": 1 / spec.control_period_s}}
        )
        data.attrs[OWN] = json.dumps(spec.to_json())
        for index in range(len(store)):
            episode = store.read(index)
            demo = data.create_group(f"demo_{index}")
            demo.attrs["num_samples"] = len(episode)
            demo.attrs["task"] = str(episode.metadata.get("task") or "")
            demo.attrs["metadata"] = json.dumps(dict(episode.metadata))
            demo["obs/state"] = episode.states
            demo["actions"] = np.concatenate([episode.actions, np.zeros((1, episode.actions.shape[1]), np.float32)])
            demo["times"] = episode.times
            for camera, frames in episode.images.items():
                chunk = (1, *frames.shape[1:])
                demo.create_dataset(f"obs/{camera}_image", data=frames, chunks=chunk, compression="gzip")
            if progress is not None:
                progress(index + 1, len(store))
