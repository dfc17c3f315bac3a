"""Masked latent prediction: what moves, what must not, what must not be seen."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from moving_dot import ENCODER, SIZE, make_store, training
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.clips import ClipDataset
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.encoder import encode_clips, encoder_grid
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.pretrain.data import ClipBatches
from vjepa_mpc.pretrain.objective import EncoderSize
from vjepa_mpc.pretrain.optimising import make_optimisers
from vjepa_mpc.pretrain.sigreg import content
from vjepa_mpc.pretrain.vjepa import VJepaBatch, VJepaLearner, VJepaSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipDataset:
    return ClipDataset(ZarrStore.open(make_store(tmp_path_factory.mktemp("dots") / "dots.zarr")), ENCODER.frames)


def learner(clips: ClipDataset, settings: VJepaSettings = ENCODER, batch: int = 6) -> VJepaLearner:
    return VJepaLearner(settings, ClipBatches(clips, batch, 0), ImagePreparation(SIZE), CPU, seed=0)


def gradients(learner: VJepaLearner, batch: VJepaBatch) -> None:
    learner.modules.zero_grad(set_to_none=True)
    learner.loss(batch, 0)[0].backward()


def test_the_loss_falls(clips: ClipDataset) -> None:
    one = learner(clips)
    (optimiser,) = make_optimisers(one.modules, training())
    losses = []
    for step in range(40):
        loss, figures = one.loss(one.batch(step), step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        one.after_step(step)
        losses.append(float(figures["prediction"]))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_every_trained_weight_is_moved_and_the_target_is_not(clips: ClipDataset) -> None:
    one = learner(clips)
    torch.nn.init.normal_(one.modules.predictor.mask_token)
    gradients(one, one.batch(0))
    assert all(parameter.grad is None for parameter in one.modules.target.parameters())
    assert not any(parameter.requires_grad for parameter in one.modules.target.parameters())
    for name, parameter in [*one.modules.predictor.named_parameters(), *one.modules.encoder.encoder.named_parameters()]:
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


def test_the_target_starts_as_a_copy_and_follows_by_the_formula(clips: ClipDataset) -> None:
    one = learner(clips, dataclasses.replace(ENCODER, ema=0.9))
    online, target = one.modules.encoder.state_dict(), one.modules.target.state_dict()
    assert all(torch.equal(online[name], target[name]) for name in online)
    with torch.no_grad():
        for parameter in one.modules.encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    before = {name: value.clone() for name, value in target.items()}
    one.after_step(0)
    for name, value in one.modules.target.state_dict().items():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * one.modules.encoder.state_dict()[name])
    after = {name: value.clone() for name, value in one.modules.encoder.state_dict().items()}
    assert all(torch.equal(online[name], after[name]) for name in online)  # and the online encoder does not move


def test_nothing_masked_reaches_the_prediction(clips: ClipDataset) -> None:
    """End to end: the gradient of what is predicted with respect to every masked pixel is exactly zero."""
    one = learner(clips)
    torch.nn.init.normal_(one.modules.predictor.mask_token)
    batch = one.batch(1)
    for mask in batch.masks:
        pixels = one.preparation.prepare(batch.clips.flatten(0, 1)).unflatten(0, batch.clips.shape[:2])
        pixels.requires_grad_()
        context = encode_clips(one.modules.encoder, pixels, mask.context)
        one.modules.predictor(context, mask.context, mask.target).sum().backward()
        assert pixels.grad is not None
        reached = _by_patch(pixels.grad.abs())
        kept = torch.zeros_like(reached, dtype=torch.bool).scatter(1, mask.context, True)
        assert float(reached[~kept].max()) == 0.0
        assert float(reached[kept].min()) > 0.0


def _by_patch(values: Tensor, patch: int = 4, tubelet: int = 2) -> Tensor:
    """The largest entry of each token's pixels: [b, tokens]."""
    blocks = values.unfold(1, tubelet, tubelet).unfold(3, patch, patch).unfold(4, patch, patch)
    return blocks.amax(dim=(2, 5, 6, 7)).flatten(1)


def test_the_prediction_is_asked_for_at_the_masked_positions(clips: ClipDataset) -> None:
    """Only their positions can tell mask tokens apart: and they do."""
    one, ids = learner(clips), torch.tensor([[0, 5]])
    context = torch.randn(1, 2, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in one.modules.predictor.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
        answers = one.modules.predictor(context, ids, torch.tensor([[9, 30, 9]]))
    assert torch.allclose(answers[0, 0], answers[0, 2], atol=1e-6)
    assert float((answers[0, 0] - answers[0, 1]).abs().max()) > 1e-3


def test_the_loss_is_l1_to_the_layer_normed_target_at_masked_positions(clips: ClipDataset) -> None:
    one = learner(clips, dataclasses.replace(ENCODER, sigreg_weight=0.0))
    batch = one.batch(2)
    loss, figures = one.loss(batch, 2)
    pixels = one.preparation.prepare(batch.clips.flatten(0, 1)).unflatten(0, batch.clips.shape[:2])
    total = torch.zeros(())
    with torch.no_grad():
        for mask in batch.masks:
            whole = encode_clips(one.modules.target, pixels)
            whole = (whole - whole.mean(-1, keepdim=True)) / (whole.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            guess = one.modules.predictor(
                encode_clips(one.modules.encoder, pixels, mask.context), mask.context, mask.target
            )
            for clip in range(len(guess)):
                total = total + (guess[clip] - whole[clip, mask.target[clip]]).abs().mean() / len(guess) / 2
    assert float(loss.detach()) == pytest.approx(float(total), rel=1e-5)
    assert figures["spread"]() == pytest.approx(float(whole.std(0).mean()), rel=1e-4)
    weighed, parts = learner(clips, dataclasses.replace(ENCODER, sigreg_weight=0.5)).loss(batch, 2)
    assert "context" not in parts
    assert float(weighed.detach()) == pytest.approx(float(parts["prediction"] + 0.5 * parts["sigreg"]), rel=1e-6)


def test_batches_are_functions_of_the_step_alone(clips: ClipDataset) -> None:
    one, other = learner(clips), learner(clips)
    other.batch(7)
    for left, right in ((one.batch(3), other.batch(3)), (one.batch(0), other.batch(0))):
        assert torch.equal(left.clips, right.clips)
        assert all(torch.equal(a.target, b.target) for a, b in zip(left.masks, right.masks, strict=True))
    assert not torch.equal(one.batch(3).clips, one.batch(4).clips)


@pytest.mark.parametrize("still", [0.0, 1.0])
def test_still_clips_are_doubled_frames(clips: ClipDataset, still: float) -> None:
    given = learner(clips, dataclasses.replace(ENCODER, still=still)).batch(0).clips
    assert torch.equal(given[:, 0::2], given[:, 1::2]) == bool(still)


def test_a_collapse_stops_the_run_with_a_way_out(clips: ClipDataset) -> None:
    one = learner(clips)
    one.check({"step": 50.0, "spread": 0.0, "rank": 0.0})  # early on anything may happen
    one.check({"step": 150.0, "spread": 0.3, "rank": 9.0})
    with pytest.raises(InputError, match=r"collapsed at step 150.*0\.0100.*raise --sigreg or lower --lr"):
        one.check({"step": 150.0, "spread": 0.01, "rank": 9.0})


def test_pictures_that_all_look_the_same_are_seen_in_the_spread(clips: ClipDataset) -> None:
    one = learner(clips)
    batch = one.batch(0)
    alike = VJepaBatch(batch.clips[:1].expand_as(batch.clips), batch.masks)
    assert one.loss(alike, 0)[1]["spread"]() < 1e-3 < 0.02 < one.loss(batch, 0)[1]["spread"]()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 3}, "do not divide"),
        ({"frames": 0}, "do not divide"),
        ({"still": 1.5}, "lie in"),
        ({"ema": -0.1}, "lie in"),
        ({"sigreg_weight": -1.0}, "lie in"),
        ({"sigreg_on": "contents"}, "did you mean 'content'"),
        ({"sigreg_slices": 0}, "at least 1 direction"),
        ({"inverse_weight": -1.0}, "not negative"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        dataclasses.replace(ENCODER, **changes)


@pytest.mark.parametrize("size", [{"patch": 5}, {"heads": 5}, {"patch": 0}, {"heads": 0}, {"depth": 0}, {"width": 0}])
def test_impossible_sizes_are_refused(size: dict[str, int]) -> None:
    with pytest.raises(InputError):
        dataclasses.replace(EncoderSize(16, 4, 2, 24, 1, 1), **size).config(4)


def test_a_spread_needs_two_clips(clips: ClipDataset) -> None:
    with pytest.raises(InputError, match="at least 2 clips"):
        learner(clips, batch=1)


def test_the_context_loss_is_on_kept_patches_by_their_distance_to_the_hidden(clips: ClipDataset) -> None:
    """V-JEPA 2.1: L1 at every kept patch, over the root of its distance to the nearest hidden one."""
    plain = learner(clips, dataclasses.replace(ENCODER, sigreg_weight=0.0))
    batch = plain.batch(2)
    masked, _ = plain.loss(batch, 2)
    one = learner(clips, dataclasses.replace(ENCODER, sigreg_weight=0.0, context_weight=0.5))
    loss, figures = one.loss(batch, 2)
    assert float(loss.detach()) == pytest.approx(float(masked.detach()) + 0.5 * float(figures["context"]), rel=1e-5)
    pixels = one.preparation.prepare(batch.clips.flatten(0, 1)).unflatten(0, batch.clips.shape[:2])
    grid, total = encoder_grid(one.modules.encoder.config), 0.0
    with torch.no_grad():
        whole = encode_clips(one.modules.target, pixels)
        whole = torch.nn.functional.layer_norm(whole, whole.shape[-1:], eps=1e-5)
        for mask in batch.masks:
            context = encode_clips(one.modules.encoder, pixels, mask.context)
            guess = one.modules.predictor.read(one.modules.predictor.tokens(context, mask.context, mask.target))
            for clip, kept in enumerate(mask.context.tolist()):
                hidden = [divmod(index % grid**2, grid) for index in mask.target[clip].tolist()]
                for number, index in enumerate(kept):
                    row, column = divmod(index % grid**2, grid)
                    away = min(math.hypot(row - r, column - c) for r, c in hidden)
                    error = (guess[clip, number] - whole[clip, index]).abs().mean()
                    total += float(error) / math.sqrt(away) / len(kept) / len(guess) / len(batch.masks)
    assert float(figures["context"]) == pytest.approx(total, rel=1e-4)


def test_sigreg_may_act_on_the_content_alone(clips: ClipDataset) -> None:
    """Per mask: tokens without their position's mean, averaged over each picture."""
    one = learner(clips, dataclasses.replace(ENCODER, sigreg_on="content", sigreg_weight=0.5))
    batch = one.batch(2)
    loss, figures = one.loss(batch, 2)
    pixels = one.preparation.prepare(batch.clips.flatten(0, 1)).unflatten(0, batch.clips.shape[:2])
    vectors = []
    with torch.no_grad():
        for mask in batch.masks:
            context = encode_clips(one.modules.encoder, pixels, mask.context)
            vectors.append(content(context, mask.context, one.settings.grid**2))
    assert torch.cat(vectors).shape == (2 * 2 * len(batch.clips), 24)
    assert float(figures["sigreg"]) == pytest.approx(float(one.statistic(torch.cat(vectors), 2)), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(float(figures["prediction"] + 0.5 * figures["sigreg"]), rel=1e-6)
    gradients(one, batch)
    assert all(bool(torch.isfinite(p.grad).all()) for p in one.modules.parameters() if p.grad is not None)
