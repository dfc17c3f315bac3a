"""A world model as small as one can be, with fresh weights but complete: for tests of everything around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SIZE, PATCH, WIDTH = 64, 16, 48


def save_tiny_model(folder: Path, **changes: Any) -> Path:
    """Save a model of the reacher under `folder`. `changes` replace fields of its configuration, e.g.
    calibration=None. By default every view counts as at the goal, and no picture as unusual."""
    from transformers import VJEPA2Config

    from vjepa_mpc.encoder import VJepaFrames, build_encoder, freeze
    from vjepa_mpc.images import ImagePreparation
    from vjepa_mpc.latents import LatentConfig
    from vjepa_mpc.predictor import PredictorConfig
    from vjepa_mpc.robots.reacher import CAMERA, reacher_spec
    from vjepa_mpc.world_model import Calibration, WorldModel, WorldModelConfig

    layout = VJEPA2Config(
        crop_size=SIZE, patch_size=PATCH, frames_per_clip=2, tubelet_size=2, hidden_size=WIDTH,
        num_attention_heads=3, num_hidden_layers=1, mlp_ratio=2.0, pred_num_hidden_layers=0,
        pred_hidden_size=WIDTH, pred_num_attention_heads=3, pred_num_mask_tokens=1,
    )  # fmt: skip
    with _seeded(0):
        encoder = VJepaFrames(freeze(build_encoder(layout)))
    fields: dict[str, Any] = {
        "robot": reacher_spec(SIZE),
        "camera": CAMERA,
        "preparation": ImagePreparation(SIZE),
        "encoder": encoder.describe(),
        "latent": LatentConfig(encoder_grid=SIZE // PATCH, grid=2, dim=WIDTH),
        "predictor": PredictorConfig(
            grid_height=2, grid_width=2, latent_dim=WIDTH, width=WIDTH, depth=1, heads=3, max_frames=8,
            action_dim=27, state_dim=25,
        ),
        "history": 2,
        "calibration": Calibration(reached_cost=1e3, goal_score=1e3, state_radius=0.1),
        "renderer": "mujoco-rays-2x",
    }  # fmt: skip
    with _seeded(1):
        WorldModel(WorldModelConfig(**{**fields, **changes}), encoder).save_pretrained(folder)
    return folder


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
