"""LeJEPA's views and its loss against the definition, written out; no stop-gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_dot import ENCODER, SIZE, make_store
from test_sigreg import by_integration
from torch import Tensor

from vjepa_mpc.datasets.clips import ClipDataset
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.encoder import encode_clips
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.pretrain.data import ClipBatches
from vjepa_mpc.pretrain.lejepa import LeJepaLearner, LeJepaSettings, Views, draw_views
from vjepa_mpc.pretrain.objective import EncoderSize

SETTINGS = LeJepaSettings(
    size=ENCODER.size, sigreg_slices=8, projector_width=16, embedding=8, local_views=3, sigreg_weight=0.2
)
LARGE = replace(SETTINGS, size=EncoderSize(picture=112, patch=8))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> LeJepaLearner:
    path: Path = make_store(tmp_path_factory.mktemp("dots") / "dots.zarr")
    clips = ClipBatches(ClipDataset(ZarrStore.open(path), 4), 5, 0)
    return LeJepaLearner(SETTINGS, clips, ImagePreparation(SIZE), torch.device("cpu"), 0)


@pytest.mark.parametrize("seed", range(3))
def test_views_are_windows_at_their_own_places(seed: int) -> None:
    low, high = LARGE.local_scale
    drawn = draw_views(LARGE, 3, LARGE.local_scale, 5, np.random.default_rng(seed))
    assert drawn.ids.shape[:2] == (3, 5) and drawn.gain.shape == drawn.shift.shape == (3, 5, 3, 1, 1)
    for patches in drawn.ids.flatten(0, 1).tolist():
        rows, columns = {p // 14 for p in patches}, {p % 14 for p in patches}
        assert len(patches) == len(set(patches)) == len(rows) * len(columns)
        assert max(rows) - min(rows) + 1 == len(rows) and max(columns) - min(columns) + 1 == len(columns)
        assert 0.5 * low <= len(patches) / 196 <= 1.3 * high
    assert len({tuple(row) for row in drawn.ids.flatten(0, 1).tolist()}) > 1
    assert 0.7 <= float(drawn.gain.min()) < 1 < float(drawn.gain.max()) <= 1.3
    assert -0.3 <= float(drawn.shift.min()) < 0 < float(drawn.shift.max()) <= 0.3


def test_an_embedding_is_the_projected_mean_of_the_windows_tokens(one: LeJepaLearner) -> None:
    batch = one.batch(1)
    pixels = one.preparation.prepare(batch.pictures)
    pooled = []
    for views in batch.views:
        for number in range(views.ids.shape[0]):
            for picture in range(len(pixels)):
                seen = pixels[picture] * views.gain[number, picture] + views.shift[number, picture]
                doubled, ids = torch.stack([seen, seen])[None], views.ids[number, picture][None]
                tokens = encode_clips(one.modules.encoder, doubled, ids)
                pooled.append(tokens[0].mean(dim=0))
    expected = one.modules.projector(torch.stack(pooled)).unflatten(0, (5, 10))
    torch.testing.assert_close(one.embed(pixels, batch.views), expected, atol=2e-5, rtol=1e-4)


def test_the_loss_is_its_definition(one: LeJepaLearner) -> None:
    """Views to the mean of the global two; N times Epps-Pulley by quadrature along the step's own directions."""
    batch = one.batch(2)
    loss, figures = one.loss(batch, 2)
    with torch.no_grad():
        z = one.embed(one.preparation.prepare(batch.pictures), batch.views).double().numpy()
    views, count, width = z.shape
    assert (views, count, width) == (5, 10, 8)
    together = 0.0
    for n in range(count):
        mean = (z[0, n] + z[1, n]) / 2
        together += sum(((mean - z[v, n]) ** 2).mean() for v in range(views)) / views / count
    directions = torch.randn(width, 8, generator=torch.Generator().manual_seed(2)).double().numpy()
    directions /= np.linalg.norm(directions, axis=0)
    gauss = np.mean([by_integration(z[v] @ directions[:, s]) for v in range(views) for s in range(8)])
    assert float(figures["prediction"]) == pytest.approx(together, rel=1e-4)
    assert float(figures["sigreg"]) == pytest.approx(gauss, rel=5e-3)
    assert float(loss.detach()) == pytest.approx(0.8 * together + 0.2 * count * gauss, rel=5e-3)


def test_nothing_stops_the_gradient(one: LeJepaLearner) -> None:
    """Along a direction of all weights the loss changes as its gradient says; with the mean held it would not."""
    double = LeJepaLearner(one.settings, one.data, one.preparation, one.device, 0)
    double.modules.double()
    batch = one.batch(4)
    pixels = one.preparation.prepare(batch.pictures).double()
    weights = list(double.modules.parameters())

    def value() -> Tensor:
        z = embedded(double, pixels, batch.views)
        return (z[:2].mean(dim=0) - z).square().mean()

    generator = torch.Generator().manual_seed(0)
    way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in weights]
    slopes = torch.autograd.grad(value(), weights, allow_unused=True)
    expected = sum(float((slope * step).sum()) for slope, step in zip(slopes, way, strict=True) if slope is not None)
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, step in zip(weights, way, strict=True):
                parameter.add_(sign * 1e-5 * step)
            values.append(float(value()))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-3)
    plain = LeJepaLearner(replace(one.settings, sigreg_weight=0.0), one.data, one.preparation, one.device, 0)
    plain.loss(batch, 4)[0].backward()
    for parameter, slope in zip(plain.modules.parameters(), slopes, strict=True):
        if slope is not None:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad.double(), slope, atol=1e-4, rtol=1e-2)
    assert one.product is one.modules.encoder


def embedded(learner: LeJepaLearner, pixels: Tensor, kinds: tuple[Views, ...]) -> Tensor:
    """As `embed`, in the precision of the learner's weights."""
    parts = []
    for kind in kinds:
        seen = (pixels * kind.gain.double() + kind.shift.double()).flatten(0, 1)
        doubled = torch.stack([seen, seen], dim=1)
        parts.append(encode_clips(learner.modules.encoder, doubled, kind.ids.flatten(0, 1)).mean(dim=1))
    return learner.modules.projector(torch.cat(parts)).unflatten(0, (-1, len(pixels)))
