"""Masked latent prediction on video (V-JEPA), kept from collapsing by SIGReg.

A context encoder sees the kept patches of a clip; a narrow predictor fills in, at the masked positions,
what a slowly moving copy of the encoder (the EMA target) makes of the whole clip, in L1 on layer-normed
latents (V-JEPA, Bardes et al. 2024; V-JEPA 2, Assran et al. 2025). With a context loss the kept patches are
predicted too, so that tokens stay about their own place instead of gathering what is elsewhere (V-JEPA 2.1,
Mur-Labadia et al. 2026). On low-variety robot video the target alone collapses, so SIGReg (LeJEPA) acts on
the context encoder's tokens, or on their content (`sigreg.content`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.encoder import encode_clips
from vjepa_mpc.pretrain import ranks
from vjepa_mpc.pretrain.inverse import ActionPairs
from vjepa_mpc.pretrain.mask_predictor import MaskedModules, at, normed
from vjepa_mpc.pretrain.masks import LONG_RANGE, SHORT_RANGE, BlockMask, MaskedPositions, sample_masks
from vjepa_mpc.pretrain.objective import EncoderLearner, ObjectiveSettings
from vjepa_mpc.pretrain.optimising import follow
from vjepa_mpc.pretrain.sigreg import REGULARISED

if TYPE_CHECKING:
    from transformers import VJEPA2Model


@dataclass(frozen=True)
class VJepaSettings(ObjectiveSettings):
    """`still`: share of steps whose clips are single frames doubled, as planning encodes them. `sigreg_on`: what
    SIGReg acts on, a name in `sigreg.REGULARISED`."""

    still: float = 0.5
    ema: float = 0.996
    sigreg_weight: float = 0.3
    sigreg_on: str = "tokens"
    context_weight: float = 0.0
    predictor_width: int = 96
    predictor_depth: int = 4
    predictor_heads: int = 3
    masks: tuple[BlockMask, ...] = (SHORT_RANGE, LONG_RANGE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.still <= 1 and 0 <= self.ema <= 1 and min(self.sigreg_weight, self.context_weight) >= 0):
            raise InputError(
                f"still ({self.still}) and ema ({self.ema}) lie in [0, 1], and the weights of SIGReg and of the "
                f"context loss ({self.sigreg_weight}, {self.context_weight}) are not negative."
            )
        if self.sigreg_on not in REGULARISED:
            raise unknown_name("part of the tokens for SIGReg", self.sigreg_on, REGULARISED)


@dataclass(frozen=True)
class VJepaBatch:
    """Clips and their masks for one step, and with inverse dynamics two pictures of each clip."""

    clips: UInt8[Tensor, "b t h w 3"]
    masks: tuple[MaskedPositions, ...]
    pairs: ActionPairs | None = None


class VJepaLearner(EncoderLearner):
    """V-JEPA with SIGReg as a `Learner`."""

    remedy = "raise --sigreg or lower --lr"
    settings: VJepaSettings
    modules: MaskedModules

    def build(self, action_scale: Float[Tensor, "a"] | None) -> MaskedModules:
        settings = self.settings
        predictor = (settings.predictor_width, settings.predictor_depth, settings.predictor_heads)
        return MaskedModules(settings.size.config(settings.frames), predictor, action_scale)

    @property
    def product(self) -> VJEPA2Model:
        return self.modules.target

    def batch(self, step: int) -> VJepaBatch:
        settings, tubelet = self.settings, self.settings.size.tubelet
        rng = np.random.default_rng((self.seed, step, 1))
        clip, pairs = self.clips(step)
        clips = clip.frames
        if rng.random() < settings.still:
            clips = clips[:, ::tubelet].repeat_interleave(tubelet, dim=1)
        count, frames = len(clips) * ranks.count(), settings.frames // tubelet
        masks = tuple(
            own(sample_masks(mask, batch=count, frames=frames, grid=settings.grid, rng=rng)) for mask in settings.masks
        )
        return VJepaBatch(clips, masks, pairs)

    def loss(self, batch: VJepaBatch, step: int) -> tuple[Tensor, dict[str, Any]]:
        settings, modules = self.settings, self.modules
        pixels = self.pixels(batch.clips.flatten(0, 1)).unflatten(0, batch.clips.shape[:2])
        with torch.no_grad():
            whole = normed(encode_clips(modules.target, pixels))
        prediction_loss, context_loss = pixels.new_zeros(()), pixels.new_zeros(())
        seen = []
        for mask in batch.masks:
            context_ids, target_ids = mask.context.to(self.device), mask.target.to(self.device)
            context = encode_clips(modules.encoder, pixels, context_ids)
            tokens, kept = modules.predictor.tokens(context, context_ids, target_ids), context_ids.shape[1]
            hidden = (modules.predictor.read(tokens[:, kept:]).float() - at(whole, target_ids)).abs()
            prediction_loss = prediction_loss + hidden.mean() / len(batch.masks)
            if settings.context_weight:
                shown = (modules.predictor.read(tokens[:, :kept]).float() - at(whole, context_ids)).abs()
                share = closeness(context_ids, target_ids, settings.grid)
                context_loss = context_loss + (share * shown.mean(dim=-1)).mean() / len(batch.masks)
            seen.append(REGULARISED[settings.sigreg_on](context, context_ids, settings.grid**2))
        statistic = self.statistic(torch.cat(seen), step)
        loss = prediction_loss + settings.context_weight * context_loss + settings.sigreg_weight * statistic
        figures = {"prediction": prediction_loss, "sigreg": statistic}
        if settings.context_weight:
            figures["context"] = context_loss
        return self.finished(loss, figures, batch.pairs, lambda: whole)

    def after_step(self, step: int) -> None:
        follow(self.modules.target.parameters(), self.modules.encoder.parameters(), self.settings.ema)


def own(masks: MaskedPositions) -> MaskedPositions:
    """Those of this rank's clips."""
    part = ranks.share(len(masks.context))
    return MaskedPositions(masks.context[part], masks.target[part])


def closeness(
    kept: Int[Tensor, "b k"], hidden: Int[Tensor, "b m"], grid: int
) -> Float[Tensor, "b k"]:
    """One over the root of each kept patch's distance, in patches, to the nearest hidden one: the weight of its
    loss (V-JEPA 2.1, section 3). Masks go through all frames, so places alone count."""

    def places(ids: Tensor) -> Tensor:
        inside = ids % (grid * grid)
        return torch.stack((inside // grid, inside % grid), dim=-1).float()

    return torch.cdist(places(kept), places(hidden)).amin(dim=-1).rsqrt()
