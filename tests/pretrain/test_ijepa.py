"""I-JEPA's blocks and its loss against loops; what is hidden does not reach the prediction."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_dot import ENCODER, SIZE, make_store
from test_vjepa import _by_patch

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.clips import ClipDataset
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.encoder import encode_clips
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.pretrain.data import ClipBatches
from vjepa_mpc.pretrain.ijepa import IJepaLearner, IJepaSettings, multi_block
from vjepa_mpc.pretrain.objective import EncoderSize

SETTINGS = IJepaSettings(
    size=ENCODER.size, sigreg_slices=8, predictor_width=24, predictor_depth=1, predictor_heads=1
)
LARGE = dataclasses.replace(SETTINGS, size=EncoderSize(picture=112, patch=8))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> IJepaLearner:
    path: Path = make_store(tmp_path_factory.mktemp("dots") / "dots.zarr")
    clips = ClipBatches(ClipDataset(ZarrStore.open(path), 4), 5, 0)
    made = IJepaLearner(SETTINGS, clips, ImagePreparation(SIZE), torch.device("cpu"), 0)
    torch.nn.init.normal_(made.modules.predictor.mask_token, generator=torch.Generator().manual_seed(0))
    return made


@pytest.mark.parametrize("seed", range(3))
def test_blocks_are_as_published(seed: int) -> None:
    drawn = multi_block(LARGE, 6, np.random.default_rng(seed))
    assert len(drawn.targets) == 4
    for picture in range(6):
        hidden: set[int] = set()
        for target in drawn.targets:
            patches = target[picture].tolist()
            rows, columns = {p // 14 for p in patches}, {p % 14 for p in patches}
            assert len(patches) == len(set(patches)) == len(rows) * len(columns)  # a rectangle, whole
            assert max(rows) - min(rows) + 1 == len(rows) and max(columns) - min(columns) + 1 == len(columns)
            assert 0.11 <= len(patches) / 196 <= 0.24 and 0.6 <= len(rows) / len(columns) <= 1.8
            hidden.update(patches)
        kept = drawn.context[picture].tolist()
        assert kept and not hidden & set(kept) and len(set(kept)) == len(kept)
    places = {tuple(row) for row in drawn.targets[0].tolist()}
    assert len(places) > 1


def test_something_is_always_kept() -> None:
    greedy = dataclasses.replace(SETTINGS, target_scale=(1.0, 1.0), context_scale=(0.2, 0.2))
    drawn = multi_block(greedy, 4, np.random.default_rng(0))
    assert drawn.context.shape == (4, 1)
    with pytest.raises(InputError, match="smaller patches"):
        multi_block(dataclasses.replace(SETTINGS, size=EncoderSize(16, 16)), 2, np.random.default_rng(0))


def test_the_loss_is_the_squared_error_of_each_block_by_itself(one: IJepaLearner) -> None:
    batch = one.batch(2)
    assert batch.pictures.shape == (10, SIZE, SIZE, 3)  # two pictures of each clip
    loss, figures = one.loss(batch, 2)
    pixels = one.preparation.prepare(batch.pictures)
    doubled = torch.stack([pixels, pixels], dim=1)
    total = 0.0
    with torch.no_grad():
        whole = encode_clips(one.modules.target, doubled)
        whole = (whole - whole.mean(-1, keepdim=True)) / (whole.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        for picture in range(10):
            alone = slice(picture, picture + 1)
            ids = batch.blocks.context[alone]
            context = encode_clips(one.modules.encoder, doubled[alone], ids)
            for block in batch.blocks.targets:
                guess = one.modules.predictor(context, ids, block[alone])
                total += float((guess[0] - whole[picture, block[picture]]).square().mean()) / 4 / 10
    assert float(figures["prediction"]) == pytest.approx(total, rel=1e-4)
    assert float(loss.detach()) == pytest.approx(total, rel=1e-4)


def test_nothing_of_the_targets_reaches_their_prediction(one: IJepaLearner) -> None:
    batch = one.batch(1)
    pixels = one.preparation.prepare(batch.pictures)
    doubled = torch.stack([pixels, pixels], dim=1).requires_grad_()
    context = encode_clips(one.modules.encoder, doubled, batch.blocks.context)
    one.modules.predictor(context, batch.blocks.context, batch.blocks.targets[0]).sum().backward()
    assert doubled.grad is not None
    reached = _by_patch(doubled.grad.abs())
    kept = torch.zeros_like(reached, dtype=torch.bool).scatter(1, batch.blocks.context, True)
    assert float(reached[~kept].max()) == 0.0 < float(reached[kept].min())
    assert not bool(kept.gather(1, batch.blocks.targets[0]).any())


def test_the_target_follows_and_is_what_is_kept(one: IJepaLearner) -> None:
    assert one.product is one.modules.target
    assert not any(parameter.requires_grad for parameter in one.modules.target.parameters())
    before = [p.clone() for p in one.modules.target.parameters()]
    with torch.no_grad():
        for parameter in one.modules.encoder.parameters():
            parameter.add_(0.5)
    one.after_step(0)
    for old, target, online in zip(
        before, one.modules.target.parameters(), one.modules.encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(target.detach(), 0.996 * old + 0.004 * online.detach())
