"""What the critic and the actor share: a small network that reads a frame, with the robot's state, beside a goal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError


@dataclass(frozen=True)
class GoalNetworkConfig:
    """`positions` and `latent_dim` of a frame's latents, `state_dim` features of the robot's state; `channels` of what
    is read at each position, `width` of the layers after that."""

    positions: int
    latent_dim: int
    state_dim: int
    channels: int = 32
    width: int = 384

    def __post_init__(self) -> None:
        if min(self.positions, self.latent_dim, self.channels, self.width) < 1 or self.state_dim < 0:
            raise InputError("Critic and actor need positions, channels and width of at least 1.")


class GoalNetwork(nn.Module):
    """A frame, with the robot's state, compared with a goal picture. The state says where the robot is to a fraction of
    a pixel, and on which side of a wall."""

    config: GoalNetworkConfig

    def __init__(self, config: GoalNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.compare = nn.Linear(3 * config.latent_dim, config.channels)
        self.gather = nn.Linear(config.positions * config.channels + config.state_dim, config.width)
        self.gather_norm = nn.LayerNorm(config.width)
        self.hidden = nn.Linear(config.width, config.width)
        self.hidden_norm = nn.LayerNorm(config.width)

    def compared(
        self,
        latents: Float[Tensor, "*n p d"],
        features: Float[Tensor, "*n s"],
        goal: Float[Tensor, "*#n p d"],
    ) -> Float[Tensor, "*n w"]:
        """What the last layer reads. `features`: of the state, as `StateSpace.state_features` gives them."""
        goal = goal.expand_as(latents)
        read = F.gelu(self.compare(torch.cat([latents, goal, latents - goal], dim=-1))).flatten(-2)
        hidden = F.gelu(self.gather_norm(self.gather(torch.cat([read, features.to(read.dtype)], dim=-1))))
        return F.gelu(self.hidden_norm(self.hidden(hidden)))
