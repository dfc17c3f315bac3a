"""What trainings read: a store's pictures and latents, by way of their caches, and statistics of them."""

from __future__ import annotations

import hashlib
import json
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
    """Where trajectories come from: a store, one of its cameras, and where its caches lie (None: beside it)."""

    store: Path
    camera: str | None = None
    cache: Path | None = None


def picture_size(store: ZarrStore, camera: str | None) -> int:
    """Side of the encoder's square pictures for a camera: the shorter side of its frames, pixels."""
    return min(store.spec.cameras[only_camera(store, camera)])


def named(caching: CacheProgress | None, what: str) -> Callable[[int, int], None] | None:
    if caching is None:
        return None
    return lambda done, total: caching(what, done, total)


def held_out_episodes(
    model: WorldModel, store: ZarrStore, latents: LatentCache, episodes: list[int]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(latents [t, p, d], states [t, s]) of each of `episodes`, on the CPU."""
    ends = store.lengths().cumsum()
    states, _ = store.states_and_actions()
    result = []
    for index in episodes:
        rows = slice(int(ends[index] - store.lengths()[index]), int(ends[index]))
        pooled = torch.from_numpy(latents.rows[rows].astype("float32")).to(model.device)
        result.append((model.standardise(pooled).cpu(), torch.from_numpy(states[rows])))
    return result


def cache_latents(
    source: Source,
    store: ZarrStore,
    camera: str,
    model: WorldModel,
    encoder_hash: str,
    bf16: bool,
    caching: CacheProgress | None,
) -> LatentCache:
    frames = FrameCache.build(store, camera, source.cache, named(caching, "frames"))
    made = {"grid": model.config.latent.grid, "device": model.device.type, "bf16": bf16}
    preparation = json.dumps({**model.config.preparation.to_dict(), **made}, sort_keys=True)

    def encode(pictures: torch.Tensor) -> torch.Tensor:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            return model.pooled(pictures)

    return LatentCache.build(
        frames,
        encode,
        encoder_hash=encoder_hash,
        preparation_hash=hashlib.sha256(preparation.encode()).hexdigest(),
        folder=source.cache,
        batch=256,
        progress=named(caching, "latents"),
    )


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
        scores.append(model.familiarity(pooled(model, latents, some)).cpu())
        contrast.append(model.config.preparation.deviation(frames.take(some)))
        grain.append(model.config.preparation.grain(frames.take(some)))
    return torch.cat(scores), torch.cat(contrast), torch.cat(grain)
