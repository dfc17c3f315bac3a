"""Inverse dynamics beside masked prediction: the right pictures, the right actions, a gradient into the encoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_dot import ENCODER, SIZE, episode, make_store, spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.clips import Clip, ClipDataset
from vjepa_mpc.datasets.sampling import ClipMixture
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.pretrain.data import ClipBatches, MixtureBatches
from vjepa_mpc.pretrain.inverse import InverseDynamics, PairSource, action_pairs
from vjepa_mpc.pretrain.optimising import make_optimisers
from vjepa_mpc.pretrain.vjepa import VJepaLearner, VJepaSettings

CPU = torch.device("cpu")
WITH = dataclasses.replace(ENCODER, inverse_weight=1.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ZarrStore:
    return ZarrStore.open(make_store(tmp_path_factory.mktemp("dots") / "dots.zarr"))


def learner(store: ZarrStore, settings: VJepaSettings, batch: int = 6) -> VJepaLearner:
    data = ClipBatches(ClipDataset(store, settings.frames), batch, 0)
    return VJepaLearner(settings, data, ImagePreparation(SIZE), CPU, seed=0)


def numbered(count: int, length: int) -> Clip:
    """Frame t of every clip is all t; the action after it is 10^t, so that a sum says which were added."""
    frames = torch.arange(length, dtype=torch.uint8)[None, :, None, None, None].expand(count, length, 2, 2, 3)
    actions = 10.0 ** torch.arange(length - 1)[None, :, None].expand(count, length - 1, 1)
    return Clip(frames.clone(), torch.zeros(count, length, 1), actions.clone())


@pytest.mark.parametrize("neighbours", [False, True])
def test_pairs_hold_the_actions_between_their_pictures(neighbours: bool) -> None:
    pairs = action_pairs(numbered(200, 5), np.random.default_rng(0), neighbours=neighbours)
    seen = set()
    for pictures, action in zip(pairs.pictures, pairs.actions, strict=True):
        first, second = int(pictures[0, 0, 0, 0]), int(pictures[1, 0, 0, 0])
        assert first < second and (second == first + 1 or not neighbours)
        assert float(action) == sum(10.0**step for step in range(first, second))
        seen.add((first, second))
    assert len(seen) == (4 if neighbours else 10)


def test_between_any_two_pictures_lies_the_displacement(store: ZarrStore) -> None:
    clips = ClipDataset(store, 4, 2)
    source = PairSource(ClipBatches(clips, 32, 0), seed=3)
    clip = clips.batch(np.arange(8))
    clip = clip._replace(frames=clip.states)  # "pictures" that say where the robot was
    pairs = source.pairs(clip, 5)
    torch.testing.assert_close(pairs.pictures[:, 1] - pairs.pictures[:, 0], pairs.actions)
    assert torch.equal(source.pairs(clip, 5).actions, pairs.actions)
    assert not torch.equal(source.pairs(clip, 6).actions, pairs.actions)


def test_actions_that_do_not_add_up_are_asked_for_one_by_one(tmp_path: Path) -> None:
    parts = [
        ClipDataset(ZarrStore.open(make_store(tmp_path / f"{kind}.zarr", state_model=kind)), 3)
        for kind in ("joints", "recorded")
    ]
    assert [part.additive for part in parts] == [True, False]
    mixed = MixtureBatches(ClipMixture(parts, [0.5, 0.5]), 6, 0)
    pairs = PairSource(mixed, 0).pairs(numbered(50, 3), 0)
    assert set(pairs.actions.flatten().tolist()) == {1.0, 10.0}


def test_saying_nothing_costs_one_and_the_truth_costs_nothing(store: ZarrStore) -> None:
    source = PairSource(ClipBatches(ClipDataset(store, 4), 64, 0), 0)
    pairs = source.pairs(ClipBatches(ClipDataset(store, 4), 512, 1).batch(0), 0)
    head = InverseDynamics(4, 24, torch.cat([source.scale, torch.zeros(1)]))
    actions = torch.nn.functional.pad(pairs.actions, (0, 1))  # and one that is always 0, which must not count
    for parameter in head.read.parameters():
        torch.nn.init.zeros_(parameter)
    tokens = torch.randn(len(actions), 16, 24, generator=torch.Generator().manual_seed(0))
    assert float(head.loss(tokens, tokens, actions).detach()) == pytest.approx(1.0, abs=0.15)
    with torch.no_grad():
        head.read.bias.copy_(torch.tensor([0.5, -2.0, 9.0]))
    told = torch.tensor([0.5, -2.0, 0.0]) * head.scale
    assert float(head.loss(tokens, tokens, told.expand(len(tokens), -1)).detach()) == pytest.approx(0.0, abs=1e-9)


def test_of_another_robot_s_actions_nothing_is_asked(tmp_path: Path) -> None:
    """Two robots: each is asked for its own, in its own units."""
    parts = [
        ClipDataset(ZarrStore.open(make_store(tmp_path / "a.zarr")), 4),
        ClipDataset(ZarrStore.open(make_store(tmp_path / "b.zarr", robot="other")), 4),
    ]
    mixed = MixtureBatches(ClipMixture(parts, [0.5, 0.5]), 64, 0)
    source = PairSource(mixed, 0)
    assert source.scale.shape == (4,) and bool((source.scale > 0).all())
    pairs = source.pairs(mixed.batch(0), 0)
    assert bool((pairs.actions.isnan().sum(dim=1) == 2).all()), "every pair is of one robot"
    head = InverseDynamics(4, 24, source.scale)
    for parameter in head.read.parameters():
        torch.nn.init.zeros_(parameter)
    tokens = torch.randn(64, 16, 24, generator=torch.Generator().manual_seed(0))
    loss = head.loss(tokens, tokens, pairs.actions)
    own = (pairs.actions / source.scale).square().nanmean(dim=1).mean()
    torch.testing.assert_close(loss.detach(), own)
    loss.backward()
    assert all(bool(one.grad.isfinite().all()) for one in head.parameters() if one.grad is not None)


def test_a_store_that_no_clip_is_drawn_from_is_refused(tmp_path: Path) -> None:
    parts = [
        ClipDataset(ZarrStore.open(make_store(tmp_path / "a.zarr")), 4),
        ClipDataset(ZarrStore.open(make_store(tmp_path / "b.zarr", robot="other")), 4),
    ]
    with pytest.raises(InputError, match="give it a larger share"):
        PairSource(MixtureBatches(ClipMixture(parts, [1.0, 1e-9]), 8, 0), 0)


def test_what_a_planner_does_not_see_is_not_read() -> None:
    """Tokens are layer-normed and a picture's mean is taken away: neither scale nor a common change may help."""
    generator = torch.Generator().manual_seed(0)
    head = InverseDynamics(4, 24, torch.ones(2))
    before, after = torch.randn(2, 3, 16, 24, generator=generator)
    torch.testing.assert_close(head(before, after), head(3 * before, 5 * after), rtol=1e-4, atol=1e-4)
    normed = torch.nn.functional.layer_norm(after, (24,))
    moved = head.space(after) - (normed - normed.mean(dim=1, keepdim=True))
    assert float(moved.abs().max()) < 1e-4


def test_it_adds_to_the_loss_and_reaches_the_encoder(store: ZarrStore) -> None:
    plain, one = learner(store, ENCODER), learner(store, WITH)
    loss, figures = one.loss(one.batch(3), 3)
    before, parts = plain.loss(plain.batch(3), 3)
    assert "inverse" not in parts
    assert float(loss.detach()) == pytest.approx(float(before.detach()) + float(figures["inverse"]), rel=1e-6)
    without = dataclasses.replace(WITH, inverse_weight=1e-9)
    gradients = []
    for settings in (WITH, without):
        some = learner(store, settings)
        some.loss(some.batch(3), 3)[0].backward()
        gradients.append(next(some.modules.encoder.parameters()).grad)
    assert not torch.allclose(*gradients)


def test_actions_become_readable(store: ZarrStore) -> None:
    one = learner(store, dataclasses.replace(WITH, sigreg_weight=0.0), batch=16)
    from moving_dot import training

    (optimiser,) = make_optimisers(one.modules, training(lr=3e-3))
    read = []
    for step in range(120):
        loss, figures = one.loss(one.batch(step), step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        one.after_step(step)
        read.append(float(figures["inverse"]))
    assert sum(read[-10:]) / 10 < 0.5 * sum(read[:10]) / 10


def test_what_cannot_be_learned_is_refused(tmp_path: Path, store: ZarrStore) -> None:
    with pytest.raises(InputError, match="at least 2 frames"):
        PairSource(ClipBatches(ClipDataset(store, 1), 4, 0), 0)
    still = tmp_path / "still.zarr"
    with ZarrStore.create(still, spec()) as writer:
        writer.extend([dataclasses.replace(episode(0), actions=np.zeros((11, 2), np.float32))] * 2)
    with pytest.raises(InputError, match="nothing for --inverse to read"):
        PairSource(ClipBatches(ClipDataset(ZarrStore.open(still), 2), 4, 0), 0)
    with pytest.raises(InputError, match="of inverse dynamics"):
        VJepaSettings(inverse_weight=-1.0)
