"""Masked latent prediction on video (V-JEPA), kept from collapsing by SIGReg, watched while it trains.

A context encoder sees the kept patches of a clip; a narrow predictor fills in, at the masked positions,
what a slowly moving copy of the encoder (the EMA target) makes of the whole clip, in L1 on layer-normed
latents (V-JEPA, Bardes et al. 2024; V-JEPA 2, Assran et al. 2025). With a context loss the kept patches are
predicted too, so that tokens stay about their own place instead of gathering what is elsewhere (V-JEPA 2.1,
Mur-Labadia et al. 2026). On low-variety robot video the target alone collapses, so SIGReg (LeJEPA) acts on
the context encoder's tokens. With inverse dynamics the action between two pictures is read from their tokens too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.encoder import LAYER_NORM_EPS, build_encoder, encode_clips, encode_frames, encoder_grid, run_layers
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.pretrain.data import ClipBatches, MixtureBatches
from vjepa_mpc.pretrain.inverse import ActionPairs, InverseDynamics, PairSource
from vjepa_mpc.pretrain.masks import LONG_RANGE, SHORT_RANGE, BlockMask, MaskedPositions, sample_masks
from vjepa_mpc.pretrain.sigreg import sigreg

if TYPE_CHECKING:
    from transformers import VJEPA2Config, VJEPA2Model


@dataclass(frozen=True)
class EncoderSize:
    """Shape of the encoder: square pictures of `picture` pixels, `patch` pixels a patch."""

    picture: int = 64
    patch: int = 8
    tubelet: int = 2
    width: int = 128
    depth: int = 6
    heads: int = 2

    def config(self, frames: int) -> VJEPA2Config:
        """As Hugging Face's configuration, without the mask predictor (it does not ship)."""
        from transformers import VJEPA2Config

        if min(self.picture, self.patch, self.width, self.depth, self.heads) < 1:
            raise InputError(f"Every part of the encoder's size must be at least 1, got {self}.")
        if self.picture % self.patch or self.width % self.heads:
            raise InputError(
                f"The picture ({self.picture}) must be a multiple of the patch ({self.patch}) and the width "
                f"({self.width}) of the heads ({self.heads})."
            )
        return VJEPA2Config(
            crop_size=self.picture,
            patch_size=self.patch,
            tubelet_size=self.tubelet,
            frames_per_clip=frames,
            hidden_size=self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            mlp_ratio=4.0,
            hidden_act="gelu",
            pred_num_hidden_layers=0,
            pred_hidden_size=self.width,
            pred_num_attention_heads=self.heads,
            pred_num_mask_tokens=1,
        )


@dataclass(frozen=True)
class VJepaSettings:
    """The objective. `contrast`: see `ImagePreparation`. `still`: share of steps whose clips are single frames
    doubled, as planning encodes them."""

    size: EncoderSize = EncoderSize()
    frames: int = 4
    stride: int = 2
    contrast: str = "picture"
    still: float = 0.5
    ema: float = 0.996
    sigreg_weight: float = 0.3
    sigreg_slices: int = 128
    context_weight: float = 0.0
    inverse_weight: float = 0.0
    predictor_width: int = 96
    predictor_depth: int = 4
    predictor_heads: int = 3
    masks: tuple[BlockMask, ...] = (SHORT_RANGE, LONG_RANGE)

    def __post_init__(self) -> None:
        if self.size.tubelet < 1 or self.frames < 1 or self.frames % self.size.tubelet:
            raise InputError(f"Clips of {self.frames} frames do not divide into tubelets of {self.size.tubelet}.")
        weights = (self.sigreg_weight, self.context_weight, self.inverse_weight)
        if not (0 <= self.still <= 1 and 0 <= self.ema <= 1 and min(weights) >= 0):
            raise InputError(
                f"still ({self.still}) and ema ({self.ema}) lie in [0, 1], and the weights of SIGReg, of the "
                f"context loss and of inverse dynamics {weights} are not negative."
            )


class MaskPredictor(nn.Module):
    """Narrow transformer that predicts target latents, at kept and masked positions, from context tokens."""

    def __init__(self, config: VJEPA2Config, width: int, depth: int, heads: int) -> None:
        from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Layer

        super().__init__()
        self.grid = encoder_grid(config)
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(
            VJEPA2Layer(config, hidden_size=width, num_attention_heads=heads) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.project = nn.Linear(width, config.hidden_size)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def tokens(
        self, context: Float[Tensor, "b k d"], positions: Int[Tensor, "b k"], targets: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b n w"]:
        """What the layers make of the kept tokens at `positions`, then of the hidden `targets`: n = k + m."""
        tokens = self.embed(context)
        asked = self.mask_token.to(tokens.dtype).expand(*targets.shape, -1)
        ids = torch.cat([positions, targets], dim=1)
        return run_layers(self.layers, torch.cat([tokens, asked], dim=1), ids, self.grid)

    def read(self, tokens: Float[Tensor, "b n w"]) -> Float[Tensor, "b n d"]:
        """The latents that tokens stand for."""
        return self.project(self.norm(tokens))

    def forward(
        self, context: Float[Tensor, "b k d"], positions: Int[Tensor, "b k"], targets: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b m d"]:
        """Predictions at the hidden positions."""
        return self.read(self.tokens(context, positions, targets)[:, positions.shape[1] :])


class VJepaModules(nn.Module):
    """Context encoder, its moving average, the mask predictor, and (for actions of this scale) inverse dynamics."""

    def __init__(self, settings: VJepaSettings, action_scale: Float[Tensor, "a"] | None = None) -> None:
        super().__init__()
        config = settings.size.config(settings.frames)
        self.encoder: VJEPA2Model = build_encoder(config)
        self.target: VJEPA2Model = copy.deepcopy(self.encoder)
        for parameter in self.target.parameters():
            parameter.requires_grad_(False)
        self.predictor = MaskPredictor(
            config, settings.predictor_width, settings.predictor_depth, settings.predictor_heads
        )
        self.inverse: InverseDynamics | None = None
        if action_scale is not None:
            self.inverse = InverseDynamics(encoder_grid(config), config.hidden_size, action_scale)


@dataclass(frozen=True)
class VJepaBatch:
    """Clips and their masks for one step, and with inverse dynamics two pictures of each clip."""

    clips: UInt8[Tensor, "b t h w 3"]
    masks: tuple[MaskedPositions, ...]
    pairs: ActionPairs | None = None


class VJepaLearner:
    """V-JEPA with SIGReg as a `Learner`."""

    def __init__(
        self,
        settings: VJepaSettings,
        data: ClipBatches | MixtureBatches,
        preparation: ImagePreparation,
        device: torch.device,
        seed: int,
    ) -> None:
        if data.size < 2:
            raise InputError("Pretraining needs at least 2 clips a step: a collapse is seen in their spread.")
        self.settings, self.data, self.preparation, self.device, self.seed = settings, data, preparation, device, seed
        self._pairs = PairSource(data, seed) if settings.inverse_weight else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.modules = VJepaModules(settings, self._pairs.scale if self._pairs else None).to(device)
        self._weights = [
            (target, online)
            for target, online in zip(
                self.modules.target.parameters(), self.modules.encoder.parameters(), strict=True
            )
        ]

    def batch(self, step: int) -> VJepaBatch:
        settings, size = self.settings, self.settings.size
        rng = np.random.default_rng((self.seed, step, 1))
        clip = self.data.batch(step)
        pairs = self._pairs.pairs(clip, step) if self._pairs else None
        clips = clip.frames
        if rng.random() < settings.still:
            clips = clips[:, :: size.tubelet].repeat_interleave(size.tubelet, dim=1)
        masks = tuple(
            sample_masks(
                mask,
                batch=len(clips),
                frames=settings.frames // size.tubelet,
                grid=size.picture // size.patch,
                rng=rng,
            )
            for mask in settings.masks
        )
        return VJepaBatch(clips, masks, pairs)

    def loss(self, batch: VJepaBatch, step: int) -> tuple[Tensor, dict[str, Any]]:
        settings, modules = self.settings, self.modules
        clips = batch.clips.to(self.device, non_blocking=True)
        pixels = self.preparation.prepare(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        with torch.no_grad():
            whole = encode_clips(modules.target, pixels).float()
            whole = F.layer_norm(whole, whole.shape[-1:], eps=LAYER_NORM_EPS)
        prediction_loss, context_loss = pixels.new_zeros(()), pixels.new_zeros(())
        seen = []
        for mask in batch.masks:
            context_ids, target_ids = mask.context.to(self.device), mask.target.to(self.device)
            context = encode_clips(modules.encoder, pixels, context_ids)
            tokens, kept = modules.predictor.tokens(context, context_ids, target_ids), context_ids.shape[1]
            hidden = _errors(modules.predictor.read(tokens[:, kept:]), whole, target_ids)
            prediction_loss = prediction_loss + hidden.mean() / len(batch.masks)
            if settings.context_weight:
                shown = _errors(modules.predictor.read(tokens[:, :kept]), whole, context_ids)
                share = closeness(context_ids, target_ids, encoder_grid(modules.encoder.config))
                context_loss = context_loss + (share * shown.mean(dim=-1)).mean() / len(batch.masks)
            seen.append(context.flatten(0, 1))
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        statistic = sigreg(torch.cat(seen), slices=settings.sigreg_slices, generator=generator)
        loss = prediction_loss + settings.context_weight * context_loss + settings.sigreg_weight * statistic
        figures = {"prediction": prediction_loss, "sigreg": statistic, "spread": whole.std(dim=0).mean()}
        if settings.context_weight:
            figures["context"] = context_loss
        if batch.pairs is not None and modules.inverse is not None:
            figures["inverse"] = self._inverse_loss(modules.inverse, batch.pairs)
            loss = loss + settings.inverse_weight * figures["inverse"]
        return loss, {name: figure.detach() for name, figure in figures.items()}

    def _inverse_loss(self, inverse: InverseDynamics, pairs: ActionPairs) -> Tensor:
        pictures = pairs.pictures.transpose(0, 1).flatten(0, 1).to(self.device, non_blocking=True)
        before, after = encode_frames(self.modules.encoder, self.preparation.prepare(pictures)).chunk(2)
        return inverse.loss(before, after, pairs.actions.to(self.device, non_blocking=True))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        momentum = self.settings.ema
        targets: list[Tensor] = [target for target, _ in self._weights]
        online: list[Tensor] = [weights for _, weights in self._weights]
        torch._foreach_lerp_(targets, online, 1 - momentum)

    def check(self, figures: Mapping[str, float]) -> None:
        if figures["step"] >= 100 and figures["spread"] < COLLAPSED_SPREAD:
            raise InputError(
                f"The encoder collapsed at step {figures['step']:.0f}: the spread of its features over the batch "
                f"fell to {figures['spread']:.4f} (below {COLLAPSED_SPREAD}); raise --sigreg or lower --lr."
            )


def _errors(
    predicted: Float[Tensor, "b n d"], whole: Float[Tensor, "b all d"], ids: Int[Tensor, "b n"]
) -> Float[Tensor, "b n d"]:
    """Absolute errors of predictions at positions `ids` of the target's tokens."""
    return (predicted.float() - torch.gather(whole, 1, ids[..., None].expand(-1, -1, whole.shape[-1]))).abs()


def closeness(
    kept: Int[Tensor, "b k"], hidden: Int[Tensor, "b m"], grid: int
) -> Float[Tensor, "b k"]:
    """One over the root of each kept patch's distance, in patches, to the nearest hidden one: the weight of its
    loss (V-JEPA 2.1, section 3). Masks go through all frames, so places alone count."""

    def places(ids: Tensor) -> Tensor:
        inside = ids % (grid * grid)
        return torch.stack((inside // grid, inside % grid), dim=-1).float()

    return torch.cdist(places(kept), places(hidden)).amin(dim=-1).rsqrt()


COLLAPSED_SPREAD = 0.02
"""Mean standard deviation over a batch, per position and channel, of layer-normed latents (whose overall
deviation is 1) below which every picture looks the same to the encoder."""
