"""Orders are functions of seed and step; mixtures keep their shares; goals lie where they should."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from toy_trajectories import CAMERAS, toy_episode, toy_spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.clips import Clip, ClipDataset
from vjepa_mpc.datasets.sampling import ClipMixture, GoalSampling, ShuffledBatches, sample_goals
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.pretrain.data import ClipBatches, MixtureBatches


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ZarrStore:
    path = tmp_path_factory.mktemp("sampling") / "a.zarr"
    with ZarrStore.create(path, toy_spec()) as writer:
        writer.extend([toy_episode(seed, length) for seed, length in enumerate((12, 5, 30))])
    return ZarrStore.open(path)


@pytest.fixture(scope="module")
def clips(store: ZarrStore) -> ClipDataset:
    return ClipDataset(store, 2, 3, "top", shorter=True)


def digest(clip: Clip) -> str:
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in clip)).hexdigest()[:16]


def test_the_clips_of_trainings_are_pinned(clips: ClipDataset) -> None:
    """Golden: what trainings of this version see. If this falls, runs no longer resume to the bit."""
    data = ClipBatches(clips, 6, seed=3)
    assert [digest(data.batch(step)) for step in (0, 7)] == PINNED
    order = np.random.default_rng([3, 7]).integers(len(clips), size=6)
    assert digest(data.batch(7)) == digest(clips.batch(order))


PINNED = ["7efc1d3409f99d3c", "5ccbb13d4b1813bd"]


def test_an_epoch_takes_every_clip_once_and_epochs_differ() -> None:
    order = ShuffledBatches(50, 7, seed=1)
    first, second = (np.concatenate([order.batch(7 * epoch + i) for i in range(7)]) for epoch in range(2))
    assert len(set(first.tolist())) == 49 and not np.array_equal(first, second)
    assert len(order) == 7 == len(list(order))


def test_ranks_share_each_batch_and_resuming_goes_on_in_the_middle() -> None:
    whole = ShuffledBatches(100, 12, seed=5)
    for step in (0, 3, 9):  # batch 9 is in the second epoch
        for ranks in (2, 3):
            parts = [ShuffledBatches(100, 12, seed=5, rank=r, ranks=ranks).batch(step) for r in range(ranks)]
            np.testing.assert_array_equal(np.stack(parts, axis=1).reshape(-1), whole.batch(step))
    rest = list(ShuffledBatches(100, 12, seed=5, step=13))
    assert rest == [whole.batch(step).tolist() for step in range(13, 16)]
    assert len(rest) == 3  # to the end of the second epoch
    with pytest.raises(InputError, match="1 to 5 clips"):
        ShuffledBatches(5, 6, seed=0)
    with pytest.raises(InputError, match="shared by 2 ranks"):
        ShuffledBatches(50, 7, seed=0, ranks=2)


def test_loaders_give_the_same_batches_for_any_number_of_workers(clips: ClipDataset) -> None:
    def epoch(workers: int) -> list[str]:
        order = ShuffledBatches(len(clips), 16, seed=2, step=3)
        context = "fork" if workers else None
        loader = DataLoader(clips, batch_sampler=order, num_workers=workers, multiprocessing_context=context)
        return [digest(batch) for batch in loader]

    straight = epoch(0)
    assert straight == epoch(2) and len(straight) == len(ShuffledBatches(len(clips), 16, seed=2)) - 3
    expected = ShuffledBatches(len(clips), 16, seed=2).batch(3)
    assert straight[0] == digest(clips.batch(expected))


def other(tmp_path: Path, **change: object) -> ClipDataset:
    spec = replace(toy_spec(), **change)  # type: ignore[arg-type]
    width = len(spec.state_names)
    with ZarrStore.create(tmp_path / "b.zarr", spec) as writer:
        for seed in range(2):
            made = toy_episode(50 + seed, 9)
            states = np.tile(made.states[:, :1], (1, width))
            images = {name: np.zeros((9, *size, 3), np.uint8) for name, size in spec.cameras.items()}
            writer.append(replace(made, states=states, images=images))
    return ClipDataset(writer, 2, 1, "top")


def test_a_mixture_keeps_its_shares_and_its_clips(tmp_path: Path, clips: ClipDataset) -> None:
    mixture = ClipMixture([clips, other(tmp_path)], [3, 1])
    drawn = np.concatenate([mixture.draw(64, seed=0, step=step) for step in range(60)])
    assert abs((drawn >= len(clips)).mean() - 0.25) < 0.03 and drawn.max() == len(mixture) - 1
    assert len(set(drawn.tolist())) == len(mixture)
    some = np.array([3, len(clips) + 2, 0, len(clips), 7])
    batch = mixture.batch(some)
    for row, index in enumerate(some.tolist()):
        part = clips[index] if index < len(clips) else mixture.parts[1][index - len(clips)]
        single = mixture[index]
        for a, b, c in zip(part, single, batch, strict=True):
            assert torch.equal(a, b) and torch.equal(a, c[row])
    data = MixtureBatches(mixture, 8, seed=4)
    assert digest(data.batch(5)) == digest(mixture.batch(mixture.draw(8, 4, 5)))


def test_robots_of_other_widths_have_pictures_in_common_only(tmp_path: Path, clips: ClipDataset) -> None:
    names = ("a", "b", "c")
    wide = {
        "state_names": names, "state_units": ("rad",) * 3, "state_low": (-9.0,) * 3, "state_high": (9.0,) * 3,
        "state_periodic": (False,) * 3,
    }  # fmt: skip
    mixture = ClipMixture([clips, other(tmp_path, **wide)])
    batch = mixture.batch(np.array([0, len(clips)]))
    assert batch.frames.shape[:2] == (2, 2) and batch.states.shape == (2, 2, 0)
    assert batch.actions.shape == (2, 1, 2), "the same robot's actions"
    np.testing.assert_allclose(mixture.shares, [len(clips) / len(mixture), 1 - len(clips) / len(mixture)])


def test_each_robot_s_actions_have_columns_of_their_own(tmp_path: Path, clips: ClipDataset) -> None:
    metres = other(tmp_path, robot="slide", action_units=("m", "m"))
    batch = ClipMixture([clips, metres, clips]).batch(np.array([3, len(clips), 2 * len(clips)]))
    assert batch.actions.shape == (3, 1, 4) and torch.equal(batch.actions[0, :, :2], clips[3].actions)
    assert torch.equal(batch.actions[1, :, 2:], metres[0].actions)
    absent = batch.actions.isnan().squeeze(1).tolist()
    assert absent == [[False, False, True, True], [True, True, False, False], [False, False, True, True]]


def test_what_does_not_mix_is_refused(tmp_path: Path, clips: ClipDataset) -> None:
    with pytest.raises(InputError, match="weights of a mixture must be positive"):
        ClipMixture([clips, clips], [1, 0])
    with pytest.raises(InputError, match="a weight for each"):
        ClipMixture([clips], [1, 2])
    with pytest.raises(InputError, match="of one shape"):
        ClipMixture([clips, other(tmp_path, cameras={**CAMERAS, "top": (8, 8)})])


def test_future_goals_are_geometric_within_the_episode(clips: ClipDataset) -> None:
    indices = np.flatnonzero(clips.rows(np.arange(len(clips)))[:, 0] == 20)[:1].repeat(20_000)  # 26 frames are left
    goals = sample_goals(clips, indices, GoalSampling(discount=0.9), np.random.default_rng(0))
    steps = goals.steps.numpy()
    assert steps.min() == 1 and steps.max() == 26 and goals.same.all()
    expected = 0.9 ** np.arange(26)
    np.testing.assert_allclose(np.bincount(steps)[1:] / 20_000, expected / expected.sum(), atol=0.01)


def test_goals_of_every_kind_show_the_frames_they_name(clips: ClipDataset, store: ZarrStore) -> None:
    indices = np.arange(len(clips))
    starts = clips.rows(indices)[:, 0]
    states, _ = store.states_and_actions()
    first, end = clips.episode_of(starts)
    for settings in (GoalSampling(), GoalSampling(0, 1, 0), GoalSampling(0.4, 0.3, 0.3)):
        goals = sample_goals(clips, indices, settings, np.random.default_rng(1))
        rows = starts + goals.steps.numpy()
        np.testing.assert_array_equal(goals.states.numpy(), states[rows])
        inside = (rows >= first) & (rows < end)
        assert inside[goals.same.numpy()].all()
        again = sample_goals(clips, indices, settings, np.random.default_rng(1))
        assert torch.equal(goals.frames, again.frames)
    anywhere = sample_goals(clips, indices.repeat(60), GoalSampling(0, 0, 1), np.random.default_rng(2))
    rows = starts.repeat(60) + anywhere.steps.numpy()
    assert set(rows.tolist()) == set(range(47)) and not anywhere.same.any()


def test_random_goals_are_of_the_chosen_episodes(store: ZarrStore) -> None:
    clips = ClipDataset(store, 1, 1, "top", episodes=[2, 0])
    goals = sample_goals(clips, np.zeros(3000, np.int64), GoalSampling(0, 0, 1), np.random.default_rng(0))
    assert set(goals.steps.tolist()) <= {r - int(clips.rows(np.zeros(1, np.int64))[0, 0]) for r in ROWS}
    assert len(set(goals.steps.tolist())) == len(ROWS)


ROWS = [*range(12), *range(17, 47)]


def test_shares_and_discounts_are_checked() -> None:
    with pytest.raises(InputError, match="add up to 1"):
        GoalSampling(0.5, 0.2, 0.2)
    with pytest.raises(InputError, match="between 0 and 1"):
        GoalSampling(discount=1.0)
