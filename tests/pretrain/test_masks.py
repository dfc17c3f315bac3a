"""Block masks: what they hide, and that they are drawn fairly and alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.pretrain.masks import LONG_RANGE, SHORT_RANGE, BlockMask, MaskedPositions, sample_masks


def sample(
    mask: BlockMask = SHORT_RANGE, seed: int = 0, *, batch: int = 5, frames: int = 3, grid: int = 8
) -> MaskedPositions:
    return sample_masks(mask, batch=batch, frames=frames, grid=grid, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("grid", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("mask", [SHORT_RANGE, LONG_RANGE], ids=["short", "long"])
def test_positions_are_in_range_distinct_and_disjoint(mask: BlockMask, grid: int) -> None:
    for seed in range(20):
        drawn = sample(mask, seed, grid=grid)
        assert drawn.context.shape[0] == drawn.target.shape[0] == 5
        assert drawn.context.shape[1] >= 3 and drawn.target.shape[1] >= 3  # a patch at least, in each frame
        for context, target in zip(drawn.context.tolist(), drawn.target.tolist(), strict=True):
            everything = context + target
            assert len(set(everything)) == len(everything)
            assert min(everything) >= 0 and max(everything) < 3 * grid * grid


def test_a_patch_is_kept_or_hidden_through_all_of_time() -> None:
    drawn = sample(frames=4, grid=8)
    for positions in (drawn.context, drawn.target):
        by_frame = positions.view(5, 4, -1) - 64 * torch.arange(4)[None, :, None]
        assert torch.equal(by_frame, by_frame[:, :1].expand_as(by_frame))


def test_one_clip_alone_loses_nothing_to_stacking() -> None:
    """With a single row nothing is cut: context and target make up the whole picture."""
    drawn = sample(batch=1, frames=1)
    assert sorted(drawn.context[0].tolist() + drawn.target[0].tolist()) == list(range(64))


def test_one_block_is_one_rectangle_of_the_asked_area_and_aspect() -> None:
    shapes = set()
    for seed in range(200):
        drawn = sample(BlockMask(blocks=1, scale=0.15), seed, batch=1, frames=1, grid=16)
        places = drawn.target[0].numpy()
        rows, columns = np.unique(places // 16), np.unique(places % 16)
        assert len(places) == len(rows) * len(columns)
        assert np.ptp(rows) == len(rows) - 1 and np.ptp(columns) == len(columns) - 1
        shapes.add((len(rows), len(columns)))
    areas = [height * width / 256 for height, width in shapes]
    aspects = [height / width for height, width in shapes]
    assert min(areas) > 0.12 and max(areas) < 0.18
    assert 0.6 < min(aspects) < 0.85 and 1.3 < max(aspects) < 1.8  # rounded to whole patches


def test_short_and_long_range_hide_what_v_jepa_hides() -> None:
    """About 70 to 90 % of a picture of 16 x 16 patches is hidden by either kind (V-JEPA, section 3.2: ~90 %)."""
    for mask, low, high in ((SHORT_RANGE, 0.55, 0.85), (LONG_RANGE, 0.75, 0.95)):
        shares = [sample(mask, seed, batch=1, frames=1, grid=16).target.shape[1] / 256 for seed in range(100)]
        assert low < np.mean(shares) < high


def test_every_clip_has_its_own_mask() -> None:
    drawn = sample(batch=6, grid=16)
    assert len({tuple(row) for row in drawn.target.tolist()}) == 6


def test_stacking_drops_patches_fairly() -> None:
    """Cut to the smallest row at random, not from one corner: every kept patch is sometimes dropped."""
    seen = np.zeros(16)
    for seed in range(300):
        np.add.at(seen, sample(seed=seed, batch=8, frames=1, grid=4).context.numpy().ravel(), 1)
    assert seen.min() > 0.25 * seen.mean()
    assert abs(seen[:8].sum() / seen.sum() - 0.5) < 0.06  # neither the top nor the bottom is favoured


def test_the_generator_decides_everything() -> None:
    first, same, other = sample(seed=4), sample(seed=4), sample(seed=5)
    assert torch.equal(first.context, same.context) and torch.equal(first.target, same.target)
    assert first.target.shape != other.target.shape or not torch.equal(first.target, other.target)


def test_a_mask_that_hides_everything_still_keeps_a_patch() -> None:
    drawn = sample(BlockMask(blocks=2, scale=1.0, aspect=(1.0, 1.0)), grid=4)
    assert drawn.context.shape == (5, 3) and drawn.target.shape == (5, 3 * 15)
    assert len({row[0] for row in drawn.context.tolist()}) > 1  # a different one in different clips


def test_one_patch_a_frame_cannot_be_masked() -> None:
    with pytest.raises(InputError, match="at least 2x2"):
        sample(grid=1)
