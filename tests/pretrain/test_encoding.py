"""Latents encoded by several workers are those of one process, whoever is interrupted or killed on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_dot import ENCODER, PREDICTOR, make_store, training

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.cache import FrameCache, LatentCache
from vjepa_mpc.datasets.cache_files import caches_in
from vjepa_mpc.datasets.encoding import Encode, here
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.executor import Executor, LocalExecutor, RayExecutor
from vjepa_mpc.pretrain.caching import cache_latents, in_workers, pooling
from vjepa_mpc.pretrain.run import train_world_model
from vjepa_mpc.pretrain.source import Source
from vjepa_mpc.pretrain.starting import new_world_model, open_encoder
from vjepa_mpc.world_model import WorldModel

BATCH = 5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ZarrStore:
    return ZarrStore.open(make_store(tmp_path_factory.mktemp("dots") / "dots.zarr"))


@pytest.fixture(scope="module")
def model(store: ZarrStore) -> WorldModel:
    encoder, preparation, _ = open_encoder("untrained", ENCODER.size.picture, 0)
    return new_world_model(store, "top", encoder, preparation, PREDICTOR, 0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(frames: FrameCache, encoding: Any, folder: Path, **changes: Any) -> LatentCache:
    return LatentCache.build(
        frames, encoding, encoder_hash="e", preparation_hash="p", batch=BATCH, folder=folder, **changes
    )


@pytest.mark.parametrize("executor", [LocalExecutor(2), RayExecutor(2)], ids=["processes", "ray"])
@pytest.mark.usefixtures("one_thread")
def test_workers_give_the_same_file_to_the_bit(
    store: ZarrStore, model: WorldModel, tmp_path: Path, executor: Executor
) -> None:
    frames = FrameCache.build(store, "top", tmp_path)
    setup = partial(pooling, model, True)
    alone = build(frames, here(setup()), tmp_path / "alone")
    seen: list[int] = []
    shared = build(frames, in_workers(executor, setup), tmp_path / "shared", progress=lambda done, _: seen.append(done))
    assert len(frames) > 3 * BATCH and seen == [*range(BATCH, len(frames), BATCH), len(frames)]
    assert np.std(alone.rows) > 0 and shared.path.name == alone.path.name
    assert shared.path.read_bytes() == alone.path.read_bytes()


def faulty(kind: str, folder: str) -> Encode:
    """An encoder that fails once its process has had two batches: with an error, or its process killed once."""
    had = 0

    def encode(pictures: torch.Tensor) -> torch.Tensor:
        nonlocal had
        had += 1
        values = pictures[:, :2, 0].float()
        if had <= 2:
            return values
        if kind == "killed":
            with open(f"{folder}/{os.getpid()}", "w"):
                pass
            if len(os.listdir(folder)) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return values
        raise ValueError("no such picture")

    return encode


def test_a_worker_that_dies_costs_nothing(store: ZarrStore, tmp_path: Path) -> None:
    frames = FrameCache.build(store, "top", tmp_path)
    (tmp_path / "dead").mkdir()
    setup = partial(faulty, "killed", str(tmp_path / "dead"))
    latents = build(frames, in_workers(LocalExecutor(2), setup), tmp_path / "shared")
    np.testing.assert_array_equal(latents.rows, frames.rows[:, :2, 0].astype(np.float16))
    assert len(list((tmp_path / "dead").iterdir())) >= 1


def test_what_workers_raise_is_raised_and_what_was_done_is_kept(store: ZarrStore, tmp_path: Path) -> None:
    frames = FrameCache.build(store, "top", tmp_path)
    with pytest.raises(ValueError, match="no such picture"):
        build(frames, in_workers(LocalExecutor(2), partial(faulty, "raises", "")), tmp_path / "shared")
    assert [cache.path.suffix for cache in caches_in(tmp_path / "shared")] == [".partial"]
    calls: list[int] = []

    def rest(pictures: torch.Tensor) -> torch.Tensor:
        calls.append(len(pictures))
        return pictures[:, :2, 0].float()

    latents = build(frames, here(rest), tmp_path / "shared")
    np.testing.assert_array_equal(latents.rows, frames.rows[:, :2, 0].astype(np.float16))
    assert 0 < sum(calls) < len(frames)


def test_no_worker_starts_for_a_cache_that_is_there(store: ZarrStore, model: WorldModel, tmp_path: Path) -> None:
    class Never:
        def open(self, setup: Callable[[], Any]) -> Any:
            raise AssertionError("a worker was started")

    source = Source(store.path, "top", tmp_path)
    first = cache_latents(source, store, "top", model, "e", False)
    again = cache_latents(source, store, "top", model, "e", False, Never())
    assert again.path == first.path


def test_training_on_bfloat16_latents(store: ZarrStore, tmp_path: Path) -> None:
    source = Source(store.path, "top", tmp_path / "c", numbers="bf16")
    cpu = torch.device("cpu")
    train_world_model(source, tmp_path / "a", "untrained", PREDICTOR, training(2), cpu)
    assert WorldModel.from_pretrained(tmp_path / "a/model").config.training["steps"] == 2
    with pytest.raises(InputError, match="latents"):
        other = Source(store.path, "top", tmp_path / "c")
        train_world_model(other, tmp_path / "a", "untrained", PREDICTOR, training(2), cpu)
