"""Predicted proprioception: a predictor that foretells how much of an action comes to pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_world import WIDTH, save_tiny_model

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.clips import Clip
from vjepa_mpc.predictor import ActionConditionedPredictor, PredictorConfig
from vjepa_mpc.pretrain.data import ClipBatches
from vjepa_mpc.pretrain.predictor import PredictorLearner, PredictorSettings
from vjepa_mpc.rollout import Context, Rollout, rollout
from vjepa_mpc.world_model import WorldModel

CONFIG = PredictorConfig(
    2, 2, latent_dim=6, width=12, depth=2, heads=2, max_frames=4, action_dim=2, state_dim=2, residual=True,
    displacements=2,
)  # fmt: skip
UNIT = torch.tensor([0.3, 0.1])


def predictor(config: PredictorConfig = CONFIG, head: bool = True) -> ActionConditionedPredictor:
    made = ActionConditionedPredictor(config)
    made.reset_parameters(torch.Generator().manual_seed(0))
    if head:
        torch.nn.init.normal_(made.displacement_head.weight, std=1.0, generator=torch.Generator().manual_seed(1))
    return made


def imagined(made: ActionConditionedPredictor, context: Context, actions: torch.Tensor) -> Rollout:
    with torch.no_grad():
        return rollout(
            made, context, actions, integrate=lambda state, action: state + action, state_features=lambda state: state,
            action_features=lambda action, state: action, renormalise=lambda latents: latents, chunk=4, unit=UNIT,
        )  # fmt: skip


class NoBatches(ClipBatches):
    """The test hands its own batches to the loss."""

    def __init__(self) -> None:
        pass


def problems() -> tuple[Context, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    latents, states = torch.randn(2, 2, 4, 6, generator=generator), torch.randn(2, 2, 2, generator=generator)
    context = Context(latents, states, torch.randn(2, 1, 2, generator=generator))
    return context, torch.randn(2, 3, 3, 2, generator=generator)


@pytest.mark.parametrize("conditioning", ["tokens", "adaptive_norm"])
def test_the_cached_rollout_is_the_plain_one(conditioning: str) -> None:
    made = predictor(replace(CONFIG, conditioning=conditioning))
    context, actions = problems()
    found = imagined(made, context, actions)
    for problem in range(2):
        for candidate in range(3):
            frames, states = context.latents[problem][None], context.states[problem][None]
            told = context.actions[problem][None]
            for step in range(3):
                told = torch.cat((told, actions[problem, candidate, step][None, None]), 1)
                with torch.no_grad():
                    output = made.advance(made.embed(frames, told, states))
                    frames = torch.cat((frames, made.predict(output, frames)[:, -1:]), 1)
                    came = told[:, -1] + UNIT * made.shortfall(output)[:, -1]
                states = torch.cat((states, (states[:, -1] + came)[:, None]), 1)
            torch.testing.assert_close(found.latents[problem, candidate], frames[0, 2:], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found.states[problem, candidate], states[0, 2:], atol=1e-5, rtol=1e-4)
    integrated = context.states[:, None, -1:] + actions.cumsum(2)
    assert (found.states - integrated).abs().max() > 0.01  # it does foretell something


def test_a_fresh_one_expects_all_of_an_action() -> None:
    context, actions = problems()
    found = imagined(predictor(head=False), context, actions)
    torch.testing.assert_close(found.states, context.states[:, None, -1:] + actions.cumsum(2))


def test_the_unit_is_asked_for() -> None:
    context, actions = problems()
    with pytest.raises(InputError, match="needs the unit"):
        rollout(
            predictor(), context, actions, integrate=lambda state, action: state + action,
            state_features=lambda state: state, action_features=lambda action, state: action,
            renormalise=lambda latents: latents, chunk=4,
        )  # fmt: skip


def test_it_learns_what_a_load_leaves_of_an_action(tmp_path: Path) -> None:
    """A robot that comes half as far as told with its second joint: the loss starts at what that misses, falls, and
    imagined states then come half as far."""
    shape = PredictorConfig(
        grid_height=2, grid_width=2, latent_dim=WIDTH, width=WIDTH, depth=1, heads=3, max_frames=3, action_dim=27,
        state_dim=25, residual=True, displacements=2,
    )  # fmt: skip
    model = WorldModel.from_pretrained(save_tiny_model(tmp_path / "tiny", predictor=shape, history=1))
    model.predictor.requires_grad_(True)
    settings = PredictorSettings(grid=2, width=WIDTH, depth=1, heads=3, frames=3, stride=1, proprioception="predicted")
    learner = PredictorLearner(model, settings, NoBatches(), torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.predictor.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    share, moved = torch.tensor([1.0, 0.5]), []
    for step in range(120):
        actions = 0.6 * torch.rand(32, 2, 2, generator=generator) - 0.3
        first = torch.rand(32, 1, 2, generator=generator) - 0.5
        states = torch.cat((first, first + (share * actions).cumsum(1)), 1)
        loss, figures = learner.loss(Clip(torch.randn(32, 3, 4, WIDTH, generator=generator), states, actions), step)
        if step == 0:
            missed = 0.5 * ((1 - share) * actions / 0.3).square().mean()
            torch.testing.assert_close(figures["moved"], missed, rtol=1e-4, atol=1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moved.append(float(figures["moved"]))
    assert sum(moved[-5:]) < 0.33 * sum(moved[:5])
    context = Context(torch.randn(1, 1, 4, WIDTH, generator=generator), torch.zeros(1, 1, 2), torch.zeros(1, 0, 2))
    with torch.no_grad():
        there = model.rollout(context, torch.tensor([[[[0.25, 0.25]]]])).states
    torch.testing.assert_close(there[0, 0, 0], torch.tensor([0.25, 0.125]), atol=0.05, rtol=0)
