"""What training a critic and an actor share: the logs they learn from in hindsight, where a frame's goal is a later one
(Andrychowicz et al. 2017, arXiv:1707.01495), and how such a run goes on and ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.cache import only_camera
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.log_fit import check_numbers, check_period
from vjepa_mpc.planning import world_of
from vjepa_mpc.pretrain.optimising import TrainSettings
from vjepa_mpc.pretrain.run_folder import commits, note_version
from vjepa_mpc.pretrain.source import Source
from vjepa_mpc.pretrain.starting import MODEL_FOLDER, robot_of
from vjepa_mpc.pretrain.trainer import Learner, Progress, Trainer, TrainResult
from vjepa_mpc.world_model import WorldModel, default_card

PAIRS = 2_000  # of held-out frames, for the figures at the end
OTHERWISE = "or give logs of the model's own robot"


class HindsightFrames:
    """Frames of a store's episodes as they are drawn for learning: latents, states, and where they lie."""

    def __init__(
        self, take: Callable[[np.ndarray], np.ndarray], states: Float32[np.ndarray, "rows s"],
        lengths: Int64[np.ndarray, "n"], episodes: Sequence[int], wanted: Bool[np.ndarray, "rows"] | None = None,
    ) -> None:  # fmt: skip
        """`take`: pooled latents of rows; `states` of all rows. Of the store's episodes (`lengths`) those numbered in
        `episodes`, of two frames at least, are drawn, and of their rows those that are `wanted` (None: all)."""
        self._take, self._states, self._lengths = take, states, lengths
        self._starts = np.cumsum(lengths) - lengths
        self._wanted = wanted
        self._episodes = np.asarray([one for one in episodes if self._has_wanted(one)], dtype=np.int64)
        if not len(self._episodes):
            raise InputError("None of these episodes has a step to learn from; collect more.")

    def moments(
        self, rng: np.random.Generator, count: int
    ) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
        """Episodes, their lengths, and a wanted frame in each that is not its last."""
        episodes = rng.choice(self._episodes, count)
        lengths = self._lengths[episodes]
        frames = (rng.random(count) * (lengths - 1)).astype(np.int64)
        while self._wanted is not None and len(again := np.flatnonzero(~self._wanted[self._starts[episodes] + frames])):
            episodes[again] = rng.choice(self._episodes, len(again))
            lengths[again] = self._lengths[episodes[again]]
            frames[again] = (rng.random(len(again)) * (lengths[again] - 1)).astype(np.int64)
        return episodes, lengths, frames

    def _has_wanted(self, episode: int) -> bool:
        first, last = self._starts[episode], self._starts[episode] + self._lengths[episode] - 1
        return self._wanted is None or bool(self._wanted[first:last].any())

    def latents(self, rows: Int64[np.ndarray, "n"]) -> Float[Tensor, "n p d"]:
        """Pooled latents of rows."""
        return torch.from_numpy(np.asarray(self._take(rows), dtype=np.float32))

    def states(self, rows: Int64[np.ndarray, "*n"]) -> Float[Tensor, "*n s"]:
        """The robot's states in rows."""
        return torch.from_numpy(self._states[rows]).float()


def open_logs(model: WorldModel, source: Source) -> tuple[ZarrStore, str]:
    """The store of `source` and its camera; `InputError` for logs of another robot or period than `model`'s."""
    store = ZarrStore.open(source.store)
    check_numbers(model.config.robot, store.spec, OTHERWISE)
    check_period(model.config.robot, store.spec, OTHERWISE)
    return store, only_camera(store, source.camera or model.config.camera)


def world_states(store: ZarrStore) -> Float[np.ndarray, "rows w"]:
    """The simulated world's true state in every row, as `collect` writes it into an episode's metadata (its task's
    `world`, physical units). `InputError` where an episode has none, or anything else than its values."""
    names = world_of(robot_of(store)).names
    parts = []
    for episode, length in enumerate(store.lengths().tolist()):
        told = store.metadata(episode).get("world_states")
        try:
            state = np.array(told, dtype=np.float64)
        except (TypeError, ValueError):  # text, or rows of other lengths
            state = np.empty(0)
        if state.shape != (length, len(names)) or not np.isfinite(state).all():
            raise InputError(
                f"{store.path}: episode {episode} does not say the world's state in each of its {length} frames: "
                f"world_states in its metadata, as `collect` writes it, are rows of {', '.join(names)}."
            )
        parts.append(state)
    return np.concatenate(parts)


def with_steps(store: ZarrStore, episodes: Sequence[int]) -> list[int]:
    """Those of two frames or more, of which there must be one."""
    lengths = store.lengths()
    long = [int(one) for one in episodes if lengths[one] > 1]
    if not long:
        raise InputError(
            f"{store.path}: of the episodes trained on, or of those held out, none has two frames: there is no step to "
            "count; give more or longer ones."
        )
    return long


def run_on(
    learner: Learner, training: TrainSettings, out: Path, device: torch.device, progress: Progress | None,
    stop_at: int | None,
) -> TrainResult:  # fmt: skip
    """Begin the run in `out`, or go on with it."""
    trainer = Trainer(learner, training, out, device)
    if trainer.goes_on:
        note_version(out)
    return trainer.run(progress, stop_at=stop_at)


def write_model(model: WorldModel, name: str, about: Mapping[str, Any], out: Path) -> None:
    """OUT/model: `model` with what it learned, the critic or the actor, and what there is to know `about` that."""
    recorded = {**about, "commits": commits(out)}
    model.config = replace(model.config, training={**model.config.training, name: recorded})
    model.save_pretrained(out / MODEL_FOLDER, card=default_card(model.config, f"train-{name}"))
