"""I-JEPA (Assran et al. 2023, arXiv:2301.08243, section 3): a picture's blocks predicted from one context block.

Per picture one large context block and `targets` smaller target blocks are drawn; what the targets hide is taken out
of the context. The context encoder sees the context's patches only. For each target block by itself the predictor gets
the context's tokens and mask tokens at the block's positions, and is asked for the EMA encoder's tokens of the whole
picture there (layer-normed, as in the authors' code), in mean squared error over all patches.

Pictures are single frames, each doubled to the encoder's tubelet as planning encodes them. Differences: the EMA's
momentum is constant (theirs rises from 0.996 to 1 over the run), so is the weight decay; SIGReg may be added
(`sigreg_weight`, 0 by default), for on video of little variety an EMA target alone tends to collapse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.encoder import encode_clips, encode_frames
from vjepa_mpc.pretrain import ranks
from vjepa_mpc.pretrain.inverse import ActionPairs
from vjepa_mpc.pretrain.mask_predictor import MaskedModules, at, normed
from vjepa_mpc.pretrain.masks import block_size, blocks, positions_of
from vjepa_mpc.pretrain.objective import EncoderLearner, ObjectiveSettings
from vjepa_mpc.pretrain.optimising import follow

if TYPE_CHECKING:
    from transformers import VJEPA2Model


@dataclass(frozen=True)
class IJepaSettings(ObjectiveSettings):
    """`targets` blocks of `target_scale` of the picture's area and `target_aspect`; a square context block of
    `context_scale`. The published values."""

    ema: float = 0.996
    sigreg_weight: float = 0.0
    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    predictor_width: int = 96
    predictor_depth: int = 4
    predictor_heads: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.ema <= 1 and self.sigreg_weight >= 0 and self.targets >= 1):
            raise InputError(
                f"ema ({self.ema}) lies in [0, 1], the weight of SIGReg ({self.sigreg_weight}) is not negative, and "
                f"there is at least 1 target, not {self.targets}."
            )
        for low, high in (self.target_scale, self.context_scale):
            if not 0 < low <= high <= 1:
                raise InputError(f"Block scales rise within (0, 1], not from {low} to {high}.")
        if not 0 < self.target_aspect[0] <= self.target_aspect[1]:
            raise InputError(f"The targets' aspects {self.target_aspect} must rise and be positive.")


@dataclass(frozen=True)
class MultiBlock:
    """Patch positions: the context [n, k] that is kept, and of each target block its own [n, m]."""

    context: Int[Tensor, "n k"]
    targets: tuple[Int[Tensor, "n m"], ...]


@dataclass(frozen=True)
class IJepaBatch:
    pictures: UInt8[Tensor, "n h w 3"]
    blocks: MultiBlock
    pairs: ActionPairs | None = None


def multi_block(settings: IJepaSettings, count: int, rng: np.random.Generator) -> MultiBlock:
    """Blocks for `count` pictures. Sizes are drawn once a batch, places for every picture; what is left of the
    context is cut (at random) to the batch's least, so that it stacks. At least one patch is always kept."""
    grid = settings.grid
    if grid < 2:
        raise InputError("Block masks need at least 2x2 patches a picture; use smaller patches.")
    aspect = math.exp(rng.uniform(*np.log(settings.target_aspect)))
    target_size = block_size(grid, rng.uniform(*settings.target_scale), aspect)
    context_size = block_size(grid, rng.uniform(*settings.context_scale), 1.0)
    targets = [blocks(grid, target_size, (count,), rng) for _ in range(settings.targets)]
    context = blocks(grid, context_size, (count,), rng)
    kept = context & ~np.logical_or.reduce(targets)
    nothing = ~kept.any(axis=1)
    kept[nothing] = context[nothing] & ~targets[0][nothing]  # as the authors do: overlap rather than nothing
    nothing = ~kept.any(axis=1)
    kept[nothing, rng.integers(0, grid * grid, size=int(nothing.sum()))] = True
    return MultiBlock(positions_of(kept, 1, rng), tuple(positions_of(target, 1, rng) for target in targets))


class IJepaLearner(EncoderLearner):
    """I-JEPA as a `Learner`; the target encoder is what is kept."""

    remedy = "give --sigreg a weight or lower --lr"
    settings: IJepaSettings
    modules: MaskedModules

    def build(self, action_scale: Tensor | None) -> MaskedModules:
        settings = self.settings
        predictor = (settings.predictor_width, settings.predictor_depth, settings.predictor_heads)
        return MaskedModules(settings.size.config(settings.frames), predictor, action_scale)

    @property
    def product(self) -> VJEPA2Model:
        return self.modules.target

    def batch(self, step: int) -> IJepaBatch:
        rng = np.random.default_rng((self.seed, step, 1))
        clip, pairs = self.clips(step)
        pictures = self.pictures(clip.frames)
        drawn = multi_block(self.settings, len(pictures) * ranks.count(), rng)
        part = ranks.share(len(drawn.context))
        own = MultiBlock(drawn.context[part], tuple(target[part] for target in drawn.targets))
        return IJepaBatch(pictures, own, pairs)

    def loss(self, batch: IJepaBatch, step: int) -> tuple[Tensor, dict[str, Any]]:
        modules, settings = self.modules, self.settings
        pixels = self.pixels(batch.pictures)
        with torch.no_grad():
            whole = normed(encode_frames(modules.target, pixels))
        doubled = pixels[:, None].expand(-1, settings.size.tubelet, -1, -1, -1).contiguous()
        ids = batch.blocks.context.to(self.device)
        context = encode_clips(modules.encoder, doubled, ids)
        prediction = pixels.new_zeros(())
        for block in batch.blocks.targets:
            asked = block.to(self.device)
            error = modules.predictor(context, ids, asked).float() - at(whole, asked)
            prediction = prediction + error.square().mean() / len(batch.blocks.targets)
        statistic = self.statistic(context.flatten(0, 1), step)
        loss = prediction + settings.sigreg_weight * statistic
        return self.finished(loss, {"prediction": prediction, "sigreg": statistic}, batch.pairs, lambda: whole)

    def after_step(self, step: int) -> None:
        follow(self.modules.target.parameters(), self.modules.encoder.parameters(), self.settings.ema)
