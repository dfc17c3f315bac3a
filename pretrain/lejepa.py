"""LeJEPA (Balestriero & LeCun 2025, arXiv:2511.08544): views agree on an embedding that is an isotropic Gaussian.

With z[v, n] the embedding of view v of picture n, and mu[n] the mean of picture n's global views,

`loss = (1 - lambda) * mean (mu[n] - z[v, n])^2 + lambda * mean over v of N * EppsPulley(z[v, :])`

(section 5 and the listing there). No target encoder, no stop-gradient, no predictor network: SIGReg alone rules out
collapse. An embedding is the mean of the encoder's tokens through a projector of three layers with batch norm.

Views here are windows of one picture (a single frame doubled, as planning encodes it), whose patches the encoder sees
at their own places and scale, under gains and shifts of the colour channels. The paper's crops are resized and mirrored
as well; of a robot's picture that would make the arm's size and side mean nothing. Other frames of the clip are no
views either: agreeing across them would remove what an action changes. `Global' windows are larger than local ones; as
in the paper, all views are drawn towards the mean of the global ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.encoder import build_encoder, encode_clips, encode_frames
from vjepa_mpc.pretrain import ranks
from vjepa_mpc.pretrain.inverse import ActionPairs
from vjepa_mpc.pretrain.mask_predictor import normed
from vjepa_mpc.pretrain.masks import block_size, blocks, positions_of
from vjepa_mpc.pretrain.objective import EncoderLearner, EncoderModules, ObjectiveSettings


@dataclass(frozen=True)
class LeJepaSettings(ObjectiveSettings):
    """`sigreg_weight`: lambda. `global_scale`, `local_scale`: shares of the picture's area, `aspect` of both; the
    paper's values. `colour`: channels are multiplied by up to 1 +- this, and shifted by up to this many deviations.
    """

    sigreg_weight: float = 0.05
    global_views: int = 2
    local_views: int = 6
    global_scale: tuple[float, float] = (0.3, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.3)
    aspect: tuple[float, float] = (0.75, 4 / 3)
    colour: float = 0.3
    projector_width: int = 512
    embedding: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sigreg_weight <= 1:
            raise InputError(f"LeJEPA's weight of SIGReg lies in [0, 1], not at {self.sigreg_weight}.")
        if self.global_views < 1 or self.local_views < 0 or self.global_views + self.local_views < 2:
            raise InputError(
                f"LeJEPA needs at least 1 global view and 2 in all, not {self.global_views} and {self.local_views}."
            )
        for low, high in (self.global_scale, self.local_scale):
            if not 0 < low <= high <= 1:
                raise InputError(f"Scales of views rise within (0, 1], not from {low} to {high}.")
        if not 0 < self.aspect[0] <= self.aspect[1] or not 0 <= self.colour < 1:
            raise InputError(f"Aspects {self.aspect} rise and are positive; colour ({self.colour}) lies in [0, 1).")
        if min(self.projector_width, self.embedding) < 1:
            raise InputError("The projector and the embedding must be at least 1 wide.")


@dataclass(frozen=True)
class Views:
    """Windows of n pictures, v of each: the patches inside, and gain and shift of each colour channel."""

    ids: Int[Tensor, "v n k"]
    gain: Float[Tensor, "v n 3 1 1"]
    shift: Float[Tensor, "v n 3 1 1"]


@dataclass(frozen=True)
class LeJepaBatch:
    pictures: UInt8[Tensor, "n h w 3"]
    views: tuple[Views, ...]
    """The global ones, then (if any) the local ones."""
    pairs: ActionPairs | None = None


def draw_views(
    settings: LeJepaSettings, views: int, scale: tuple[float, float], count: int, rng: np.random.Generator
) -> Views:
    """`views` windows of each of `count` pictures; their size is drawn once a batch, so that they stack."""
    aspect = math.exp(rng.uniform(*np.log(settings.aspect)))
    size = block_size(settings.grid, rng.uniform(*scale), aspect)
    covered = blocks(settings.grid, size, (views * count,), rng)
    colours = rng.uniform(-settings.colour, settings.colour, size=(2, views, count, 3, 1, 1)).astype(np.float32)
    gain, shift = torch.from_numpy(1 + colours[0]), torch.from_numpy(colours[1])
    return Views(positions_of(covered, 1, rng).unflatten(0, (views, count)), gain, shift)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over the batch of all ranks; with one rank it is torch's."""

    def forward(self, input: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        if ranks.count() == 1 or not self.training:
            return super().forward(input)
        values, count = input.float(), len(input) * ranks.count()
        mean = ranks.average(values.mean(dim=0))
        variance = ranks.average((values - mean).square().mean(dim=0))
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normed = (values - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias
        return normed.to(input.dtype)


def own(views: Views) -> Views:
    """Those of this rank's pictures."""
    part = ranks.share(views.ids.shape[1])
    return Views(views.ids[:, part], views.gain[:, part], views.shift[:, part])


class LeJepaModules(EncoderModules):
    """Encoder, projector, and perhaps inverse dynamics."""

    def __init__(self, settings: LeJepaSettings, action_scale: Float[Tensor, "a"] | None) -> None:
        super().__init__()
        config = settings.size.config(settings.frames)
        self.encoder = build_encoder(config)
        width = settings.projector_width
        self.projector = nn.Sequential(
            nn.Linear(config.hidden_size, width), BatchNorm(width), nn.ReLU(),
            nn.Linear(width, width), BatchNorm(width), nn.ReLU(),
            nn.Linear(width, settings.embedding),
        )  # fmt: skip
        self.inverse = self.inverse_for(config, action_scale)


class LeJepaLearner(EncoderLearner):
    """LeJEPA as a `Learner`."""

    remedy = "raise --sigreg or lower --lr"
    settings: LeJepaSettings
    modules: LeJepaModules

    def build(self, action_scale: Float[Tensor, "a"] | None) -> LeJepaModules:
        return LeJepaModules(self.settings, action_scale)

    def batch(self, step: int) -> LeJepaBatch:
        settings = self.settings
        rng = np.random.default_rng((self.seed, step, 1))
        clip, pairs = self.clips(step)
        pictures = self.pictures(clip.frames)
        count = len(pictures) * ranks.count()
        kinds = ((settings.global_views, settings.global_scale), (settings.local_views, settings.local_scale))
        views = tuple(own(draw_views(settings, number, scale, count, rng)) for number, scale in kinds if number)
        return LeJepaBatch(pictures, views, pairs)

    def embed(self, pixels: Float[Tensor, "n 3 s s"], views: tuple[Views, ...]) -> Float[Tensor, "v n e"]:
        """Embeddings of all views of prepared pictures, the global ones first."""
        count, tubelet, pooled = len(pixels), self.settings.size.tubelet, []
        for kind in views:
            seen = (pixels * kind.gain.to(self.device) + kind.shift.to(self.device)).flatten(0, 1)
            doubled = seen[:, None].expand(-1, tubelet, -1, -1, -1).contiguous()
            tokens = encode_clips(self.modules.encoder, doubled, kind.ids.flatten(0, 1).to(self.device))
            pooled.append(tokens.mean(dim=1))
        return self.modules.projector(torch.cat(pooled)).float().unflatten(0, (-1, count))

    def loss(self, batch: LeJepaBatch, step: int) -> tuple[Tensor, dict[str, Any]]:
        settings, weight = self.settings, self.settings.sigreg_weight
        pixels = self.pixels(batch.pictures)
        embedded = self.embed(pixels, batch.views)
        centre = embedded[: settings.global_views].mean(dim=0)
        prediction = (centre - embedded).square().mean()
        statistic = torch.stack([self.statistic(view, step) for view in embedded]).mean()
        loss = (1 - weight) * prediction + weight * embedded.shape[1] * ranks.count() * statistic

        def features() -> Tensor:
            return normed(encode_frames(self.modules.encoder, pixels))

        return self.finished(loss, {"prediction": prediction, "sigreg": statistic}, batch.pairs, features)
