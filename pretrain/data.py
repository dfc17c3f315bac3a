"""Batches for training: batch number i of a run is a function of (seed, i) alone."""

from __future__ import annotations

from vjepa_mpc.datasets.clips import Clip, ClipDataset, sample_batches
from vjepa_mpc.datasets.sampling import ClipMixture


class ClipBatches:
    """Stacked clips of a dataset (frames or latents), drawn with replacement."""

    def __init__(self, clips: ClipDataset, batch: int, seed: int) -> None:
        self.clips, self.size, self.seed = clips, batch, seed

    def batch(self, step: int) -> Clip:
        """The clips of step `step`."""
        return self.clips.batch(next(sample_batches(len(self.clips), self.size, self.seed, step)))


class MixtureBatches:
    """Stacked clips of several datasets, drawn with replacement by the mixture's weights."""

    def __init__(self, clips: ClipMixture, batch: int, seed: int) -> None:
        self.clips, self.size, self.seed = clips, batch, seed

    def batch(self, step: int) -> Clip:
        """The clips of step `step`."""
        return self.clips.batch(self.clips.draw(self.size, self.seed, step))
