"""The residual predictor: the same network, its output added to the present frame."""

from __future__ import annotations

from dataclasses import replace

import torch

from vjepa_mpc.predictor import ActionConditionedPredictor, PredictorConfig
from vjepa_mpc.rollout import Context, rollout

CONFIG = PredictorConfig(2, 2, latent_dim=6, width=12, depth=2, heads=2, max_frames=4, action_dim=2, state_dim=2)


def pair() -> tuple[ActionConditionedPredictor, ActionConditionedPredictor]:
    absolute = ActionConditionedPredictor(CONFIG)
    absolute.reset_parameters(torch.Generator().manual_seed(0))
    residual = ActionConditionedPredictor(replace(CONFIG, residual=True))
    residual.load_state_dict(absolute.state_dict())
    return absolute, residual


def test_the_residual_predictor_adds_the_present_frame() -> None:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 4, 4, 6, generator=generator)
    actions, states = torch.randn(3, 4, 2, generator=generator), torch.randn(3, 4, 2, generator=generator)
    absolute, residual = pair()
    with torch.no_grad():
        expected = latents + absolute(latents, actions, states)
        torch.testing.assert_close(residual(latents, actions, states), expected)


def test_its_cached_rollout_adds_what_was_last_imagined() -> None:
    generator = torch.Generator().manual_seed(2)
    context = Context(torch.randn(2, 1, 4, 6, generator=generator), torch.zeros(2, 1, 2), torch.zeros(2, 0, 2))
    actions = torch.randn(2, 3, 3, 2, generator=generator)
    _, residual = pair()

    def keep(x: torch.Tensor) -> torch.Tensor:
        return x

    with torch.no_grad():
        found = rollout(
            residual, context, actions, integrate=lambda state, action: state + action,
            state_features=keep, action_features=lambda action, state: action, renormalise=keep, chunk=4,
        )  # fmt: skip
        for problem in range(2):
            for candidate in range(3):
                frames, states = context.latents[problem][None], [context.states[problem, 0]]
                for step in range(3):
                    past = actions[problem, candidate, : step + 1][None]
                    last = residual(frames, past, torch.stack(states)[None])[:, -1:]
                    frames = torch.cat((frames, last), 1)
                    states.append(states[-1] + actions[problem, candidate, step])
                torch.testing.assert_close(found.latents[problem, candidate], frames[0, 1:], atol=1e-5, rtol=1e-4)
