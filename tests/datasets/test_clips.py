"""Clips are the right frames with the right actions; the order depends on the seed and the step alone."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from toy_trajectories import toy_episode, toy_spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.cache import FrameCache
from vjepa_mpc.datasets.clips import Clip, ClipDataset, sample_batches, split_episodes
from vjepa_mpc.datasets.store import ZarrStore

LENGTHS = (5, 1, 9, 3)


@pytest.fixture
def store(tmp_path: Path) -> ZarrStore:
    with ZarrStore.create(tmp_path / "a.zarr", toy_spec()) as writer:
        writer.extend([toy_episode(seed, length) for seed, length in enumerate(LENGTHS)])
    return ZarrStore.open(tmp_path / "a.zarr")


def expected_clips(length: int, stride: int) -> list[Clip]:
    """Every clip, cut by hand from the regenerated episodes."""
    clips = []
    for seed, steps in enumerate(LENGTHS):
        episode = toy_episode(seed, steps)
        for start in range(steps - (length - 1) * stride):
            at = [start + k * stride for k in range(length)]
            actions = [episode.actions[a:b].sum(axis=0) for a, b in itertools.pairwise(at)]
            clips.append(
                Clip(
                    torch.from_numpy(episode.images["top"][at]),
                    torch.from_numpy(episode.states[at]),
                    torch.from_numpy(np.array(actions, np.float32).reshape(length - 1, 2)),
                )
            )
    return clips


@pytest.mark.parametrize(("length", "stride"), [(1, 1), (2, 1), (3, 1), (3, 2), (2, 4)])
def test_clips_are_those_cut_by_hand(store: ZarrStore, length: int, stride: int) -> None:
    dataset, expected = ClipDataset(store, length, stride, "top"), expected_clips(length, stride)
    assert len(dataset) == len(expected)
    for index, clip in enumerate(expected):
        got = dataset[index]
        assert got.frames.dtype == torch.uint8
        assert torch.equal(got.frames, clip.frames) and torch.equal(got.states, clip.states)
        torch.testing.assert_close(got.actions, clip.actions)
    # The states of these episodes are the running sum of the actions: strided actions must add up to them.
    batch = dataset.batch(np.arange(len(dataset)))
    torch.testing.assert_close(batch.states[:, :-1] + batch.actions, batch.states[:, 1:])


@pytest.mark.parametrize(("length", "stride"), [(2, 4), (3, 2)])
def test_shorter_gaps_add_the_clips_of_every_smaller_stride(store: ZarrStore, length: int, stride: int) -> None:
    dataset = ClipDataset(store, length, stride, "top", shorter=True)
    expected = [clip for gap in range(1, stride + 1) for clip in expected_clips(length, gap)]
    assert len(dataset) == len(expected)
    batch = dataset.batch(np.arange(len(dataset)))
    for index, clip in enumerate(expected):
        assert torch.equal(batch.frames[index], clip.frames) and torch.equal(batch.states[index], clip.states)
        torch.testing.assert_close(batch.actions[index], clip.actions)


def test_a_data_loader_gives_batches_also_from_another_process(store: ZarrStore) -> None:
    dataset = ClipDataset(store, 3, 1, "top")
    for workers in (0, 1):
        context = "spawn" if workers else None
        loader = DataLoader(dataset, batch_size=4, num_workers=workers, multiprocessing_context=context)
        frames = torch.cat([batch.frames for batch in loader])
        assert torch.equal(frames, dataset.batch(np.arange(len(dataset))).frames)


def test_the_frame_cache_pickles_by_its_path(store: ZarrStore) -> None:
    cache = FrameCache.build(store, "top")
    assert len(pickle.dumps(cache)) < 2000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache)).rows, cache.rows)


def test_only_chosen_episodes_are_cut(store: ZarrStore) -> None:
    dataset = ClipDataset(store, 2, 1, "top", episodes=[0, 3])
    np.testing.assert_array_equal(dataset.rows(np.arange(len(dataset)))[:, 0], [0, 1, 2, 3, 15, 16])
    with pytest.raises(InputError, match="no episode 4"):
        ClipDataset(store, 2, 1, "top", episodes=[4])


def test_what_cannot_be_cut_is_refused(tmp_path: Path, store: ZarrStore) -> None:
    with pytest.raises(InputError, match="no clip of 10 frames"):
        ClipDataset(store, 10, 1, "top")
    with pytest.raises(InputError, match="cameras top, wrist"):
        ClipDataset(store, 2)
    with pytest.raises(InputError, match="at least 1"):
        ClipDataset(store, 2, 0, "top")
    with ZarrStore.create(tmp_path / "pose.zarr", toy_spec(state_model="pose")) as writer:
        with pytest.raises(InputError, match="holds no episodes"):
            ClipDataset(writer, 2, 1, "top")
        writer.append(toy_episode(0, 5))
        ClipDataset(writer, 2, 1, "top")
        with pytest.raises(InputError, match="'pose'; use stride 1"):
            ClipDataset(writer, 2, 2, "top")


def test_a_cache_of_an_older_state_is_refused_and_a_new_one_made(store: ZarrStore) -> None:
    old = FrameCache.build(store, "top")
    with ZarrStore.append_to(store.path) as writer:
        writer.append(toy_episode(9, 6))
    store.refresh()
    with pytest.raises(InputError, match="another state"):
        ClipDataset(store, 2, 1, frames=old)
    assert len(FrameCache.build(store, "top")) == len(old) + 6


def test_the_order_depends_on_seed_and_step_alone() -> None:
    straight = list(itertools.islice(sample_batches(100, 8, seed=3), 6))
    resumed = list(itertools.islice(sample_batches(100, 8, seed=3, start_step=4), 2))
    np.testing.assert_array_equal(straight[4:], resumed)
    assert not np.array_equal(straight[0], straight[1])
    assert not np.array_equal(straight[0], next(sample_batches(100, 8, seed=4)))
    drawn = np.concatenate(list(itertools.islice(sample_batches(10, 100, seed=0), 10)))
    assert set(drawn) == set(range(10)) and np.bincount(drawn).min() > 60


def test_the_split_is_by_episode_and_stable() -> None:
    train, held = split_episodes(45)
    assert held == [19, 39] and sorted(train + held) == list(range(45))
    assert split_episodes(3) == ([0, 1], [2])
    with pytest.raises(InputError, match="at least 2 episodes"):
        split_episodes(1)
