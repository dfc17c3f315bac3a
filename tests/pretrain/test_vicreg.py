"""Variance, covariance and smoothness in time against numpy, and as forces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from moving_dot import ENCODER, SIZE, make_store

from vjepa_mpc.datasets.clips import ClipDataset
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.encoder import encode_frames
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.pretrain.data import ClipBatches
from vjepa_mpc.pretrain.vicreg import VicRegLearner, VicRegSettings, covariance, variance


def numpy_variance(tokens: np.ndarray, gamma: float) -> float:
    channels = [tokens[:, p, c] for p in range(tokens.shape[1]) for c in range(tokens.shape[2])]
    deviations = [np.sqrt(channel.var(ddof=1) + 1e-4) for channel in channels]
    return float(np.mean([max(0.0, gamma - deviation) for deviation in deviations]))


def numpy_covariance(tokens: np.ndarray) -> float:
    """The positions' covariance matrices, averaged: each is of one position over the batch."""
    width = tokens.shape[2]
    matrix = np.mean([np.cov(tokens[:, p].T) for p in range(tokens.shape[1])], axis=0)
    return float(sum(matrix[i, j] ** 2 for i in range(width) for j in range(width) if i != j) / width)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_the_terms_against_numpy(gamma: float) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(9, 4, 5)) @ rng.normal(size=(5, 5)) + 3 * rng.normal(size=(4, 5))
    given = torch.from_numpy(tokens)
    assert float(variance(given, gamma)) == pytest.approx(numpy_variance(tokens, gamma), rel=1e-6)
    assert float(covariance(given)) == pytest.approx(numpy_covariance(tokens), rel=1e-6)


def test_position_alone_costs_the_whole_deviation_and_is_not_correlated() -> None:
    code = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0)).expand(8, -1, -1)
    assert float(variance(code, 1.0)) == pytest.approx(1 - 1e-2, abs=1e-5)
    assert float(covariance(code)) < 1e-10


def test_the_loss_is_the_weighted_sum_of_terms_at_each_time(tmp_path: Path) -> None:
    settings = VicRegSettings(
        size=ENCODER.size, sigreg_slices=8, inverse_weight=0.0,
        variance_weight=0.7, covariance_weight=0.3, time_weight=0.2,
    )  # fmt: skip
    data = ClipBatches(ClipDataset(ZarrStore.open(make_store(tmp_path / "dots.zarr")), 4), 6, 0)
    one = VicRegLearner(settings, data, ImagePreparation(SIZE), torch.device("cpu"), 0)
    batch = one.batch(1)
    loss, figures = one.loss(batch, 1)
    frames = data.batch(1).frames
    with torch.no_grad():
        times = [encode_frames(one.modules.encoder, one.preparation.prepare(frames[:, t])).numpy() for t in (0, 2)]
    expected = {
        "variance": np.mean([numpy_variance(one, 1.0) for one in times]),
        "covariance": np.mean([numpy_covariance(one) for one in times]),
        "time": ((times[1] - times[0]) ** 2).mean(),
    }
    for name, value in expected.items():
        assert float(figures[name]) == pytest.approx(value, rel=1e-4), name
    total = 0.7 * expected["variance"] + 0.3 * expected["covariance"] + 0.2 * expected["time"]
    assert float(loss.detach()) == pytest.approx(total, rel=1e-4)


def test_descending_variance_and_covariance_spreads_what_had_collapsed() -> None:
    generator = torch.Generator().manual_seed(0)
    line = torch.randn(40, 3, 1, generator=generator) * torch.ones(4)
    cloud = (0.05 * (line + 0.1 * torch.randn(40, 3, 4, generator=generator))).requires_grad_()
    optimiser = torch.optim.Adam([cloud], lr=0.02)
    for _ in range(300):
        optimiser.zero_grad()
        (variance(cloud, 1.0) + covariance(cloud)).backward()
        optimiser.step()
    for position in range(3):
        matrix = torch.cov(cloud.detach()[:, position].T)
        assert float(matrix.diagonal().min()) > 0.8
    assert float(covariance(cloud.detach())) < 0.05
