"""What an actor learns from: frames of a store's episodes, relabelled in hindsight, and what is an example."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.cache import LatentCache
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.exploration import NO_EXAMPLE, WITH_A_GOAL
from vjepa_mpc.pretrain.hindsight import HindsightFrames


@dataclass(frozen=True)
class ActorSettings:
    """`ahead`: control steps that the actor says. `span`: control steps that a goal is away at most. `ends`: the share
    of goals that are where what was done in one go ended (or `span` away). `ema`: of the averaged weights, each step.
    `components`, `channels`, `width`: see `ActorConfig`. `object`: it reads the pose of what the robot's task pushes,
    which the logs must say, and acts as seen from there (`ObjectActor`). `behaviours`: it learns of these alone (none
    named: of any but an actor's), as the logs' metadata says them."""

    ahead: int = 8
    span: int = 16
    ends: float = 0.0
    ema: float = 0.999
    components: int = 4
    channels: int = 32
    width: int = 384
    object: bool = False
    behaviours: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.span < 1:
            raise InputError(f"A goal must be allowed to be 1 control step away or more, not {self.span} (span).")
        if not 0 <= self.ends <= 1:
            raise InputError(f"The share of goals that are ends must lie in [0, 1], not {self.ends:g} (ends).")
        if not 0 <= self.ema < 1:
            raise InputError(f"The averaged weights' momentum (ema) must be at least 0 and below 1, not {self.ema:g}.")


class Relabelled(NamedTuple):
    """Frames, goals, the robot's states at the frames, and the actions from there on in units of the step limits: those
    on the way to the goal, then none. `poses`: x, y [m] and angle [rad] of what is pushed and the robot's state, in
    frame and goal, where they are learned."""

    now: Float[Tensor, "b p d"]
    goal: Float[Tensor, "b p d"]
    states: Float[Tensor, "b s"]
    actions: Float[Tensor, "b t a"]
    poses: Float[Tensor, "b 2 v"] | None = None


class RelabelledBatches(HindsightFrames):
    """Batch number i of a run is a function of (seed, i) alone. Goals: the frame itself or a later one, up to `span`
    control steps away, of what was done in one go: each distance as often as any that is left of it, but for the share
    `ends` of them, which are its end."""

    def __init__(
        self, take: Callable[[np.ndarray], np.ndarray], states: Float32[np.ndarray, "rows s"],
        actions: Float32[np.ndarray, "rows a"], lengths: Int64[np.ndarray, "n"], episodes: Sequence[int],
        settings: ActorSettings, batch: int, seed: int, left: Int64[np.ndarray, "rows"] | None = None,
        example: Bool[np.ndarray, "rows"] | None = None, poses: Float32[np.ndarray, "rows 3"] | None = None,
    ) -> None:  # fmt: skip
        """`actions` of all rows, in units of the step limits; `left`: control steps from each row to the end of what
        was done in one go (None: of the episode); `example`: whether what is done there is to be learned (None: all
        is); `poses` of what is pushed (None: they are not learned); the rest see `HindsightFrames`."""
        super().__init__(take, states, lengths, episodes, example)
        self._poses = poses
        self._actions, self.settings, self.size, self.seed = actions, settings, batch, seed
        self._left = steps_left(lengths, [()] * len(lengths)) if left is None else left

    @staticmethod
    def of(
        store: ZarrStore, latents: LatentCache, limits: Float32[np.ndarray, "a"], episodes: Sequence[int],
        settings: ActorSettings, batch: int, seed: int, poses: Float32[np.ndarray, "rows 3"] | None = None,
    ) -> RelabelledBatches:  # fmt: skip
        """Those of a store's `episodes`, for a robot with these step limits."""
        states, actions = store.states_and_actions()
        unit = np.where(limits > 0, limits, 1).astype(np.float32)
        lengths = np.asarray(store.lengths())
        left, example = store_steps_left(store), store_examples(store, settings.behaviours)
        return RelabelledBatches(
            latents.take, states, actions / unit, lengths, episodes, settings, batch, seed, left, example, poses
        )

    def batch(self, step: int) -> Relabelled:
        """Batch `step`."""
        return self._taken(*self._drawn(np.random.default_rng((self.seed, step)), self.size))

    def held(self, count: int) -> Relabelled:
        """`count` of them, always the same."""
        return self._taken(*self._drawn(np.random.default_rng((self.seed, 1)), count))

    def actions(self, count: int) -> Float[Tensor, "n t a"]:
        """The actions of `held` alone."""
        return self._done(*self._drawn(np.random.default_rng((self.seed, 1)), count))

    def _drawn(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of frames, and the control steps to their goals."""
        episodes, _, now = self.moments(rng, count)
        rows = self._starts[episodes] + now
        most = np.minimum(self.settings.span, self._left[rows])
        away = (rng.random(count) * (most + 1)).astype(np.int64)
        return rows, np.where(rng.random(count) < self.settings.ends, most, away)

    def _done(self, rows: np.ndarray, left: np.ndarray) -> Float[Tensor, "n t a"]:
        steps = np.minimum(np.arange(self.settings.ahead), np.maximum(left - 1, 0)[:, None])  # no further than that
        taken = self._actions[rows[:, None] + steps]
        taken = np.where((np.arange(self.settings.ahead) < left[:, None])[..., None], taken, 0)
        return torch.from_numpy(taken.astype(np.float32))

    def _taken(self, rows: np.ndarray, left: np.ndarray) -> Relabelled:
        ends = np.stack([rows, rows + left], axis=1)
        poses = None
        if self._poses is not None:
            poses = torch.cat([torch.from_numpy(self._poses[ends]), self.states(ends)], dim=-1)
        now, goal = self.latents(rows), self.latents(rows + left)
        return Relabelled(now, goal, self.states(rows), self._done(rows, left), poses)


def steps_left(lengths: Int64[np.ndarray, "n"], begins: Sequence[Sequence[int]]) -> Int64[np.ndarray, "rows"]:
    """Control steps from each frame of episodes of these `lengths` until something else is done, which `begins` at
    these frames of each; until the end where nothing is said of it."""
    left = []
    for length, firsts in zip(lengths.tolist(), begins, strict=True):
        ends = np.array(sorted({*(first for first in firsts if 0 < first < length), length - 1}))
        frames = np.arange(length)
        following = np.minimum(np.searchsorted(ends, frames, side="right"), len(ends) - 1)
        left.append(np.maximum(ends[following] - frames, 0))
    return np.concatenate(left)


def store_steps_left(store: ZarrStore) -> Int64[np.ndarray, "rows"]:
    """`steps_left` of a store's episodes: what goes somewhere, as their metadata's `behaviours` say, is one thing to
    do, what lies between another. Metadata of any other form says nothing."""
    begins = []
    for segments in behaviours_of(store):
        pairs = itertools.pairwise(segments)
        begins.append([here[0] for before, here in pairs if {before[1], here[1]} & set(WITH_A_GOAL)])
    return steps_left(store.lengths(), begins)


def store_examples(store: ZarrStore, behaviours: Sequence[str] = ()) -> Bool[np.ndarray, "rows"]:
    """Of every row of a store whether what is done there is to be learned: where it is of these `behaviours` (none
    named: of any but `NO_EXAMPLE`, and what no metadata says the behaviour of)."""
    rows = []
    for length, segments in zip(store.lengths().tolist(), behaviours_of(store), strict=True):
        example = np.full(length, not behaviours)
        ends = [*(first for first, _ in segments[1:]), length]
        for (first, kind), end in zip(segments, ends, strict=True) if segments else ():
            example[first:end] = kind in behaviours if behaviours else kind not in NO_EXAMPLE
        rows.append(example)
    return np.concatenate(rows)


def behaviours_of(store: ZarrStore) -> Iterator[list[tuple[int, str]]]:
    """Of each episode what was done from which frame on, in order; nothing where its metadata does not say so."""
    lengths = store.lengths()
    for episode in range(len(store)):
        segments = store.metadata(episode).get("behaviours")
        if not isinstance(segments, list) or not all(
            isinstance(piece, list) and len(piece) == 2 and type(piece[0]) is int and isinstance(piece[1], str)
            for piece in segments
        ):
            segments = []
        begins = [-1, *(first for first, _ in segments), int(lengths[episode])]
        if not all(one < other for one, other in itertools.pairwise(begins)):
            segments = []
        yield [(first, kind) for first, kind in segments]
