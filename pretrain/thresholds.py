"""Thresholds of a model's guardrails from a store of episodes: the job of `vjepa-mpc calibrate`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vjepa_mpc.core.errors import unknown_name
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.pretrain.calibration import MOST_PAIRS, near_distances
from vjepa_mpc.pretrain.starting import robot_of
from vjepa_mpc.thresholds import Thresholds, measure_thresholds
from vjepa_mpc.world_model import WorldModel


def thresholds_of(model: WorldModel, store: ZarrStore, camera: str, most: int) -> Thresholds:
    """Thresholds of guardrails from at most `most` episodes of a store, evenly spread. `InputError` for a store of
    another robot or camera, or one that holds too little."""
    model.check_fits(robot_of(store))
    if camera not in store.spec.cameras:
        raise unknown_name("camera", camera, store.spec.cameras)
    near: list[Tensor] = []
    episodes = []
    lengths = store.lengths()
    for index in np.unique(np.linspace(0, len(store) - 1, min(most, len(store))).round().astype(int)):
        part = store.read(int(index), 0, int(lengths[index]))
        latents = torch.cat([model.encode(part.images[camera][at : at + 64]).cpu() for at in range(0, len(part), 64)])
        states = torch.from_numpy(np.asarray(part.states, dtype=np.float32))
        actions = torch.from_numpy(np.asarray(part.actions, dtype=np.float32))
        near += near_distances(model, [(latents, states)]) if sum(map(len, near)) <= MOST_PAIRS else []
        device = model.device
        episodes.append((latents.to(device), states.to(device), actions.to(device)))
    return measure_thresholds(model, episodes, near, store.content_hash())
