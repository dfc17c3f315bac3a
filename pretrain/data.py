"""Batches for training: batch number i of a run is a function of (seed, i) alone; each rank has its share of it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Int64

from vjepa_mpc.datasets.clips import Clip, ClipDataset, sample_batches
from vjepa_mpc.datasets.sampling import ClipMixture
from vjepa_mpc.pretrain import ranks


class Batches(ABC):
    """Stacked clips, `size` of them a step over all ranks together."""

    clips: ClipDataset | ClipMixture
    size: int

    @abstractmethod
    def indices(self, step: int) -> Int64[np.ndarray, "b"]:
        """Which clips the whole batch of step `step` has."""

    def whole(self, step: int) -> Clip:
        """All clips of step `step`."""
        return self.clips.batch(self.indices(step))

    def batch(self, step: int) -> Clip:
        """This rank's clips of step `step`."""
        return self.clips.batch(self.indices(step)[ranks.share(self.size)])


class ClipBatches(Batches):
    """Stacked clips of a dataset (frames or latents), drawn with replacement."""

    clips: ClipDataset

    def __init__(self, clips: ClipDataset, batch: int, seed: int) -> None:
        self.clips, self.size, self.seed = clips, batch, seed

    def indices(self, step: int) -> Int64[np.ndarray, "b"]:
        return next(sample_batches(len(self.clips), self.size, self.seed, step))


class MixtureBatches(Batches):
    """Stacked clips of several datasets, drawn with replacement by the mixture's weights."""

    clips: ClipMixture

    def __init__(self, clips: ClipMixture, batch: int, seed: int) -> None:
        self.clips, self.size, self.seed = clips, batch, seed

    def indices(self, step: int) -> Int64[np.ndarray, "b"]:
        return self.clips.draw(self.size, self.seed, step)
