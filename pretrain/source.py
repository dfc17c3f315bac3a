"""What trainings read: where it comes from, and statistics of a store's latents and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from vjepa_mpc.datasets.cache import FrameCache, LatentCache, only_camera
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.familiarity import FRAMES
from vjepa_mpc.latents import LatentSpace
from vjepa_mpc.world_model import WorldModel

CacheProgress = Callable[[str, int, int], None]
"""Called as progress(what, rows done, rows in all) while a cache is made."""


@dataclass(frozen=True)
class Source:
    """Where trajectories come from: a store, one of its cameras, and where its caches lie (None: beside it), which
    together take at most `most` bytes (None: any). `numbers`: latents are kept in fp16 or bf16."""

    store: Path
    camera: str | None = None
    cache: Path | None = None
    most: int | None = None
    numbers: str = "fp16"


def picture_size(store: ZarrStore, camera: str | None) -> int:
    """Side of the encoder's square pictures for a camera: the shorter side of its frames, pixels."""
    return min(store.spec.cameras[only_camera(store, camera)])


def held_out_episodes(
    model: WorldModel, store: ZarrStore, latents: LatentCache, episodes: list[int]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(latents [t, p, d], states [t, s]) of each of `episodes`, on the CPU."""
    ends = store.lengths().cumsum()
    states, _ = store.states_and_actions()
    result = []
    for index in episodes:
        rows = np.arange(ends[index] - store.lengths()[index], ends[index])
        result.append((model.standardise(pooled(model, latents, rows)).cpu(), torch.from_numpy(states[rows])))
    return result


STATISTICS_FRAMES = 20_000  # at most about so many give the latents' mean and deviation


def fit_latent_space(space: LatentSpace, latents: LatentCache, store: ZarrStore, episodes: list[int]) -> None:
    """Statistics of whole episodes, evenly spread over the training ones: a frame or two of each would say
    little, or nothing, of the variation within them. Long episodes give frames spread over their whole length."""
    lengths, ends = store.lengths(), store.lengths().cumsum()
    share = max(STATISTICS_FRAMES // len(episodes), 100)  # of an episode
    every = max(1, -(-int(lengths[episodes].clip(max=share).sum()) // STATISTICS_FRAMES))
    spread = [torch.arange(int(ends[i] - lengths[i]), int(ends[i])) for i in episodes[::every]]
    rows = torch.cat([rows[:: max(1, -(-len(rows) // share))] for rows in spread])
    numbers = torch.from_numpy(ends.searchsorted(rows.numpy(), side="right")).to(space.mean.device)
    space.fit(torch.from_numpy(latents.take(rows.numpy()).astype("float32")).to(space.mean.device), numbers)


def even_rows(store: ZarrStore, episodes: list[int]) -> Int64[np.ndarray, "n"]:
    """At most `FRAMES` rows of the given episodes, from as many of them as there are."""
    lengths, ends = store.lengths(), store.lengths().cumsum()
    rows = np.concatenate([np.arange(ends[i] - lengths[i], ends[i]) for i in episodes])
    return rows[np.linspace(0, len(rows) - 1, min(FRAMES, len(rows))).astype(np.int64)]


def pooled(model: WorldModel, latents: LatentCache, rows: Int64[np.ndarray, "n"]) -> torch.Tensor:
    return torch.from_numpy(latents.take(rows).astype("float32")).to(model.device)


def likeness(
    model: WorldModel, latents: LatentCache, frames: FrameCache, rows: Int64[np.ndarray, "n"]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Score, contrast and grain (`Likeness`) of each picture in `rows`."""
    assert model.familiarity is not None
    scores, contrast, grain = [], [], []
    for some in np.array_split(rows, -(-len(rows) // 256)):
        scores.append(model.scores(pooled(model, latents, some)).cpu())
        contrast.append(model.config.preparation.deviation(frames.take(some)))
        grain.append(model.config.preparation.grain(frames.take(some)))
    return torch.cat(scores), torch.cat(contrast), torch.cat(grain)
