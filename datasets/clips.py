"""Clips cut from trajectories, for training: a plain torch dataset, a reproducible order, a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor
from torch.utils.data import Dataset

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.cache import FrameCache
from vjepa_mpc.datasets.store import ZarrStore


@runtime_checkable
class FrameSource(Protocol):
    """What a clip's frames come from: a `FrameCache` (pixels) or a `LatentCache` (latents)."""

    store_hash: str

    def __len__(self) -> int: ...

    def take(self, rows: Int64[np.ndarray, "*batch"]) -> np.ndarray: ...


class Clip(NamedTuple):
    """`frames` uint8 [..., t, h, w, 3] (or latents [..., t, p, d]), `states` float32 [..., t, s] and
    `actions` float32 [..., t-1, a] between the frames; a leading batch dimension in batches."""

    frames: Tensor
    states: Tensor
    actions: Tensor


class ClipDataset(Dataset[Clip]):
    """Every clip of `length` frames, `stride` control steps apart, in the chosen episodes of a store; with
    `shorter`, also those whose frames are 1 to `stride` - 1 apart (all gaps of a clip are alike).

    `frames`: a `FrameCache` or `LatentCache` of the same store; None builds the `FrameCache` of `camera`.
    `episodes`: which ones (None = all). With stride k the action between two frames of a clip is the SUM of
    the k joint displacements between them, which is exact only for the additive state model "joints";
    stride > 1 with another model is refused. `InputError` when there is no clip at all.
    """

    def __init__(
        self,
        store: ZarrStore,
        length: int,
        stride: int = 1,
        camera: str | None = None,
        *,
        episodes: Sequence[int] | None = None,
        frames: FrameSource | None = None,
        shorter: bool = False,
    ) -> None:
        if length < 1 or stride < 1:
            raise InputError(f"Clip length and stride must be at least 1, got {length} and {stride}.")
        if stride > 1 and store.spec.state_model != "joints":
            raise InputError(
                f"Stride {stride} would add up actions, which is wrong for the state model "
                f"{store.spec.state_model!r}; use stride 1."
            )
        self.length, self.stride = length, stride
        self.robot = store.spec.robot, store.spec.action_names, store.spec.action_units  # whose actions these are
        self.additive = store.spec.state_model == "joints"  # actions add up to the displacement between any two frames
        self._frames: FrameSource = FrameCache.build(store, camera) if frames is None else frames
        if self._frames.store_hash != store.content_hash():
            raise InputError(f"The frames were cached from another state of {store.path}; build the cache again.")
        self._states, self._actions = store.states_and_actions()
        gaps = range(1 if shorter else stride, stride + 1)
        starts = [_starts(store, (length - 1) * gap + 1, episodes) for gap in gaps]
        self._starts = np.concatenate(starts)
        self._gaps = np.repeat(np.array(gaps), [len(some) for some in starts])
        self._ends = np.cumsum(store.lengths())
        chosen = sorted(range(len(store)) if episodes is None else set(episodes))
        lengths = store.lengths()[chosen]
        self._chosen = (self._ends[chosen] - lengths, np.cumsum(lengths))  # first rows; rows up to the end of each
        if not len(starts[-1]):
            raise InputError(
                f"{store.path} has no clip of {length} frames at stride {stride} in the chosen episodes; "
                "use shorter clips or collect more."
            )

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Clip:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Clip]:
        """The clips `indices`, fetched together: what a `DataLoader` calls with a batch."""
        batch = self.batch(np.asarray(indices, np.int64))
        return [Clip(*parts) for parts in zip(*batch, strict=True)]

    def batch(self, indices: Int64[np.ndarray, "b"]) -> Clip:
        """The clips `indices` stacked: frames [b, t, ...], states [b, t, s], actions [b, t-1, a]."""
        rows = self.rows(indices)
        return Clip(
            torch.from_numpy(self._frames.take(rows)),
            torch.from_numpy(self._states[rows]),
            torch.from_numpy(self._added_up(rows[:, :-1], self._gaps[indices][:, None])),
        )

    def rows(self, indices: Int64[np.ndarray, "b"]) -> Int64[np.ndarray, "b t"]:
        """The frame rows (as in the caches) of each clip."""
        return self._starts[indices][:, None] + np.arange(self.length) * self._gaps[indices][:, None]

    def episode_of(self, rows: Int64[np.ndarray, "b"]) -> tuple[Int64[np.ndarray, "b"], Int64[np.ndarray, "b"]]:
        """First row and end row (exclusive) of the episode that each row is of."""
        index = np.searchsorted(self._ends, rows, side="right")
        return np.concatenate([[0], self._ends])[index], self._ends[index]

    def any_rows(self, chance: Float64[np.ndarray, "b"]) -> Int64[np.ndarray, "b"]:
        """Rows of the chosen episodes, all of them alike, by numbers drawn from [0, 1)."""
        firsts, upto = self._chosen
        number = (chance * upto[-1]).astype(np.int64)
        index = np.searchsorted(upto, number, side="right")
        return np.asarray(firsts[index] + number - np.concatenate([[0], upto])[index], np.int64)

    def frames_and_states(self, rows: Int64[np.ndarray, "b"]) -> tuple[Tensor, Float32[Tensor, "b s"]]:
        """Frames [b, ...] and states [b, s] of single rows."""
        return torch.from_numpy(self._frames.take(rows)), torch.from_numpy(self._states[rows])

    def _added_up(
        self, first: Int64[np.ndarray, "*n"], gaps: Int64[np.ndarray, "*#n"]
    ) -> Float32[np.ndarray, "*n a"]:
        """The sum of the actions of `gaps` control steps from the rows `first` on."""
        steps = np.arange(self.stride)
        within = steps < gaps[..., None]
        rows = np.where(within, first[..., None] + steps, 0)  # past the end of the store: any row, times nothing
        return np.where(within[..., None], self._actions[rows], np.float32(0)).sum(axis=-2)


def sample_batches(n_clips: int, batch: int, seed: int, start_step: int = 0) -> Iterator[Int64[np.ndarray, "b"]]:
    """An endless stream of batches of clip indices, drawn with replacement. Batch i depends on `seed` and i
    only, so that training resumed at `start_step` sees what it would have seen."""
    if n_clips < 1 or batch < 1:
        raise InputError(f"Sampling needs clips and a batch size of at least 1, got {n_clips} and {batch}.")
    step = start_step
    while True:
        yield np.random.default_rng([seed, step]).integers(n_clips, size=batch)
        step += 1


def split_episodes(episodes: int) -> tuple[list[int], list[int]]:
    """Training and validation episodes: every 20th (19, 39, ...) validates, or the last one when there are
    fewer than 20. From 20 on an episode keeps its side as the store grows. `InputError` below two episodes."""
    if episodes < 2:
        raise InputError(f"Training and validation need at least 2 episodes, got {episodes}; collect more.")
    held = [i for i in range(episodes) if i % 20 == 19] or [episodes - 1]
    validates = set(held)
    return [i for i in range(episodes) if i not in validates], held


def _starts(store: ZarrStore, span: int, episodes: Sequence[int] | None) -> Int64[np.ndarray, "n"]:
    """The first row of every clip that spans `span` consecutive frames."""
    lengths = store.lengths()
    firsts = np.cumsum(lengths) - lengths
    chosen = range(len(lengths)) if episodes is None else episodes
    for index in chosen:
        if not 0 <= index < len(lengths):
            raise InputError(f"There is no episode {index}: {store.path} holds {len(lengths)}.")
    clips = [np.arange(firsts[i], firsts[i] + lengths[i] - span + 1) for i in chosen if lengths[i] >= span]
    return np.concatenate([np.zeros(0, np.int64), *clips])
