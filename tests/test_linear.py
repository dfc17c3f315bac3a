"""Products laid out for the CPU's matrix units: the same numbers as plain ones, whatever is done to the weights."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_numbers import FAMILY, SMALL
from torch import Tensor

from vjepa_mpc.core.poses import integrate_pose
from vjepa_mpc.flops import count_flops
from vjepa_mpc.linear import Linear
from vjepa_mpc.predictor import ActionConditionedPredictor, PredictorConfig
from vjepa_mpc.rollout import Context, rollout
from vjepa_mpc.rotary import half_order, rotary_tables, rotate, rotate_halves
from vjepa_mpc.world_model import WorldModel

KINDS = {
    **FAMILY,
    "odd heads": dataclasses.replace(SMALL, width=34),
    "one block": dataclasses.replace(SMALL, depth=1),
    "tanh": dataclasses.replace(SMALL, activation="gelu_tanh"),
    "residual": dataclasses.replace(SMALL, residual=True),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(prepared: bool = True) -> Linear:
    made = Linear(24, 40)
    with torch.no_grad():
        made.weight.copy_(draw(40, 24))
        made.bias.copy_(draw(40, seed=1))
    if prepared:
        made.prepare()
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 3, 5, 24)])
def test_products_are_the_plain_ones(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    made, x, sum_ = layer().to(dtype), draw(*shape).to(dtype), draw(*shape[:-1], 40, seed=2).to(dtype)
    wanted = F.linear(x.double(), made.weight.double(), made.bias.double())
    off = {torch.float32: 1e-5, torch.bfloat16: 0.2, torch.float64: 1e-12}[dtype]
    with torch.no_grad():
        torch.testing.assert_close(made(x).double(), wanted, rtol=0, atol=off)
        torch.testing.assert_close(made.onto(sum_, x).double(), sum_ + wanted, rtol=0, atol=off)
        for approximate in ("none", "tanh"):
            found = made.gelu(x, approximate)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), F.gelu(wanted, approximate=approximate), rtol=0, atol=off)


def test_gelu_of_bfloat16_products_is_taken_before_rounding() -> None:
    """Where the fused products are there; else it is the plain one."""
    made, x = layer().to(torch.bfloat16), draw(300, 24).to(torch.bfloat16)
    wanted = F.gelu(F.linear(x.double(), made.weight.double(), made.bias.double()))
    with torch.no_grad():
        fused = (made.gelu(x, "none") - wanted).abs().mean()
        plain = (F.gelu(F.linear(x, made.weight, made.bias)) - wanted).abs().mean()
    assert fused <= plain


def test_changed_weights_are_noticed() -> None:
    made, x = layer(), draw(5, 24)
    with torch.no_grad():
        before = made(x)
        made.weight.mul_(2)
        torch.testing.assert_close(made(x) - made.bias, 2 * (before - made.bias))
        made.load_state_dict(layer(False).state_dict())
        torch.testing.assert_close(made(x), before)
        made.load_state_dict({name: 3 * value for name, value in layer(False).state_dict().items()}, assign=True)
        torch.testing.assert_close(made(x), 3 * before)
        made.bias.zero_()
        torch.testing.assert_close(made(x), 3 * (before - layer().bias))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies_work_and_are_their_own(copied) -> None:  # type: ignore[no-untyped-def]
    made, x = layer(), draw(5, 24)
    with torch.no_grad():
        before = made(x)
        other = copied(made)
        other.weight.zero_()
        assert torch.equal(made(x), before)
        torch.testing.assert_close(other(x), other.bias.expand(5, -1))
    assert list(made.state_dict()) == ["weight", "bias"]


def test_gradients_are_the_plain_ones() -> None:
    slopes = []
    for made in (layer(), layer(False)):
        x = draw(5, 24).requires_grad_()
        made.onto(draw(5, 40), x).square().sum().backward()
        slopes.append((x.grad, made.weight.grad))
    torch.testing.assert_close(slopes[0], slopes[1])


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("size", [2, 12, 14, 17])
def test_turning_halves_is_turning_pairs(size: int, grad: bool) -> None:
    cos, sin = rotary_tables(frames=2, grid=(2, 3), train_grid=(2, 3), conditions=2, head_dim=size)
    tables = [table.flatten(0, 1)[:, None].float() for table in (cos, sin)]
    x, order = draw(3, 16, 4, size), half_order(size)
    assert sorted(order.tolist()) == list(range(size))
    with torch.set_grad_enabled(grad):
        found = rotate_halves(x[..., order], *(table[..., order] for table in tables))
    assert torch.equal(found, rotate(x, *tables)[..., order])


def imagined(predictor: ActionConditionedPredictor, actions: Tensor, past: int = 1) -> Tensor:
    config = predictor.config
    context = Context(draw(2, past + 1, config.patches, config.latent_dim), draw(2, past + 1, 7), draw(2, past, 7))
    views = draw(2, past + actions.shape[2], 6, seed=3) if config.use_extrinsics else None
    return rollout(
        predictor, context, actions, integrate=integrate_pose, chunk=3, extrinsics=views,
        state_features=lambda state: state[..., : config.state_dim],
        action_features=lambda action, state: action[..., : config.action_dim],
        renormalise=lambda latents: F.layer_norm(latents, latents.shape[-1:]),
    ).latents  # fmt: skip


def made_predictor(config: PredictorConfig) -> ActionConditionedPredictor:
    predictor = ActionConditionedPredictor(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return predictor


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_predictor_imagines_the_same(kind: str) -> None:
    """With gradients, without, and with a history that was computed without."""
    predictor, actions = made_predictor(KINDS[kind]), draw(2, 4, 3, 7, seed=4)
    names = list(predictor.state_dict())
    results: dict[tuple[bool, object], Tensor] = {}
    for prepared in (False, True):
        if prepared:
            predictor.prepare()
        with torch.no_grad():
            results[prepared, False] = imagined(predictor, actions)
        steps = actions.clone().requires_grad_()
        results[prepared, True] = imagined(predictor, steps)
        weights = draw(*results[prepared, True].shape)
        (results[prepared, "slope"],) = torch.autograd.grad((results[prepared, True].square() * weights).sum(), steps)
    for key in (False, True):
        torch.testing.assert_close(results[True, key], results[False, key], rtol=0, atol=1e-4)
    torch.testing.assert_close(results[True, "slope"], results[False, "slope"], rtol=1e-2, atol=1e-2)
    assert results[False, False].var(dim=1).mean() > 1e-6, "candidates must differ for this to test anything"
    assert list(predictor.state_dict()) == names


def test_prepared_tables_follow_the_predictor_s_type() -> None:
    predictor, actions = made_predictor(SMALL).prepare(), draw(2, 4, 3, 7, seed=4)
    with torch.no_grad():
        exact = imagined(predictor, actions)
        rough = imagined(predictor.to(torch.bfloat16), actions)
        back = imagined(predictor.to(torch.float64), actions)
    assert 0 < (rough - exact).abs().mean() < 0.05
    assert (back - exact).abs().mean() < 0.05


def test_arithmetic_is_counted_the_same_when_laid_out(tiny_model: Path) -> None:
    plain, prepared = (WorldModel.from_pretrained(tiny_model) for _ in range(2))
    assert count_flops(prepared.for_planning(bf16=False), 2) == count_flops(plain, 2)
    assert count_flops(plain, 2).evaluation > 0 and count_flops(plain, 2).shared > 0


def test_what_is_kept_from_inference_mode_serves_gradients_too() -> None:
    """Tables and masks made in a mode that gradients cannot come back from are made outside of it."""
    predictor, actions = made_predictor(SMALL), draw(2, 4, 3, 7, seed=4)
    with torch.inference_mode():
        wanted = imagined(predictor, actions)
    steps = actions.clone().requires_grad_()
    found = imagined(predictor, steps)
    found.sum().backward()
    assert steps.grad is not None and bool((steps.grad != 0).any())
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-4, atol=1e-5)
