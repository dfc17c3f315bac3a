"""How far a picture lies from all that a model was trained on.

Latents of any picture are of ordinary size: noise and other robots stay, channel by channel, within the range of the
training pictures. But these vary together, along few directions; what a picture has outside the subspace that they
span gives it away (the residual of principal components: Jackson & Mudholkar 1979, Technometrics 21, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

DIRECTIONS = 128
COARSE = 4  # positions a side that finer latents are pooled to
FRAMES = 8_000  # training frames that are enough for the subspace, the more different the better


@dataclass(frozen=True)
class Likeness:
    """What is known of one picture's likeness to those of training. `score`: see `Familiarity`; None for a model that
    has no measure of it. `contrast`: deviation of its pixels about each channel's mean, of 1 from black to white.
    `grain`: how little neighbouring pixels have to do with each other, 1 for noise (`ImagePreparation`)."""

    score: float | None
    contrast: float
    grain: float


class Familiarity(nn.Module):
    """The subspace that pooled latents of training pictures span: `directions` of them, in units of their deviation."""

    mean: Tensor
    scale: Tensor
    basis: Tensor

    def __init__(self, grid: int, dim: int, directions: int) -> None:
        super().__init__()
        self.grid, self.side, self.directions = grid, min(grid, COARSE), directions
        places = self.side * self.side
        self.register_buffer("mean", torch.zeros(places, dim))
        self.register_buffer("scale", torch.ones(places, dim))
        self.register_buffer("basis", torch.zeros(directions, places * dim))

    @classmethod
    def fitted(cls, pooled: Float[Tensor, "n p d"]) -> Familiarity:
        """From pooled latents of training frames (`WorldModel.pooled`), of as many episodes as there are.

        Directions: an eighth as many as frames, a quarter as many as numbers in a picture, and `DIRECTIONS` at most.
        """
        places, dim = pooled.shape[1:]
        grid = round(places**0.5)
        numbers = min(grid, COARSE) ** 2 * dim
        one = cls(grid, dim, max(1, min(DIRECTIONS, len(pooled) // 8, numbers // 4))).to(pooled.device)
        coarse = one._coarse(pooled)
        deviation = coarse.std(dim=0, correction=0)
        one.mean.copy_(coarse.mean(dim=0))
        one.scale.copy_(deviation.clamp(min=float(1e-2 * deviation.mean()) or 1.0))
        one.basis.copy_(torch.linalg.svd(one._standard(pooled), full_matrices=False).Vh[: one.directions])
        return one

    def forward(self, pooled: Float[Tensor, "n p d"]) -> Float[Tensor, "n"]:
        """Scores of pictures: root mean square of what lies outside the subspace, where 1 is how much training
        pictures vary in all."""
        values = self._standard(pooled)
        outside = values.square().sum(dim=1) - (values @ self.basis.T).square().sum(dim=1)
        return (outside.clamp(min=0) / values.shape[1]).sqrt()

    def _standard(self, pooled: Float[Tensor, "n p d"]) -> Float[Tensor, "n q"]:
        return ((self._coarse(pooled) - self.mean) / self.scale).flatten(1)

    def _coarse(self, pooled: Float[Tensor, "n p d"]) -> Float[Tensor, "n q d"]:
        maps = pooled.float().transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return F.adaptive_avg_pool2d(maps, self.side).flatten(2).transpose(1, 2)
