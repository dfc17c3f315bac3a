"""Inverse dynamics beside masked prediction: the action between two pictures, read from their latents.

Masked prediction cares for whatever fills a picture, in proportion to its area; a planner cares for what its actions
move. Asking for the action pulls the encoder towards the latter, in every look the video has (planning with latent
dynamics: PLDM, Sobal et al. 2025, arXiv:2502.14819, section 3.1; as a pretext task: Agrawal et al. 2016,
arXiv:1606.07419, section 3).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.clips import Clip
from vjepa_mpc.latents import LatentConfig, LatentSpace
from vjepa_mpc.pretrain import ranks
from vjepa_mpc.pretrain.data import Batches

GRID = 4
"""Positions a side that latents are pooled to, as `train` pools them by default."""
CHANNELS, HIDDEN = 64, 256
SCALE_STEPS = 8  # batches whose actions give the scale


class ActionPairs(NamedTuple):
    """Two `pictures` [b, 2, h, w, 3] of each clip, and the `actions` [b, a] between them, added up, in the robot's
    units; NaN in the columns of other robots, where a mixture has several."""

    pictures: UInt8[Tensor, "b 2 h w 3"]
    actions: Float[Tensor, "b a"]


def action_pairs(clip: Clip, rng: np.random.Generator, *, neighbours: bool) -> ActionPairs:
    """Two frames drawn from each clip, the earlier first; with `neighbours` one right after the other, for actions
    that cannot be added up."""
    count, length = clip.frames.shape[:2]
    return _pairs_at(clip, _drawn(count, length, rng, neighbours))


def _drawn(count: int, length: int, rng: np.random.Generator, neighbours: bool) -> Int64[np.ndarray, "b 2"]:
    if neighbours:
        first = rng.integers(length - 1, size=count)
        return np.stack([first, first + 1], axis=1)
    return np.sort(rng.random((count, length)).argsort(axis=1)[:, :2], axis=1)


def _pairs_at(clip: Clip, pair: Int64[np.ndarray, "b 2"]) -> ActionPairs:
    count, length = clip.frames.shape[:2]
    steps = np.arange(length - 1)
    between = torch.from_numpy((steps >= pair[:, :1]) & (steps < pair[:, 1:]))
    actions = (clip.actions * between[..., None]).sum(dim=1)  # NaN, of another robot, stays NaN
    return ActionPairs(clip.frames[torch.arange(count)[:, None], torch.from_numpy(pair)], actions)


class PairSource:
    """The pairs of every step of a run, and the scale of their actions; both are functions of (seed, step).

    `scale` [a]: root mean square of the actions of a run's first pairs, 0 for one that is always 0. `InputError`
    where there is nothing to learn from: clips of one frame, a robot that never moves.
    """

    def __init__(self, data: Batches, seed: int) -> None:
        self._neighbours, self._seed = not data.clips.additive, seed
        clips = [data.whole(step) for step in range(SCALE_STEPS)]
        if clips[0].frames.shape[1] < 2:
            raise InputError("Inverse dynamics needs clips of at least 2 frames; raise --frames.")
        pairs = [
            action_pairs(clip, self._generator(step), neighbours=self._neighbours) for step, clip in enumerate(clips)
        ]
        actions = torch.cat([pair.actions for pair in pairs])
        if bool(actions.isnan().all(dim=0).any()):
            raise InputError(
                f"One of the mixed stores has no clip in the first {SCALE_STEPS} batches, which tell the size of its "
                "actions; give it a larger share, or --batch more clips."
            )
        self.scale = actions.square().nanmean(dim=0).sqrt()
        if not bool((self.scale > 0).any()):
            raise InputError("No action in the clips differs from zero: there is nothing for --inverse to read.")

    def pairs(self, clip: Clip, step: int) -> ActionPairs:
        """The pairs of step `step` from its clips, which are this rank's."""
        count, length = clip.frames.shape[:2]
        drawn = _drawn(count * ranks.count(), length, self._generator(step), self._neighbours)
        return _pairs_at(clip, drawn[ranks.share(len(drawn))])

    def _generator(self, step: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, step, 2))


class InverseDynamics(nn.Module):
    """Reads the action between two pictures from their tokens, as a planner sees them: pooled to `GRID` x `GRID` and
    centred over the picture. It is small on purpose: what it cannot read easily, the encoder has to make plain.
    """

    scale: Tensor

    def __init__(self, encoder_grid: int, dim: int, scale: Float[Tensor, "a"]) -> None:
        super().__init__()
        grid = GRID if encoder_grid % GRID == 0 else encoder_grid
        self.space = LatentSpace(LatentConfig(encoder_grid, grid, dim, standardise=False, centre=grid > 1))
        self.compare = nn.Linear(2 * dim, CHANNELS)
        self.gather = nn.Linear(CHANNELS * grid * grid, HIDDEN)
        self.read = nn.Linear(HIDDEN, len(scale))
        self.register_buffer("scale", scale.clone())

    def forward(
        self, before: Float[Tensor, "b patches d"], after: Float[Tensor, "b patches d"]
    ) -> Float[Tensor, "b a"]:
        """Actions in units of `scale`, from the tokens of the picture before and of that after."""
        pooled = torch.cat([self.space(before), self.space(after)], dim=-1)
        hidden = F.gelu(self.compare(pooled)).flatten(1)
        return self.read(F.gelu(self.gather(hidden))).float()

    def loss(
        self, before: Float[Tensor, "b patches d"], after: Float[Tensor, "b patches d"], actions: Float[Tensor, "b a"]
    ) -> Float[Tensor, ""]:
        """Mean squared error in units of `scale`, over the actions that ever differ from 0. Always saying 0 costs 1.
        Of another robot's actions (NaN) nothing is asked; each pair counts alike, whatever its robot's number of them.
        """
        moved = self.scale > 0
        wanted = actions[:, moved] / self.scale[moved]
        asked = wanted.isfinite()
        error = torch.where(asked, self(before, after)[:, moved] - wanted.nan_to_num(), 0.0).square()
        return (error.sum(dim=1) / asked.sum(dim=1).clamp(min=1)).mean()
