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

from vjepa_mpc.core.errors import InputError


@dataclass(frozen=True)
class CriticConfig:
    """`positions` and `latent_dim` of a frame's latents, `state_dim` features of the robot's state; `channels` of what
    is read at each position, `width` of the layers after that."""

    positions: int
    latent_dim: int
    state_dim: int
    channels: int = 32
    width: int = 384

    def __post_init__(self) -> None:
        if min(self.positions, self.latent_dim, self.channels, self.width) < 1 or self.state_dim < 0:
            raise InputError("A critic needs positions, channels and width of at least 1.")


class Critic(nn.Module):
    """Control steps from a frame, with the robot's state, to a goal picture. The state says where the robot is to a
    fraction of a pixel, and on which side of a wall."""

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        self.config = config
        self.compare = nn.Linear(3 * config.latent_dim, config.channels)
        self.gather = nn.Linear(config.positions * config.channels + config.state_dim, config.width)
        self.gather_norm = nn.LayerNorm(config.width)
        self.hidden = nn.Linear(config.width, config.width)
        self.hidden_norm = nn.LayerNorm(config.width)
        self.read = nn.Linear(config.width, 1)

    def forward(
        self,
        latents: Float[Tensor, "*n p d"],
        features: Float[Tensor, "*n s"],
        goal: Float[Tensor, "*#n p d"],
    ) -> Float[Tensor, "*n"]:
        """Control steps, at least 0, in float32. `features`: of the state, as `StateSpace.state_features` gives
        them."""
        goal = goal.expand_as(latents)
        read = F.gelu(self.compare(torch.cat([latents, goal, latents - goal], dim=-1))).flatten(-2)
        hidden = F.gelu(self.gather_norm(self.gather(torch.cat([read, features.to(read.dtype)], dim=-1))))
        hidden = F.gelu(self.hidden_norm(self.hidden(hidden)))
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 knows 16 steps from 16.125 and no nearer
            return F.softplus(self.read(hidden.float())[..., 0])
