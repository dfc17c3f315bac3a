"""V-JEPA's block masks: what the context encoder sees and what the mask predictor must fill in.

After V-JEPA (Bardes et al. 2024, section 3.2) and V-JEPA 2 (Assran et al. 2025, appendix on pretraining):
short-range masks are the union of 8 blocks of spatial scale 0.15, long-range ones of 2 blocks of 0.7,
aspect 0.75 to 1.5, each block through all of time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError


@dataclass(frozen=True)
class BlockMask:
    """`blocks` blocks, each covering `scale` of the picture's area."""

    blocks: int
    scale: float
    aspect: tuple[float, float] = (0.75, 1.5)


SHORT_RANGE = BlockMask(blocks=8, scale=0.15)
LONG_RANGE = BlockMask(blocks=2, scale=0.7)


@dataclass(frozen=True)
class MaskedPositions:
    """Flat token positions (frame-major): what the encoder keeps [b, k] and what is to be predicted [b, m]."""

    context: Int[Tensor, "b k"]
    target: Int[Tensor, "b m"]


def sample_masks(
    mask: BlockMask, *, batch: int, frames: int, grid: int, rng: np.random.Generator
) -> MaskedPositions:
    """Draw one mask a clip. Block size is drawn once a batch, block places for every clip; rows are then cut
    (at random) to the batch's smallest count, so that they stack. At least one patch is always kept."""
    if grid < 2:
        raise InputError("Block masks need at least 2x2 patches a frame; use smaller patches.")
    aspect = math.exp(rng.uniform(math.log(mask.aspect[0]), math.log(mask.aspect[1])))
    size = block_size(grid, mask.scale, aspect)
    hidden = blocks(grid, size, (batch, mask.blocks), rng).any(axis=1)
    full = hidden.all(axis=1)
    hidden[full, rng.integers(0, grid * grid, size=int(full.sum()))] = False
    return MaskedPositions(
        context=positions_of(~hidden, frames, rng),
        target=positions_of(hidden, frames, rng),
    )


def positions_of(chosen: np.ndarray, frames: int, rng: np.random.Generator) -> Tensor:
    """Positions of the true entries of `chosen` [b, patches] in every frame, cut to the smallest row."""
    count = int(chosen.sum(axis=1).min())
    order = np.argsort(~chosen + 0.5 * rng.random(chosen.shape), axis=1)[:, :count]
    order = np.sort(order, axis=1)
    patches = chosen.shape[1]
    flat = order[:, None, :] + patches * np.arange(frames)[None, :, None]
    return torch.from_numpy(flat.reshape(len(chosen), -1))


def block_size(grid: int, scale: float, aspect: float) -> tuple[int, int]:
    """Height and width, in patches, of a block of this share of the area."""
    area = scale * grid * grid
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(grid, max(1, height)), min(grid, max(1, width))


def blocks(
    grid: int, size: tuple[int, int], shape: tuple[int, ...], rng: np.random.Generator
) -> Bool[np.ndarray, "*shape p"]:
    """Blocks anywhere in a picture, each as the patches that it covers."""
    lines = np.arange(grid)
    top = rng.integers(0, grid - size[0] + 1, size=shape)
    left = rng.integers(0, grid - size[1] + 1, size=shape)
    rows = (lines >= top[..., None]) & (lines < top[..., None] + size[0])
    columns = (lines >= left[..., None]) & (lines < left[..., None] + size[1])
    return (rows[..., :, None] & columns[..., None, :]).reshape(*shape, grid * grid)
