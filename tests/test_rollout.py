"""The cached rollout against an uncached one written from the description, and against the golden numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_numbers import BUILT, FAMILY, GOLDEN, SMALL
from torch import Tensor

from vjepa_mpc.checkpoints import predictor_from_checkpoint
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.poses import integrate_pose
from vjepa_mpc.predictor import ActionConditionedPredictor, PredictorConfig
from vjepa_mpc.rollout import Context, Rollout, rollout


def norm(latents: Tensor) -> Tensor:
    return F.layer_norm(latents, latents.shape[-1:])


def step_state(state: Tensor, action: Tensor) -> Tensor:
    return torch.cat((state[..., :3] + torch.tanh(action), state[..., 3:] * 0.9), dim=-1)


MAPS = {
    "integrate": step_state,
    "state_features": lambda state: (state - 0.2) * 1.7,
    "action_features": lambda action, state: action / 0.3,
    "renormalise": norm,
}


def make(config: PredictorConfig = SMALL, dtype: torch.dtype = torch.float32) -> ActionConditionedPredictor:
    torch.manual_seed(0)
    predictor = ActionConditionedPredictor(config).to(dtype)
    for parameter in predictor.parameters():
        if parameter.dim() > 1:  # large enough for candidates to differ and attention to look around
            torch.nn.init.normal_(parameter, std=0.3)
    return predictor


def problem(
    past: int, problems: int = 2, candidates: int = 5, horizon: int = 4, dtype: torch.dtype = torch.float32
) -> tuple[Context, Tensor]:
    g = torch.Generator().manual_seed(past)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype)  # noqa: E731
    context = Context(draw(problems, past + 1, 6, 10), draw(problems, past + 1, 4), draw(problems, past, 3))
    return context, draw(problems, candidates, horizon, 3)


def uncached(
    predictor: ActionConditionedPredictor, context: Context, actions: Tensor, maps: Mapping[str, Any] = MAPS
) -> Rollout:
    """The whole trajectory through `forward` again at every step; every candidate apart."""
    all_latents, all_states = [], []
    for b in range(actions.shape[0]):
        for n in range(actions.shape[1]):
            latents, states = context.latents[b : b + 1], context.states[b : b + 1]
            known = context.actions[b : b + 1]
            for t in range(actions.shape[2]):
                known = torch.cat((known, actions[b : b + 1, n, t : t + 1]), dim=1)
                features = maps["action_features"](known, states), maps["state_features"](states)
                latents = torch.cat((latents, norm(predictor(latents, *features)[:, -1:])), dim=1)
                states = torch.cat((states, maps["integrate"](states[:, -1:], known[:, -1:])), dim=1)
            all_latents.append(latents[0, -actions.shape[2] :])
            all_states.append(states[0, -actions.shape[2] :])
    shape = actions.shape[:2]
    return Rollout(torch.stack(all_latents).unflatten(0, shape), torch.stack(all_states).unflatten(0, shape))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("past", [0, 1, 3])
@pytest.mark.parametrize("chunk", [1, 3, 5, 100])
def test_cached_equals_uncached(past: int, chunk: int, grad: bool) -> None:
    predictor = make(dtype=torch.float64)  # where nothing but a mistake can make a difference
    context, actions = problem(past, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        found = rollout(predictor, context, actions, chunk=chunk, **MAPS)
    with torch.no_grad():
        wanted = uncached(predictor, context, actions)
    torch.testing.assert_close(found.latents, wanted.latents, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.states, wanted.states, rtol=0, atol=1e-12)
    assert wanted.latents.var(dim=1).mean() > 1e-3, "candidates must differ for this to test anything"


@pytest.mark.parametrize("kind", ["adaptive_norm", "interleaved"])
@pytest.mark.parametrize("grad", [False, True])
def test_cached_equals_uncached_in_every_kind_of_predictor(kind: str, grad: bool) -> None:
    predictor = make(FAMILY[kind], dtype=torch.float64)
    context, actions = problem(2, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        found = rollout(predictor, context, actions, chunk=3, **MAPS)
    with torch.no_grad():
        wanted = uncached(predictor, context, actions)
    torch.testing.assert_close(found.latents, wanted.latents, rtol=0, atol=1e-10)
    assert wanted.latents.var(dim=1).mean() > 1e-3, "candidates must differ for this to test anything"


def test_cached_equals_uncached_in_float32() -> None:
    predictor = make()
    context, actions = problem(2)
    with torch.no_grad():
        found, wanted = (
            rollout(predictor, context, actions, chunk=4, **MAPS),
            uncached(predictor, context, actions),
        )
    torch.testing.assert_close(found.latents, wanted.latents, rtol=0, atol=1e-4)  # large weights amplify rounding


@pytest.mark.parametrize("grad", [False, True])
def test_horizon_one_without_history(grad: bool) -> None:
    predictor = make()
    context, actions = problem(0, horizon=1)
    with torch.set_grad_enabled(grad):
        found = rollout(predictor, context, actions, chunk=4, **MAPS)
    torch.testing.assert_close(found.latents, uncached(predictor, context, actions).latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize("past", [0, 2])
def test_action_gradients_equal_the_uncached_ones_and_finite_differences(past: int) -> None:
    predictor = make(dtype=torch.float64)
    context, actions = problem(past, problems=2, candidates=2, horizon=3, dtype=torch.float64)
    weights = torch.randn(2, 2, 3, 6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def value(actions: Tensor, cached: bool) -> Tensor:
        found = (
            rollout(predictor, context, actions, chunk=3, **MAPS) if cached else uncached(predictor, context, actions)
        )
        return (found.latents * weights).sum() + found.states.square().sum()

    actions.requires_grad_()
    (mine,) = torch.autograd.grad(value(actions, True), actions)
    (theirs,) = torch.autograd.grad(value(actions, False), actions)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
    for index in ((0, 0, 0, 0), (1, 1, 1, 2), (0, 1, 2, 1)):
        shift = torch.zeros_like(actions)
        shift[index] = 1e-5
        with torch.no_grad():
            slope = (value(actions + shift, True) - value(actions - shift, True)) / 2e-5
        assert slope.item() == pytest.approx(mine[index].item(), rel=1e-6, abs=1e-6)


def test_history_and_its_weights_are_detached_and_the_rest_is_not() -> None:
    predictor = make()
    context, actions = problem(2)
    latents = context.latents.clone().requires_grad_()
    found = rollout(predictor, dataclasses.replace(context, latents=latents), actions, chunk=9, **MAPS)
    found.latents.square().mean().backward()
    assert latents.grad is None
    assert all(p.grad is not None for name, p in predictor.named_parameters() if "extrinsics" not in name)


def test_bfloat16_predictor_takes_and_returns_float32_and_is_near() -> None:
    predictor = make(dataclasses.replace(SMALL, width=96, latent_dim=10))
    context, actions = problem(1, horizon=3)
    with torch.no_grad():
        exact = rollout(predictor, context, actions, chunk=64, **MAPS).latents
        rough = rollout(predictor.to(torch.bfloat16), context, actions, chunk=64, **MAPS).latents
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.1  # of layer-normed values, after three steps of large weights


def test_too_long_is_refused_with_both_numbers() -> None:
    context, actions = problem(2, horizon=6)
    with pytest.raises(InputError, match=r"history of 3 frames and a horizon of 6 .* 7 the predictor"):
        rollout(make(), context, actions, chunk=8, **MAPS)
    context, actions = problem(2, horizon=5)
    assert rollout(make(), context, actions, chunk=8, **MAPS).latents.shape == (2, 5, 5, 6, 10)


def test_tensors_on_two_devices_are_refused_with_both() -> None:
    context, actions = problem(0)
    with pytest.raises(InputError, match="latents on cpu, states on cpu, actions on meta"):
        rollout(make(), context, actions.to("meta"), chunk=8, **MAPS)


def test_context_that_does_not_fit_is_refused() -> None:
    context, _ = problem(2)
    with pytest.raises(InputError, match="3 states and 2 actions"):
        Context(context.latents, context.states, context.actions[:, :1])


def golden(name: str) -> tuple[ActionConditionedPredictor, dict[str, Tensor]]:
    predictor = predictor_from_checkpoint(GOLDEN / f"{name}.pt", max_frames=8, **BUILT[name]).eval()
    return predictor, {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}


REFERENCE = {
    "integrate": integrate_pose,
    "state_features": lambda state: state,
    "action_features": lambda action, state: action,
    "renormalise": norm,
}


@pytest.mark.parametrize("past", [0, 1])
@pytest.mark.parametrize("name", BUILT)
def test_golden_rollout(name: str, past: int) -> None:
    predictor, z = golden(name)
    wanted, states = z["rollout_latents"], z["rollout_states"]
    horizon = wanted.shape[1] - past
    first = z["predictor_in"].unflatten(1, (-1, predictor.config.patches))[:, :1]
    latents = torch.cat((first, wanted), dim=1)[:, : past + 1]
    context = Context(latents, states[:, : past + 1], z["actions"][:, :past])
    extrinsics = z["extrinsics"] if predictor.config.use_extrinsics else None
    with torch.no_grad():
        found = rollout(predictor, context, z["actions"][:, None, past:], chunk=1, extrinsics=extrinsics, **REFERENCE)
    assert found.latents.shape[2] == horizon
    torch.testing.assert_close(found.latents[:, 0], wanted[:, past:], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.states[:, 0], states[:, past + 1 :], rtol=0, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["ac_tiny", "ac_wide"])
def test_cached_equals_uncached_in_float32_with_reference_weights(name: str, grad: bool) -> None:
    predictor, z = golden(name)
    frames = z["predictor_in"].unflatten(1, (-1, predictor.config.patches))[:, :2]
    context = Context(frames, z["rollout_states"][:, :2], z["actions"][:, :1])
    actions = z["actions"][:, None, 1:]
    with torch.set_grad_enabled(grad):
        found = rollout(predictor, context, actions, chunk=4, **REFERENCE)
    with torch.no_grad():
        wanted = uncached(predictor, context, actions, REFERENCE)
    torch.testing.assert_close(found.latents, wanted.latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ac_tiny", "ac_tiny_extrinsics"])
def test_golden_energy_landscape(name: str) -> None:
    predictor, z = golden(name)
    context = Context(z["latents"][None, :1], z["states"][:1, :1], z["actions"][:1, :0])
    extrinsics = z["extrinsics"][:1, :1] if predictor.config.use_extrinsics else None
    with torch.no_grad():
        found = rollout(predictor, context, z["landscape_actions"][None], chunk=50, extrinsics=extrinsics, **REFERENCE)
    energy = (found.latents[0, :, -1] - z["latents"][-1]).abs().mean(dim=(-1, -2))
    torch.testing.assert_close(energy, z["landscape_energy"], rtol=0, atol=1e-4)
    assert energy.argmin() == z["landscape_energy"].argmin()
