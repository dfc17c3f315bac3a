"""Which clips, in which order, from which store, and towards which goal: all functions of a seed and a step.

Every order here is computed where batches are put together, not in the loader's workers, and from (seed, step) alone:
so it is the same for any number of workers, and training resumed in the middle of an epoch sees what it would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils.data import Dataset

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.clips import Clip, ClipDataset


class ShuffledBatches:
    """Epochs without replacement, as a `batch_sampler` of torch's `DataLoader`.

    Epoch e is a permutation of all clips by (`seed`, e), cut into batches of `batch` clips over all ranks together;
    what does not fill a batch is left out of that epoch. Rank r of `ranks` gets every `ranks`-th clip of each batch
    from the r-th on: the clips of a step are the same for any number of ranks. `step` counts batches since the start
    of training: set it to go on from there, in the middle of an epoch too. Iterating gives the rest of the epoch that
    `step` is in, and does not move `step`: a loader reads ahead of what has been trained on.
    """

    def __init__(self, clips: int, batch: int, seed: int, *, rank: int = 0, ranks: int = 1, step: int = 0) -> None:
        if not 1 <= batch <= clips:
            raise InputError(f"A batch must have 1 to {clips} clips (all there are), got {batch}.")
        if not 0 <= rank < ranks <= batch or batch % ranks:
            raise InputError(f"A batch of {batch} clips cannot be shared by {ranks} ranks (this is rank {rank}).")
        self.clips, self.size, self.seed, self.rank, self.ranks, self.step = clips, batch, seed, rank, ranks, step
        self._epoch: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.clips // self.size

    def __iter__(self) -> Iterator[list[int]]:
        end = (self.step // len(self) + 1) * len(self)
        for step in range(self.step, end):
            yield self.batch(step).tolist()

    def batch(self, step: int) -> Int64[np.ndarray, "b"]:
        """This rank's clips of step `step`, counted from the start of training."""
        epoch, at = divmod(step, len(self))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.clips))
        return np.asarray(self._epoch[1][at * self.size : (at + 1) * self.size][self.rank :: self.ranks], np.int64)


class ClipMixture(Dataset[Clip]):
    """The clips of several datasets, one after the other, drawn from with `weights` (None: by their number of clips).

    Clips must agree in the shape of their frames; `InputError` otherwise. Different robots have pictures in common,
    nothing else: each one's actions have columns of their own, and the others' clips have NaN there; where robots
    differ in the width of states, the mixture has none of them (width 0).
    """

    def __init__(self, parts: Sequence[ClipDataset], weights: Sequence[float] | None = None) -> None:
        shares = np.array([len(part) for part in parts] if weights is None else list(weights), np.float64)
        if not parts or len(shares) != len(parts):
            raise InputError(f"A mixture needs a weight for each of its {len(parts)} stores, got {len(shares)}.")
        if not (np.isfinite(shares).all() and (shares > 0).all()):
            raise InputError(f"The weights of a mixture must be positive numbers, got {shares.tolist()}.")
        samples = [part.batch(np.zeros(1, np.int64)) for part in parts]
        shapes = {tuple(sample.frames.shape[1:]) for sample in samples}
        if len(shapes) != 1:
            raise InputError(f"Clips of a mixture must be of one shape, these are {sorted(shapes)}; see import --size.")
        self.parts, self.shares = tuple(parts), shares / shares.sum()
        self.additive = all(part.additive for part in parts)
        self._firsts = np.cumsum([0, *(len(part) for part in parts)])
        self._states = len({sample.states.shape[-1] for sample in samples}) == 1
        widths = {part.robot: sample.actions.shape[-1] for part, sample in zip(parts, samples, strict=True)}
        ends = dict(zip(widths, np.cumsum(list(widths.values())).tolist(), strict=True))
        self._columns = [(ends[part.robot] - widths[part.robot], ends[part.robot]) for part in parts]
        self.action_columns = sum(widths.values())

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, index: int) -> Clip:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Clip]:
        """The clips `indices`, fetched together."""
        return [Clip(*parts) for parts in zip(*self.batch(np.asarray(indices, np.int64)), strict=True)]

    def batch(self, indices: Int64[np.ndarray, "b"]) -> Clip:
        """The clips `indices` stacked, in this order."""
        owners = np.searchsorted(self._firsts, indices, side="right") - 1
        clips, places = [], []
        for owner in np.unique(owners).tolist():
            own = np.flatnonzero(owners == owner)
            clip = self.parts[owner].batch(indices[own] - self._firsts[owner])
            first, end = self._columns[owner]
            actions = F.pad(clip.actions, (first, self.action_columns - end), value=torch.nan)
            clips.append(Clip(clip.frames, clip.states if self._states else clip.states[..., :0], actions))
            places.append(own)
        back = torch.from_numpy(np.argsort(np.concatenate(places), kind="stable"))
        return Clip(*(torch.cat(list(part))[back] for part in zip(*clips, strict=True)))

    def draw(self, batch: int, seed: int, step: int) -> Int64[np.ndarray, "b"]:
        """The clips of step `step`: each from a store drawn by the weights, with replacement."""
        generator = np.random.default_rng([seed, step])
        owners = generator.choice(len(self.parts), size=batch, p=self.shares)
        sizes = np.diff(self._firsts)[owners]
        return np.asarray(self._firsts[owners] + (generator.random(batch) * sizes).astype(np.int64), np.int64)


@dataclass(frozen=True)
class GoalSampling:
    """Where goals of clips come from: the share of each kind (they add up to 1), and the discount of the future.

    `future`: k >= 1 control steps after the clip's first frame, with probability proportional to discount^(k - 1),
    within the episode (the discounted future of hindsight relabelling: Andrychowicz et al. 2017; Eysenbach et al. 2022,
    section 4). `episode`: any frame of the same episode. `random`: any frame of the chosen episodes.
    """

    future: float = 1.0
    episode: float = 0.0
    random: float = 0.0
    discount: float = 0.98

    def __post_init__(self) -> None:
        shares = (self.future, self.episode, self.random)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise InputError(f"The shares of goals must not be negative and add up to 1, got {shares}.")
        if not 0 < self.discount < 1:
            raise InputError(f"The discount must lie between 0 and 1, got {self.discount:g}.")


class Goals(NamedTuple):
    """`frames` [b, ...] and `states` [b, s] of a goal for each clip; `steps` [b]: control steps from the clip's first
    frame to its goal (negative: before it), meaningless where `same` [b] says that the goal is of any episode."""

    frames: Tensor
    states: Float32[Tensor, "b s"]
    steps: Int64[Tensor, "b"]
    same: Tensor


def sample_goals(
    clips: ClipDataset, indices: Int64[np.ndarray, "b"], settings: GoalSampling, generator: np.random.Generator
) -> Goals:
    """Draw a goal for each of the clips `indices`. Handed a generator of (seed, step), goals depend on these alone."""
    now = clips.rows(indices)[:, 0]
    first, end = clips.episode_of(now)
    size = len(now)
    kinds = generator.choice(3, size=size, p=np.array([settings.future, settings.episode, settings.random]))
    chance, anywhere = generator.random(size), clips.any_rows(generator.random(size))
    ahead = now + _geometric(chance, end - 1 - now, settings.discount)
    within = first + (chance * (end - first)).astype(np.int64)
    rows = np.choose(kinds, [ahead, within, anywhere])
    frames, states = clips.frames_and_states(rows)
    return Goals(frames, states, torch.from_numpy(rows - now), torch.from_numpy(kinds < 2))


def _geometric(
    chance: np.ndarray, most: Int64[np.ndarray, "b"], discount: float
) -> Int64[np.ndarray, "b"]:
    """Steps k in 1..most with probability proportional to discount^(k - 1), by the inverse of the distribution
    function at `chance` in [0, 1); 0 where `most` is 0."""
    reach = 1 - discount ** np.maximum(most, 1).astype(np.float64)
    steps = np.ceil(np.log1p(-chance * reach) / np.log(discount))
    return np.asarray(np.clip(steps, np.minimum(most, 1), most), np.int64)
