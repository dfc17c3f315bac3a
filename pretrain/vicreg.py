"""Variance, covariance, smoothness in time and inverse dynamics: the baseline of the planning papers.

VICReg (Bardes, Ponce & LeCun 2022, arXiv:2105.04906, section 4.1) as PLDM uses it on trajectories (Sobal et al. 2025,
arXiv:2502.14819, section 3.1), z[t] being the encoder's tokens of the pictures at time t of the clips of a batch:

- variance: `mean of max(0, gamma - sqrt(Var(z[t]) + eps))`, of each channel at each position over the batch;
- covariance: `1/d * sum over i != j of C(z[t])[i, j]^2`, of channels, over batch and positions, each position's mean
  taken away (position alone would decorrelate them);
- time: `mean of (z[t+1] - z[t])^2`, PLDM's temporal smoothness and VICReg's invariance, two frames being the two views;
- the action between two pictures, read from their tokens (`inverse.py`).

Variance and covariance are means over t. No target encoder, no stop-gradient, no mask. PLDM trains its
action-conditioned predictor together with the encoder; here that one is `train`'s, on the frozen encoder, as for every
objective. Pictures are single frames doubled, as planning encodes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.encoder import build_encoder, encode_frames
from vjepa_mpc.pretrain import ranks
from vjepa_mpc.pretrain.inverse import ActionPairs
from vjepa_mpc.pretrain.mask_predictor import normed
from vjepa_mpc.pretrain.objective import EncoderLearner, EncoderModules, ObjectiveSettings

EPS = 1e-4  # VICReg's


@dataclass(frozen=True)
class VicRegSettings(ObjectiveSettings):
    """Weights of the terms, variance to covariance as VICReg's 25 to 1; `gamma`: the deviation asked for."""

    inverse_weight: float = 1.0
    variance_weight: float = 1.0
    covariance_weight: float = 0.04
    time_weight: float = 0.1
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = (self.variance_weight, self.covariance_weight, self.time_weight)
        if min(weights) < 0 or self.gamma <= 0:
            raise InputError(f"The weights of VICReg {weights} are not negative, and gamma ({self.gamma}) is positive.")
        least = 2 * self.size.tubelet
        if self.frames < least:
            raise InputError(f"Smoothness in time needs clips of at least {least} frames; raise --frames.")


def variance(tokens: Float[Tensor, "b p d"], gamma: float) -> Float[Tensor, ""]:
    """How far deviations over the batch (of all ranks) stay below `gamma`: 0 where none does."""
    return F.relu(gamma - (ranks.variance(tokens) + EPS).sqrt()).mean()


def covariance(tokens: Float[Tensor, "b p d"]) -> Float[Tensor, ""]:
    """Sum of the squared covariances between different channels over the batch of all ranks, over their number."""
    count, positions, width = tokens.shape
    centred = (tokens - ranks.average(tokens.mean(dim=0))).flatten(0, 1)
    matrix = ranks.average(centred.T @ centred) / ((count - 1 / ranks.count()) * positions)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / width


@dataclass(frozen=True)
class VicRegBatch:
    pictures: UInt8[Tensor, "n h w 3"]
    """All those of the clips, one clip after the other."""
    pairs: ActionPairs | None = None


class VicRegModules(EncoderModules):
    """Encoder, and inverse dynamics."""

    def __init__(self, settings: VicRegSettings, action_scale: Float[Tensor, "a"] | None) -> None:
        super().__init__()
        config = settings.size.config(settings.frames)
        self.encoder = build_encoder(config)
        self.inverse = self.inverse_for(config, action_scale)


class VicRegLearner(EncoderLearner):
    """Variance and covariance with inverse dynamics as a `Learner`."""

    remedy = "raise variance_weight (--set variance_weight=...) or lower --lr"
    settings: VicRegSettings
    modules: VicRegModules

    def build(self, action_scale: Float[Tensor, "a"] | None) -> VicRegModules:
        return VicRegModules(self.settings, action_scale)

    def batch(self, step: int) -> VicRegBatch:
        clip, pairs = self.clips(step)
        return VicRegBatch(self.pictures(clip.frames), pairs)

    def loss(self, batch: VicRegBatch, step: int) -> tuple[Tensor, dict[str, Any]]:
        settings = self.settings
        tokens = encode_frames(self.modules.encoder, self.pixels(batch.pictures)).float()
        with torch.autocast(tokens.device.type, enabled=False):  # covariances in bfloat16 would be rough
            times = tokens.unflatten(0, (-1, settings.frames // settings.size.tubelet)).unbind(dim=1)
            figures: dict[str, Any] = {
                "variance": torch.stack([variance(one, settings.gamma) for one in times]).mean(),
                "covariance": torch.stack([covariance(one) for one in times]).mean(),
                "time": (torch.stack(times[1:]) - torch.stack(times[:-1])).square().mean(),
            }
        loss = settings.variance_weight * figures["variance"] + settings.covariance_weight * figures["covariance"]
        loss = loss + settings.time_weight * figures["time"]
        seen = tokens.detach()
        figures["sigreg"] = lambda: float(self.statistic(seen.flatten(0, 1), step))
        return self.finished(loss, figures, batch.pairs, lambda: normed(seen))
