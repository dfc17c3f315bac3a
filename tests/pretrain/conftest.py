"""What several trainings are tried on: logs of a moving dot, and a world model of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from moving_dot import PREDICTOR, make_store, training

from vjepa_mpc.pretrain.run import train_world_model
from vjepa_mpc.pretrain.source import Source


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("dots") / "dots.zarr")


@pytest.fixture(scope="module")
def plain(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain")
    train_world_model(Source(store), out, "pixels", PREDICTOR, training(3), torch.device("cpu"))
    return out / "model"
