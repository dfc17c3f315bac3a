"""Training the action-conditioned predictor on the latents of a frozen encoder.

V-JEPA 2-AC's objective (Assran et al. 2025, section 3.1): teacher forcing (every frame predicts the next)
plus a rollout from the first frame(s) that feeds the model its own predictions, in L1, plain sum. The
rollout is the one planning uses, with gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.datasets.clips import Clip
from vjepa_mpc.pretrain.data import ClipBatches
from vjepa_mpc.rollout import Context
from vjepa_mpc.world_model import WorldModel

PROPRIOCEPTION = ("integrated", "predicted")


@dataclass(frozen=True)
class PredictorSettings:
    """`frames` per clip; `history` frames begin a rollout of `rollout_steps` predictions (0: none); its loss
    counts `rollout_weight`. `l2`: squared instead of absolute error. `grid`: latents pooled to grid x grid.
    `stride`: control steps a model step spans; its action is their sum. A few long steps see as far ahead
    as many short ones, at a fraction of the cost. `shorter`: learn from clips of 1 to `stride` control steps
    a model step, not of `stride` alone: a planner asks for displacements of every size. `residual`: predict
    the change of the latents.
    `pooling`, `centre` (take each picture's mean over its patches out of the latents): see `LatentConfig`.
    `conditioning`, `rotary`: see `PredictorConfig`. `proprioception`: imagined states are "integrated" from the
    actions, or "predicted": integrated from what the predictor says of the actions to come to pass, for robots that
    walls and loads hold up."""

    grid: int = 4
    width: int = 128
    depth: int = 4
    heads: int = 2
    stride: int = 15
    shorter: bool = True
    frames: int = 2
    history: int = 1
    rollout_steps: int = 0
    rollout_weight: float = 1.0
    l2: bool = True
    residual: bool = True
    pooling: str = "mean"
    centre: bool = True
    conditioning: str = "tokens"
    rotary: str = "tiled"
    proprioception: str = "integrated"

    def __post_init__(self) -> None:
        if self.proprioception not in PROPRIOCEPTION:
            raise unknown_name("proprioception", self.proprioception, PROPRIOCEPTION)
        if not 1 <= self.history < self.frames:
            raise InputError(f"The history ({self.history}) must be at least 1 and below the clip's {self.frames}.")
        if min(self.stride, self.grid, self.width, self.depth, self.heads) < 1 or self.rollout_steps < 0:
            raise InputError("Grid, width, depth, heads and stride must be at least 1, rollout steps at least 0.")
        if self.history + self.rollout_steps > self.frames:
            raise InputError(
                f"A rollout of {self.rollout_steps} steps after {self.history} frames needs clips of "
                f"{self.history + self.rollout_steps} frames, not {self.frames}."
            )


def prediction_error(
    predicted: Float[Tensor, "*batch p d"], target: Float[Tensor, "*batch p d"], l2: bool
) -> Float[Tensor, ""]:
    """Mean absolute (or half squared) error over everything."""
    difference = predicted.float() - target.float()
    return 0.5 * difference.square().mean() if l2 else difference.abs().mean()


class PredictorLearner:
    """The predictor of `model` as a `Learner`. The encoder is not touched: its latents come from a cache."""

    def __init__(
        self, model: WorldModel, settings: PredictorSettings, data: ClipBatches, device: torch.device
    ) -> None:
        self.model, self.settings, self.data, self.device = model, settings, data, device
        self.modules: nn.Module = model.predictor

    def batch(self, step: int) -> Clip:
        return self.data.batch(step)

    def loss(self, batch: Clip, step: int) -> tuple[Tensor, dict[str, Any]]:
        model, settings = self.model, self.settings
        latents = model.standardise(batch.frames.to(self.device, non_blocking=True).float().flatten(0, 1))
        latents = latents.unflatten(0, batch.frames.shape[:2])
        states = batch.states.to(self.device, non_blocking=True)
        actions = batch.actions.to(self.device, non_blocking=True)
        space = model.states
        predictor, features = model.predictor, space.action_features(actions, states[:, :-1])
        output = predictor.advance(predictor.embed(latents[:, :-1], features, space.state_features(states[:, :-1])))
        predicted = model.latent_space.renormalise(predictor.predict(output, latents[:, :-1]))
        forced = prediction_error(predicted, latents[:, 1:], settings.l2)
        copying = prediction_error(latents[:, :-1], latents[:, 1:], settings.l2)
        figures = {"forced": forced.detach(), "copy": copying.detach()}
        total = forced
        if settings.proprioception == "predicted":
            came = (space.difference(states[:, :-1], states[:, 1:]) - actions) / model.step_limits
            moved = prediction_error(predictor.shortfall(output), came, settings.l2)
            total, figures = total + moved, {**figures, "moved": moved.detach()}
        k, steps = settings.history, settings.rollout_steps
        if not steps:
            return total, figures
        context = Context(latents[:, :k], states[:, :k], actions[:, : k - 1])
        rolled = model.rollout(context, actions[:, None, k - 1 : k - 1 + steps])
        own = prediction_error(rolled.latents[:, 0], latents[:, k : k + steps], settings.l2)
        return total + settings.rollout_weight * own, {**figures, "rollout": own.detach()}

    def after_step(self, step: int) -> None:
        """Nothing moves but the optimiser."""

    def check(self, figures: Mapping[str, float]) -> None:
        """A poor predictor is visible in the curves; only NaN stops the run, and the trainer sees that."""
