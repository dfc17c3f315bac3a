"""The subspace of training pictures: what lies in it, outside it, and how large each is said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vjepa_mpc.cli.building import model_folder
from vjepa_mpc.familiarity import DIRECTIONS, Familiarity, Likeness
from vjepa_mpc.images import ImagePreparation, load_image
from vjepa_mpc.planning import doubt
from vjepa_mpc.world_model import Calibration, WorldModel

ROOT = Path(__file__).resolve().parents[1]


def spanned(count: int, generator: torch.Generator, *, grid: int = 2, dim: int = 8) -> torch.Tensor:
    """Latents that vary along 3 directions only, about a mean that is far from zero."""
    span = torch.randn(3, grid * grid * dim, generator=torch.Generator().manual_seed(7))
    values = torch.randn(count, 3, generator=generator) @ span + 5
    return values.unflatten(1, (grid * grid, dim))


def test_what_lies_in_the_subspace_scores_nothing_and_what_lies_outside_its_own_size() -> None:
    generator = torch.Generator().manual_seed(0)
    one = Familiarity.fitted(spanned(400, generator))
    fresh = spanned(50, generator)
    assert float(one(fresh).max()) < 1e-3
    values = 100 * torch.randn(50, 4, 8, generator=generator)
    standard = ((values) / one.scale).flatten(1)
    rest = standard - (standard @ one.basis.T) @ one.basis  # by projecting, not by Pythagoras
    torch.testing.assert_close(one(fresh + values), rest.square().mean(dim=1).sqrt(), rtol=1e-3, atol=1e-3)


def test_far_along_the_subspace_is_still_familiar() -> None:
    generator = torch.Generator().manual_seed(0)
    one = Familiarity.fitted(spanned(400, generator))
    assert float(one(10 * (spanned(50, generator) - 5) + 5).max()) < 1e-2


@pytest.mark.parametrize(("frames", "dim", "kept"), [(8, 8, 1), (80, 8, 8), (9000, 64, 64), (9000, 256, DIRECTIONS)])
def test_how_many_directions_are_kept(frames: int, dim: int, kept: int) -> None:
    pooled = torch.randn(frames, 4, dim, generator=torch.Generator().manual_seed(0))
    assert Familiarity.fitted(pooled).directions == kept


def test_fine_grids_are_pooled_to_a_coarse_one() -> None:
    generator = torch.Generator().manual_seed(0)
    one = Familiarity.fitted(torch.randn(100, 64, 4, generator=generator))
    assert one.mean.shape == (16, 4)
    checker = torch.ones(1, 8, 8, 4)
    checker[:, ::2, ::2] = checker[:, 1::2, 1::2] = -1  # nothing is left of it by pooling
    base = torch.randn(1, 64, 4, generator=generator)
    torch.testing.assert_close(one(base + checker.flatten(1, 2)), one(base))


def test_pictures_that_never_varied_do_not_divide_by_zero() -> None:
    one = Familiarity.fitted(torch.ones(40, 4, 8))
    assert float(one(torch.ones(1, 4, 8))) == 0 and 0.5 < float(one(2 * torch.ones(1, 4, 8))) <= 1.0


def test_the_deviation_of_a_picture() -> None:
    half = np.zeros((2, 64, 64, 3), np.uint8)
    half[0, :32] = 255
    half[1] = [200, 10, 90]  # three even channels: nothing to see
    found = ImagePreparation(64).deviation(half)
    assert found.tolist() == pytest.approx([0.5, 0.0], abs=1e-6)
    large = np.repeat(np.repeat(half, 3, axis=1), 3, axis=2)
    assert ImagePreparation(64, resample="area").deviation(large).tolist() == pytest.approx([0.5, 0.0], abs=1e-6)


def test_the_grain_of_a_picture() -> None:
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, 64)[:, None, None], (64, 64, 3)).astype(np.uint8)
    checker = np.where((np.indices((64, 64)).sum(axis=0) % 2)[..., None], 255, 0).repeat(3, axis=2).astype(np.uint8)
    even = np.full((64, 64, 3), 90, np.uint8)
    found = ImagePreparation(64).grain(np.stack([noise, ramp, checker, even]))
    # a ramp: steps of 255/63 down, none across; deviation 255/sqrt(12): by hand 1/63 * sqrt(12 / 4)
    assert found.tolist() == pytest.approx([1.0, 3**0.5 / 63, 2**0.5, 0.0], abs=0.02)
    large = draw.integers(0, 256, (512, 512, 3)).astype(np.uint8)  # reduced, it is noise still
    assert float(ImagePreparation(64).grain(large[None])) > 0.8


def test_doubt_begins_at_the_limits() -> None:
    limit = Calibration(reached_cost=1.0, goal_score=2.0, state_radius=0.1, contrast=0.1, grain=0.7)
    assert doubt("It", Likeness(2.0, 0.1, 0.7), limit) is None
    assert "far from anything" in str(doubt("It", Likeness(2.1, 0.1, 0.7), limit))
    assert "score 2.1; 99 % of such pictures stay below 2)" in str(doubt("It", Likeness(2.1, 0.1, 0.7), limit))
    assert "hardly anything" in str(doubt("It", Likeness(0.0, 0.09, 0.7), limit))
    assert "looks like noise (grain 0.71;" in str(doubt("It", Likeness(0.0, 0.1, 0.71), limit))
    assert doubt("It", Likeness(None, 0.1, 0.0), limit) is None
    assert doubt("It", Likeness(None, 0.1, 1.0), Calibration(1.0, None, 0.1)) is None  # not measured


@pytest.mark.parametrize("name", ["noise", "white", "dim noise", "push-t", "point-maze", "jaco-reach", "jaco-push"])
def test_the_shipped_model_knows_what_it_has_not_seen(name: str) -> None:
    world = WorldModel.from_pretrained(model_folder(None))
    draw = np.random.default_rng(0)
    if name == "noise":
        picture = draw.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    elif name == "white":
        picture = np.full((64, 64, 3), 255, np.uint8)
    elif name == "dim noise":
        picture = np.clip(draw.normal(128, 5, (64, 64, 3)), 0, 255).astype(np.uint8)
    else:  # the first picture of a task's sheet
        sheet = load_image(ROOT / "docs" / "tasks" / f"{name}.png")
        picture = sheet[: min(sheet.shape[:2]), : min(sheet.shape[:2])]
    assert world.config.calibration is not None
    assert doubt(name, world.likeness(picture), world.config.calibration) is not None


@pytest.mark.parametrize("goal", ["goal", "goal-folded", "goal-stretched"])
def test_the_shipped_model_knows_the_examples(goal: str) -> None:
    world = WorldModel.from_pretrained(model_folder(None))
    assert world.config.calibration is not None
    picture = load_image(ROOT / "examples" / f"{goal}.png")
    assert doubt(goal, world.likeness(picture), world.config.calibration) is None
