"""The trainable critic: how many control steps the robot still needs from a frame to a goal picture.

The latent distance (the intrinsic cost) is flat far from a goal, and blind to walls. The critic is learned from logs
alone and foresees what the intrinsic cost of what is beyond a plan's horizon would come to (LeCun 2022, "A path towards
autonomous machine intelligence", sections 3.2 and 3.3), so that a short plan is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vjepa_mpc.goal_network import GoalNetwork, GoalNetworkConfig


@dataclass(frozen=True)
class CriticConfig(GoalNetworkConfig):
    """Sizes of a critic."""


class Critic(GoalNetwork):
    """Control steps from a frame, with the robot's state, to a goal picture."""

    config: CriticConfig

    def __init__(self, config: CriticConfig) -> None:
        super().__init__(config)
        self.read = nn.Linear(config.width, 1)

    def forward(
        self,
        latents: Float[Tensor, "*n p d"],
        features: Float[Tensor, "*n s"],
        goal: Float[Tensor, "*#n p d"],
    ) -> Float[Tensor, "*n"]:
        """Control steps, at least 0, in float32. `features`: of the state, as `StateSpace.state_features` gives
        them."""
        hidden = self.compared(latents, features, goal)
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 knows 16 steps from 16.125 and no nearer
            return F.softplus(self.read(hidden.float())[..., 0])
