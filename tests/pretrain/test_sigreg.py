"""SIGReg against the integral that defines it, and as a force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from vjepa_mpc.pretrain.sigreg import COLLAPSED_STATISTIC, content, epps_pulley, sigreg


def by_integration(samples: np.ndarray) -> float:
    """The definition, by adaptive quadrature over the whole line."""

    def integrand(t: float) -> float:
        characteristic = np.exp(1j * t * samples).mean()
        return float(abs(characteristic - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2))

    return integrate.quad(integrand, -np.inf, np.inf, limit=200)[0]


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.0, 1.0), (0.0, 0.3), (-0.5, 2.0)])
def test_the_statistic_is_its_integral(shift: float, scale: float) -> None:
    samples = np.random.default_rng(0).normal(shift, scale, 40)
    found = float(epps_pulley(torch.from_numpy(samples).float()[:, None]))
    assert found == pytest.approx(by_integration(samples), rel=2e-3, abs=2e-5)
    fine = float(epps_pulley(torch.from_numpy(samples).float()[:, None], knots=401, limit=8.0))
    assert fine == pytest.approx(by_integration(samples), rel=1e-4, abs=1e-6)


def test_columns_are_judged_apart() -> None:
    samples = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.1, 3.0])
    together = epps_pulley(samples)
    assert together.shape == (3,)
    for column in range(3):
        torch.testing.assert_close(together[column], epps_pulley(samples[:, column : column + 1])[0])


def test_a_perfect_gaussian_scores_nothing() -> None:
    quantiles = torch.from_numpy(stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)).float()
    assert float(epps_pulley(quantiles[:, None])) < 1e-6
    assert float(epps_pulley(2 * quantiles[:, None])) > 0.05
    assert float(epps_pulley(1 + quantiles[:, None])) > 0.1


def test_a_collapsed_cloud_scores_what_is_written_down() -> None:
    assert pytest.approx(by_integration(np.zeros(1)), rel=1e-8) == COLLAPSED_STATISTIC
    assert float(epps_pulley(torch.zeros(9, 1))) == pytest.approx(COLLAPSED_STATISTIC, rel=1e-4)
    zeros = sigreg(torch.zeros(9, 5), slices=4, generator=torch.Generator().manual_seed(0))
    assert float(zeros) == pytest.approx(COLLAPSED_STATISTIC, rel=1e-4)


def test_descending_it_spreads_a_collapsed_cloud_in_every_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    cloud = (0.05 * torch.randn(200, 4, generator=generator) * torch.tensor([1.0, 0.1, 1.0, 0.1])).requires_grad_()
    optimiser = torch.optim.Adam([cloud], lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        sigreg(cloud, slices=16, generator=generator).backward()
        optimiser.step()
    covariance = torch.cov(cloud.detach().T)
    assert 0.5 < float(torch.linalg.eigvalsh(covariance).min()) <= float(torch.linalg.eigvalsh(covariance).max()) < 1.6
    assert float(cloud.detach().mean(0).abs().max()) < 0.2


def test_the_generator_decides_the_directions() -> None:
    cloud = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) ** 3
    values = [float(sigreg(cloud, slices=3, generator=torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    before = torch.random.get_rng_state()
    sigreg(cloud, slices=3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_directions_have_length_one() -> None:
    """A cloud of exact unit deviation in every direction scores alike whatever the directions."""
    cloud = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    for seed in range(5):
        assert float(sigreg(cloud, slices=1, generator=torch.Generator().manual_seed(seed))) < 2e-3
    assert float(sigreg(1.5 * cloud, slices=1, generator=torch.Generator().manual_seed(0))) > 0.015


def test_autocast_does_not_blur_it() -> None:
    cloud = 30 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    exact = sigreg(cloud, slices=8, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sigreg(cloud, slices=8, generator=torch.Generator().manual_seed(1)), exact)


def test_content_is_what_pictures_say_beyond_places_and_masks() -> None:
    """Against loops over tokens; and what depends on the place alone is nothing, whatever was kept."""
    rng, places = np.random.default_rng(0), 6
    kept = np.stack([np.sort(rng.choice(places, 4, replace=False)) for _ in range(5)])
    ids = torch.from_numpy(np.concatenate([kept, kept + places], axis=1))  # two frames
    tokens = torch.from_numpy(rng.normal(size=(5, 8, 3))).float()
    found = content(tokens, ids, places)
    assert found.shape == (10, 3)
    for clip in range(5):
        for frame in range(2):
            total = np.zeros(3)
            for number in range(4 * frame, 4 * frame + 4):
                same = [tokens[b, k].numpy() for b in range(5) for k in range(8) if ids[b, k] == ids[clip, number]]
                total += tokens[clip, number].numpy() - np.mean(same, axis=0)
            np.testing.assert_allclose(found[2 * clip + frame].numpy(), total / 4, atol=1e-6)
    codes = torch.from_numpy(rng.normal(size=(2 * places, 3))).float()
    assert float(content(codes[ids], ids, places).abs().max()) < 1e-6
