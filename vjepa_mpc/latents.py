"""The latent space that predictor and cost live in: encoder tokens, normalised, pooled, standardised.

It belongs to the world model, not to the encoder: the same encoder serves full grids for V-JEPA 2-AC
and compact ones for planning on a laptop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.encoder import LAYER_NORM_EPS

POOLING = ("mean", "concat")


@dataclass(frozen=True)
class LatentConfig:
    """`encoder_grid` patches a side, pooled to `grid` a side; `dim` channels of a pooled position. `pooling`:
    neighbours are averaged ("mean"), or put side by side ("concat", as Swin merges patches: Liu et al. 2021,
    arXiv:2103.14030, section 3.1), which forgets nothing of where in the pooled position things are. `standardise`: per
    position and channel, with statistics of the training frames that are stored with the weights. `centre`:
    before that, each picture's mean over its positions is taken away. What all positions share (how much of
    the picture the arm covers, by way of its contrast) says little of where things are, and would outweigh it
    in a distance."""

    encoder_grid: int
    grid: int
    dim: int
    standardise: bool = True
    centre: bool = False
    pooling: str = "mean"

    def __post_init__(self) -> None:
        if self.grid < 1 or self.encoder_grid % self.grid:
            raise InputError(
                f"The encoder's {self.encoder_grid}x{self.encoder_grid} patches cannot be pooled to "
                f"{self.grid}x{self.grid}; choose a divisor of {self.encoder_grid}."
            )
        if self.pooling not in POOLING:
            raise unknown_name("pooling", self.pooling, POOLING)
        if self.dim % self.parts:
            raise InputError(f"{self.parts} neighbours side by side cannot make {self.dim} channels; give a multiple.")
        if self.centre and self.grid == 1:
            raise InputError("A single position is nothing without its mean; raise the grid or leave centring out.")

    @property
    def positions(self) -> int:
        return self.grid * self.grid

    @property
    def parts(self) -> int:
        """How many of the encoder's tokens lie side by side in a pooled position."""
        return (self.encoder_grid // self.grid) ** 2 if self.pooling == "concat" else 1

    @property
    def channels(self) -> int:
        """Channels of the encoder's tokens."""
        return self.dim // self.parts


class LatentSpace(nn.Module):
    """Maps encoder tokens [n, patches, c] to latents [n, p, d] and predictions back onto the space."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.positions, config.dim))
        self.register_buffer("std", torch.ones(config.positions, config.dim))

    def pool(self, tokens: Float[Tensor, "n patches c"]) -> Float[Tensor, "n p d"]:
        """Parameter-free layer norm, then pooling to the planning grid."""
        config = self.config
        tokens = F.layer_norm(tokens.float(), tokens.shape[-1:], eps=LAYER_NORM_EPS)
        if config.grid == config.encoder_grid:
            return tokens
        factor = config.encoder_grid // config.grid
        maps = tokens.unflatten(1, (config.grid, factor, config.grid, factor))
        if config.pooling == "concat":
            return maps.transpose(2, 3).flatten(3).flatten(1, 2)
        return maps.mean(dim=(2, 4)).flatten(1, 2)

    def averaged(self, pooled: Float[Tensor, "n p d"]) -> Float[Tensor, "n p c"]:
        """Pooled latents as "mean" would have made them, in the encoder's channels."""
        parts = self.config.parts
        return pooled if parts == 1 else pooled.unflatten(2, (parts, -1)).mean(dim=2)

    def forward(self, tokens: Float[Tensor, "n patches c"]) -> Float[Tensor, "n p d"]:
        return self.standardise(self.pool(tokens))

    def standardise(self, pooled: Float[Tensor, "n p d"]) -> Float[Tensor, "n p d"]:
        """Pooled tokens (what caches hold) as predictor and cost see them."""
        latents = self._centred(pooled)
        return (latents - self.mean) / self.std if self.config.standardise else latents

    def _centred(self, pooled: Float[Tensor, "n p d"]) -> Float[Tensor, "n p d"]:
        return pooled - pooled.mean(dim=1, keepdim=True) if self.config.centre else pooled

    def renormalise(self, prediction: Float[Tensor, "*batch p d"]) -> Float[Tensor, "*batch p d"]:
        """Put a prediction back on the space: layer norm as V-JEPA 2-AC does, nothing once standardised."""
        if self.config.standardise:
            return prediction
        return F.layer_norm(prediction, prediction.shape[-1:], eps=LAYER_NORM_EPS)

    def fit(self, pooled: Float[Tensor, "n p d"], episodes: Int[Tensor, "n"]) -> None:
        """Set the statistics from pooled latents of training frames.

        The mean is that of all frames; the deviation that WITHIN episodes (`episodes` numbers each frame's),
        so that what an action can change has unit size, whatever the looks that differ between episodes.
        Channels that hardly vary keep std 1 (divided by their own tiny deviation they would be noise).
        `InputError` when nothing varies within any episode: there is nothing that actions could be seen to change.
        """
        pooled = self._centred(pooled.float())
        _, group, count = episodes.unique(return_inverse=True, return_counts=True)
        centres = pooled.new_zeros(len(count), *pooled.shape[1:]).index_add_(0, group, pooled)
        centres /= count[:, None, None]
        within = (pooled - centres[group]).square().sum(0) / max(1, len(pooled) - len(count))
        std = within.sqrt()
        if not bool((std > 0).any()):
            raise InputError("No latent varies within any episode: give episodes of several different frames.")
        self.mean.copy_(pooled.mean(0))
        self.std.copy_(torch.where(std > 1e-2 * std.mean(), std, torch.ones_like(std)))
