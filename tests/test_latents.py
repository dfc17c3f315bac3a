"""The latent space against plain loops."""

from __future__ import annotations

import pytest
import torch

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.latents import LatentConfig, LatentSpace


def tokens(n: int = 3, grid: int = 6, dim: int = 5) -> torch.Tensor:
    return 3 * torch.randn(n, grid * grid, dim, generator=torch.Generator().manual_seed(0)) + 1


def one_episode(frames: int) -> torch.Tensor:
    return torch.zeros(frames, dtype=torch.long)


@pytest.mark.parametrize("grid", [6, 3, 2, 1])
def test_pooling_is_the_mean_of_layer_normed_blocks(grid: int) -> None:
    given, space = tokens(), LatentSpace(LatentConfig(6, grid, 5))
    pooled = space.pool(given)
    size = 6 // grid
    for picture in range(3):
        for row in range(grid):
            for column in range(grid):
                normed = []
                for y in range(row * size, (row + 1) * size):
                    for x in range(column * size, (column + 1) * size):
                        token = given[picture, 6 * y + x]
                        variance = ((token - token.mean()) ** 2).mean()
                        normed.append((token - token.mean()) / (variance + 1e-5).sqrt())
                torch.testing.assert_close(pooled[picture, grid * row + column], torch.stack(normed).mean(0))


@pytest.mark.parametrize("grid", [6, 3, 2, 1])
def test_concatenated_blocks_hold_every_layer_normed_token_and_average_to_the_mean(grid: int) -> None:
    size = 6 // grid
    given, space = tokens(), LatentSpace(LatentConfig(6, grid, 5 * size * size, pooling="concat"))
    pooled = space.pool(given)
    whole = LatentSpace(LatentConfig(6, 6, 5)).pool(given)
    for row in range(grid):
        for column in range(grid):
            rows, columns = range(row * size, (row + 1) * size), range(column * size, (column + 1) * size)
            block = torch.cat([whole[:, 6 * y + x] for y in rows for x in columns], dim=1)
            assert torch.equal(pooled[:, grid * row + column], block)
    mean = LatentSpace(LatentConfig(6, grid, 5)).pool(given)
    torch.testing.assert_close(space.averaged(pooled), mean)
    assert space.config.channels == 5 and space.config.parts == size * size


def test_a_pooling_without_name_or_channels_is_refused() -> None:
    with pytest.raises(InputError, match="concat, mean"):
        LatentConfig(6, 3, 5, pooling="max")
    with pytest.raises(InputError, match="4 neighbours side by side cannot make 6 channels"):
        LatentConfig(6, 3, 6, pooling="concat")


@pytest.mark.parametrize("grid", [4, 5, 7, 0, -1])
def test_a_grid_that_does_not_divide_is_refused(grid: int) -> None:
    with pytest.raises(InputError, match="choose a divisor of 6"):
        LatentConfig(6, grid, 5)


def test_fitted_latents_have_mean_0_and_std_1_at_every_position_and_channel() -> None:
    given, space = tokens(200), LatentSpace(LatentConfig(6, 3, 5))
    space.fit(space.pool(given), one_episode(200))
    latents = space(given)
    torch.testing.assert_close(latents.mean(0), torch.zeros(9, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std(0), torch.ones(9, 5), atol=1e-5, rtol=0)


def test_looks_that_differ_between_episodes_do_not_shrink_what_differs_within() -> None:
    generator = torch.Generator().manual_seed(0)
    looks = 100 * torch.randn(40, 1, 4, 3, generator=generator)
    within = 0.1 * torch.randn(40, 50, 4, 3, generator=generator)
    space = LatentSpace(LatentConfig(2, 2, 3))
    space.fit((looks + within).flatten(0, 1), torch.arange(40).repeat_interleave(50))
    torch.testing.assert_close(space.std, torch.full((4, 3), 0.1), atol=0.01, rtol=0)


def test_what_never_varies_is_not_blown_up() -> None:
    space = LatentSpace(LatentConfig(2, 2, 3))
    pooled = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(0))
    pooled[:, 1, 2] = 7.0 + 1e-6 * pooled[:, 0, 0]
    space.fit(pooled, one_episode(50))
    assert float(space.std[1, 2]) == 1.0 and float(space.mean[1, 2]) == pytest.approx(7.0, abs=1e-4)
    assert float((space.std != 1.0).sum()) == 11


@pytest.mark.parametrize("episodes", [[0, 0, 0, 0, 0], [0, 1, 2, 3, 4]])
def test_statistics_of_nothing_that_varies_are_refused(episodes: list[int]) -> None:
    pooled = torch.full((5, 4, 3), 2.0) + torch.tensor(episodes)[:, None, None]  # still, or a frame an episode
    with pytest.raises(InputError, match="varies within any episode"):
        LatentSpace(LatentConfig(2, 2, 3)).fit(pooled, torch.tensor(episodes))


def test_predictions_are_layer_normed_only_when_not_standardised() -> None:
    prediction = 4 * torch.randn(2, 7, 4, 5, generator=torch.Generator().manual_seed(0)) + 2
    assert torch.equal(LatentSpace(LatentConfig(2, 2, 5)).renormalise(prediction), prediction)
    plain = LatentSpace(LatentConfig(2, 2, 5, standardise=False))
    normed = plain.renormalise(prediction)
    deviation = prediction.var(-1, unbiased=False, keepdim=True)
    torch.testing.assert_close(normed, (prediction - prediction.mean(-1, keepdim=True)) / (deviation + 1e-5).sqrt())
    given = tokens(2, 2)
    plain.fit(plain.pool(given), one_episode(2))  # statistics of a space that does not standardise are not applied
    assert torch.equal(plain(given), plain.pool(given))


def test_statistics_travel_with_the_weights() -> None:
    space, other = LatentSpace(LatentConfig(2, 2, 5)), LatentSpace(LatentConfig(2, 2, 5))
    space.fit(torch.randn(20, 4, 5, generator=torch.Generator().manual_seed(0)), one_episode(20))
    other.load_state_dict(space.state_dict())
    assert torch.equal(other(tokens(2, 2)), space(tokens(2, 2)))


def test_centred_latents_do_not_see_what_all_positions_share() -> None:
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(60, 4, 3, generator=generator)
    shared = 50 * torch.randn(60, 1, 3, generator=generator)
    space = LatentSpace(LatentConfig(2, 2, 3, centre=True))
    space.fit(pooled, one_episode(60))
    torch.testing.assert_close(space.standardise(pooled + shared), space.standardise(pooled), atol=1e-4, rtol=0)
    by_hand = pooled - pooled.mean(1, keepdim=True)
    torch.testing.assert_close(space.standardise(pooled), (by_hand - by_hand.mean(0)) / by_hand.std(0))


def test_a_single_position_cannot_be_centred() -> None:
    with pytest.raises(InputError, match="raise the grid"):
        LatentConfig(6, 1, 5, centre=True)
