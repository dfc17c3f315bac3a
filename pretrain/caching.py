"""The caches a training reads from: a camera's frames, and an encoder's latents of them, made here or by workers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable
from functools import partial

import torch

from vjepa_mpc.datasets.cache import FrameCache, LatentCache
from vjepa_mpc.datasets.encoding import Encode, Encoding, Half, Pictures, Work, here
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.executor import Executor
from vjepa_mpc.pretrain.source import CacheProgress, Source
from vjepa_mpc.world_model import WorldModel

BATCH = 256  # pictures encoded at once

def cache_frames(source: Source, store: ZarrStore, camera: str, caching: CacheProgress | None = None) -> FrameCache:
    """The decoded frames of a camera."""
    return FrameCache.build(store, camera, source.cache, _named(caching, "frames"), source.most)


def cache_latents(
    source: Source,
    store: ZarrStore,
    camera: str,
    model: WorldModel,
    encoder_hash: str,
    bf16: bool,
    executor: Executor | None = None,
    caching: CacheProgress | None = None,
) -> LatentCache:
    """The pooled tokens of a camera's frames; `bf16`: computed so. `executor`: whose workers encode (None: ours)."""
    latent = model.config.latent
    made: dict[str, object] = {"grid": latent.grid, "device": model.device.type, "bf16": bf16}
    if latent.parts > 1:
        made["pooling"] = latent.pooling
    preparation = json.dumps({**model.config.preparation.to_dict(), **made}, sort_keys=True)
    setup = partial(pooling, model, bf16)
    return LatentCache.build(
        cache_frames(source, store, camera, caching),
        here(setup()) if executor is None else in_workers(executor, setup),
        encoder_hash=encoder_hash,
        preparation_hash=hashlib.sha256(preparation.encode()).hexdigest(),
        folder=source.cache,
        batch=BATCH,
        numbers=source.numbers,
        progress=_named(caching, "latents"),
        most=source.most,
    )


def pooling(model: WorldModel, bf16: bool) -> Encode:
    """A worker's state: pictures to pooled tokens."""

    def encode(pictures: torch.Tensor) -> torch.Tensor:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            return model.pooled(pictures)

    return encode


def in_workers(executor: Executor, setup: Callable[[], Encode]) -> Encoding:
    """Encode in an executor's workers, which start when the first batch is asked for. They hand back what this process
    does to the bit, as long as both use one thread; to half precision's last digits otherwise."""

    def stream(work: Work, batches: Iterable[Pictures]) -> Generator[Half, None, None]:
        with executor.open(setup) as pool:
            yield from pool.stream(work, batches)

    return stream


def _named(caching: CacheProgress | None, what: str) -> Callable[[int, int], None] | None:
    return None if caching is None else partial(caching, what)
