"""A store of a bright dot that two joints move, small enough to train on in a second, and matching settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vjepa_mpc.datasets.episode import Episode, StoreSpec
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.pretrain.objective import EncoderSize
from vjepa_mpc.pretrain.optimising import TrainSettings
from vjepa_mpc.pretrain.predictor import PredictorSettings
from vjepa_mpc.pretrain.vjepa import VJepaSettings

SIZE = 16
LIMIT = 0.3
ENCODER = VJepaSettings(
    size=EncoderSize(picture=SIZE, patch=4, width=24, depth=1, heads=1),
    frames=4, sigreg_slices=8, predictor_width=24, predictor_depth=1, predictor_heads=1,
)  # fmt: skip
PREDICTOR = PredictorSettings(grid=2, width=24, depth=1, heads=1, stride=2, frames=3, history=1, rollout_steps=2)


def training(steps: int | None = 4, **changes: Any) -> TrainSettings:
    return TrainSettings(
        **{"steps": steps, "batch": 6, "warmup": 2, "log_every": 1, "checkpoint_every": 2, "bf16": False, **changes}
    )


def spec(**changes: Any) -> StoreSpec:
    fields: dict[str, Any] = {
        "robot": "dot",
        "cameras": {"top": (SIZE, SIZE)},
        "state_names": ("x", "y"),
        "state_units": ("rad", "rad"),
        "state_low": (-2.0, -2.0),
        "state_high": (2.0, 2.0),
        "state_periodic": (True, False),
        "action_names": ("dx", "dy"),
        "action_units": ("rad", "rad"),
        "action_low": (-LIMIT, -LIMIT),
        "action_high": (LIMIT, LIMIT),
        "control_period_s": 0.1,
        "renderer": "none",
    }
    return StoreSpec(**{**fields, **changes})


def episode(seed: int, length: int = 12) -> Episode:
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-0.1, 0.1, size=(length - 1, 2)).astype(np.float32)
    start = rng.uniform(-1, 1, size=2)
    states = (start + np.concatenate([np.zeros((1, 2)), np.cumsum(actions, axis=0)])).astype(np.float32)
    lines = np.linspace(-2, 2, SIZE)
    x, y = states[:, 0, None, None], states[:, 1, None, None]
    dot = np.exp(-4 * ((lines[None, None] - x) ** 2 + (lines[None, :, None] - y) ** 2))
    pictures = np.stack([255 * dot, 255 * (1 - dot), 80 + 100 * dot], axis=-1).astype(np.uint8)
    return Episode(images={"top": pictures}, states=states, actions=actions, times=0.1 * np.arange(1.0, length + 1))


def make_store(path: Path, episodes: int = 4, length: int = 12, **changes: Any) -> Path:
    with ZarrStore.create(path, spec(**changes)) as writer:
        writer.extend([episode(seed, length) for seed in range(episodes)])
    return path
