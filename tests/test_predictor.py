"""The predictor against the reference's numbers, and properties of its attention and rotary positions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from golden_numbers import BUILT, FAMILY, GOLDEN, SMALL
from torch import Tensor

from vjepa_mpc.checkpoints import predictor_from_checkpoint
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.predictor import ActionConditionedPredictor, PredictorConfig
from vjepa_mpc.rotary import rotary_tables, rotate


def inputs(config: PredictorConfig, frames: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    sizes = ((config.patches, config.latent_dim), (config.action_dim,), (config.state_dim,))
    return [torch.randn(2, frames, *size, generator=g, dtype=dtype) for size in sizes]


def make(config: PredictorConfig, dtype: torch.dtype = torch.float32) -> ActionConditionedPredictor:
    predictor = ActionConditionedPredictor(config).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in predictor.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return predictor


@pytest.mark.parametrize("name", BUILT)
def test_golden_predictions(name: str) -> None:
    predictor = predictor_from_checkpoint(GOLDEN / f"{name}.pt", max_frames=8, **BUILT[name]).eval()
    z = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}
    latents = z["predictor_in"].unflatten(1, (-1, predictor.config.patches))
    assert latents.shape[1] >= 3
    for frames in range(1, latents.shape[1] + 1):
        extrinsics = z["extrinsics"][:, :frames] if predictor.config.use_extrinsics else None
        with torch.no_grad():
            found = predictor(latents[:, :frames], z["actions"][:, :frames], z["states"][:, :frames], extrinsics)
        torch.testing.assert_close(found.flatten(1, 2), z[f"predictor_out_T{frames}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["tokens", "adaptive_norm"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_attention_is_block_causal(which: int, kind: str) -> None:
    """What happens in frame t moves predictions of frame t on, at every patch, and none before."""
    predictor, given = make(FAMILY[kind]), inputs(SMALL, 5)
    with torch.no_grad():
        before = predictor(*given)
        given[which][:, 2] += 1.0
        moved = (predictor(*given) - before).abs().amax(dim=-1)
    assert (moved[:, :2] == 0).all()
    assert (moved[:, 2:] > 1e-6).all()


@pytest.mark.parametrize("width", [24, 34, 66, 4])  # head sizes 12, 17 (odd), 33 (odd), 2 (nothing turns)
def test_head_sizes_with_an_unturned_rest(width: int) -> None:
    config = dataclasses.replace(SMALL, width=width)
    given = inputs(config, 3)
    assert make(config)(*given).isfinite().all()


def test_rotary_turns_pairs_by_tiled_frequencies_and_leaves_the_rest() -> None:
    """Dimension by dimension, from the description: 3 axes of 4 dimensions, 2 left over."""
    cos, sin = rotary_tables(frames=3, grid=(2, 4), train_grid=(2, 2), conditions=2, head_dim=14)
    x = torch.randn(1, 3 * 10, 1, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tables = [table.flatten(0, 1)[:, None] for table in (cos, sin)]
    found = rotate(x, *tables).unflatten(1, (3, 10))[0, :, :, 0]
    # the last frame's patch in row 1, column 3 (scaled to 1.5), and its state token
    for frame, token, position in ((2, 2 + 4 + 3, (2, 1, 1.5)), (2, 1, (2, 0, 0))):
        row = x.unflatten(1, (3, 10))[0, frame, token, 0]
        wanted = row.clone()
        for axis, at in enumerate(position):
            for j in range(4):
                angle = torch.tensor(at * 10000.0 ** -((j % 2) / 2), dtype=torch.float64)
                here, there = row[4 * axis + j], row[4 * axis + (j ^ 1)]
                wanted[4 * axis + j] = here * angle.cos() + (there if j % 2 else -there) * angle.sin()
        torch.testing.assert_close(found[frame, token], wanted)


def test_interleaved_frequencies_turn_a_pair_by_one_angle() -> None:
    """So that scores depend on how far apart two tokens are, not on where: what rotary positions are for."""
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 12, dtype=torch.float64, generator=draw)
    scores = {}
    for interleaved in (False, True):
        cos, sin = rotary_tables(
            frames=8, grid=(1, 1), train_grid=(1, 1), conditions=0, head_dim=12, interleaved=interleaved
        )
        at = [(cos[frame, 0], sin[frame, 0]) for frame in range(8)]
        turn = lambda x, frame: rotate(x, *(part[None, None] for part in at[frame]))  # noqa: B023, E731
        scores[interleaved] = [float((turn(query, frame + 2) * turn(key, frame)).sum()) for frame in range(6)]
    assert max(scores[True]) - min(scores[True]) < 1e-12
    assert max(scores[False]) - min(scores[False]) > 1e-3


def test_adaptive_norm_by_hand() -> None:
    """One block, one frame, from the paper's formula; and fresh weights add nothing."""
    config = dataclasses.replace(FAMILY["adaptive_norm"], depth=1)
    given = inputs(config, 1)
    fresh = ActionConditionedPredictor(config)
    embedded = fresh.predictor_embed(given[0])[:, 0]
    assert torch.equal(fresh.advance(fresh.embed(*given))[:, 0], embedded)
    one = make(config)
    block = one.predictor_blocks[0]
    condition = one.action_encoder(given[1][:, 0]) + one.state_encoder(given[2][:, 0])
    moved = torch.nn.functional.linear(torch.nn.functional.silu(condition), block.modulation.weight)
    shift, scale, gate, shift2, scale2, gate2 = (moved + block.modulation.bias).split(config.width, dim=-1)
    plain = lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + config.eps).sqrt()  # noqa: E731
    x = one.predictor_embed(given[0])[:, 0]
    cos, sin = one._turns(0, 1)
    inner = plain(x) * (1 + scale[:, None]) + shift[:, None]
    x = x + gate[:, None] * block.attn(inner, cos, sin, None, None)
    x = x + gate2[:, None] * block.mlp(plain(x) * (1 + scale2[:, None]) + shift2[:, None])
    torch.testing.assert_close(one.advance(one.embed(*given))[:, 0], x, rtol=1e-4, atol=1e-4)


def test_extrinsics_modulate_too() -> None:
    config = FAMILY["adaptive_extrinsics"]
    predictor, given = make(config), inputs(config, 3)
    views = [predictor(*given, torch.full((2, 3, 6), value)) for value in (0.0, 1.0)]
    assert (views[0] - views[1]).abs().amax(dim=-1).min() > 1e-6


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(InputError, match="no conditioning named 'adaptive': did you mean 'adaptive_norm'"):
        dataclasses.replace(SMALL, conditioning="adaptive")
    with pytest.raises(InputError, match="no rotary frequencies named 'tiles': did you mean 'tiled'"):
        dataclasses.replace(SMALL, rotary="tiles")


def test_training_grid_defaults_to_its_own() -> None:
    same = dataclasses.replace(SMALL, train_grid=(2, 3))
    other = dataclasses.replace(SMALL, train_grid=(2, 2))
    given = inputs(SMALL, 2)
    default, explicit, scaled = (make(config)(*given) for config in (SMALL, same, other))
    torch.testing.assert_close(default, explicit, rtol=0, atol=0)
    assert (default - scaled).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["tokens", "adaptive_norm"])
def test_gradients_equal_finite_differences(kind: str) -> None:
    predictor, given = make(FAMILY[kind], torch.float64), inputs(SMALL, 2, torch.float64)
    for tensor in given:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(predictor, tuple(given), fast_mode=True)


def test_bfloat16_trains_like_float32() -> None:
    """The separate CPU path for bfloat16 gradients points the same way."""
    config = dataclasses.replace(SMALL, width=96)
    given, slopes = inputs(config, 3), []
    for dtype in (torch.float32, torch.bfloat16):
        predictor = make(config).to(dtype)
        predictor(*given).square().mean().backward()
        slopes.append(torch.cat([p.grad.float().flatten() for p in predictor.parameters() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*slopes, dim=0) > 0.97  # a lost mask gives far less


def test_fresh_weights_follow_the_generator_and_leave_the_global_one_alone() -> None:
    predictor = ActionConditionedPredictor(SMALL)
    state = torch.get_rng_state()
    draws = []
    for seed in (0, 0, 1):
        predictor.reset_parameters(torch.Generator().manual_seed(seed))
        draws.append(predictor.predictor_embed.weight.detach().clone())
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("which", "shape", "message"),
    [
        (0, (2, 2, 5, 10), "6 latent patches, got 5"),
        (0, (2, 2, 6, 9), "10 latent values, got 9"),
        (1, (2, 2, 7), "3 action values, got 7"),
        (2, (2, 2, 7), "4 state values, got 7"),
    ],
)
def test_misfits_are_refused_with_both_numbers(which: int, shape: tuple[int, ...], message: str) -> None:
    given = inputs(SMALL, 2)
    given[which] = torch.zeros(shape)
    with pytest.raises(InputError, match=message):
        make(SMALL)(*given)


def test_too_many_frames_and_stray_extrinsics_are_refused() -> None:
    with pytest.raises(InputError, match=r"8 frames .* built for 7"):
        make(SMALL)(*inputs(SMALL, 8))
    with pytest.raises(InputError, match="use_extrinsics=False"):
        make(SMALL)(*inputs(SMALL, 2), torch.zeros(2, 2, 6))
    with pytest.raises(InputError, match="does not divide"):
        dataclasses.replace(SMALL, width=25)
