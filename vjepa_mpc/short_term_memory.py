"""The short-term memory of an episode: what came to less than the world model imagined.

A frozen world model that imagines a ball through a wall imagines so again at the next step, and the next. What was
done, where, and by how much the view after it was worse than the imagined one (in the plan's own cost) is kept until
the episode ends, and counts against futures that would do the same there: the short-term memory of LeCun's
architecture, which hands past states and what they cost to the critic (LeCun 2022, "A path towards autonomous machine
intelligence", sections 3.1 and 3.2). What goes as imagined leaves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.costs import over_horizon
from vjepa_mpc.rollout import Rollout
from vjepa_mpc.states import StateSpace

NEAR = 0.5
"""Control steps at full speed: what was remembered there counts e^-1/2 of it so far away."""
ALIKE = 4
"""Power of the cosine between an action and the one remembered, in units of the limits: half of it at 33 degrees."""


@dataclass(frozen=True)
class ShortTermMemory:
    """For each of m disappointments the state before, the action (physical units, one control step's), and how much
    more the view after it cost than the imagined one."""

    states: Float[Tensor, "m s"]
    actions: Float[Tensor, "m a"]
    losses: Float[Tensor, "m"]

    @classmethod
    def empty(cls, state: Float[Tensor, "s"], limits: Float[Tensor, "a"]) -> ShortTermMemory:
        """Of nothing yet; the tensors say where the memory is kept."""
        return cls(state.new_zeros(0, len(state)), limits.new_zeros(0, len(limits)), limits.new_zeros(0))

    def __len__(self) -> int:
        return len(self.losses)

    def with_outcome(
        self, state: Float[Tensor, "s"], action: Float[Tensor, "a"], loss: float
    ) -> ShortTermMemory:
        """This memory and one more outcome; the same where it cost no more than imagined, or nothing was done."""
        if loss <= 0 or not bool(action.any()):
            return self
        return ShortTermMemory(
            torch.cat([self.states, state[None]]), torch.cat([self.actions, action[None]]),
            torch.cat([self.losses, self.losses.new_tensor([loss])]),
        )  # fmt: skip


@dataclass(frozen=True)
class Remembered:
    """`weight` times what `memory` holds against a future: at each model step the losses of what was alike, added up,
    and kept for the frames after it; over the horizon as `GoalDistance` has it.

    Alike is a motion from a state near (`NEAR`, a Gaussian), in a similar direction (`ALIKE`), and counts up to the
    length of the one remembered in full. `start`: the state planned from; `limits`: one control step's displacement.
    """

    memory: ShortTermMemory
    start: Float[Tensor, "s"]
    space: StateSpace
    limits: Float[Tensor, "a"]
    weight: float = 1.0
    running: float = 1.0
    name: str = "remembered"

    def __call__(
        self, rollout: Rollout, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]
    ) -> Float[Tensor, "b n"]:
        states = rollout.states
        legs = actions.shape[2] // states.shape[2]
        moves = actions.unflatten(2, (-1, legs)).sum(3) / self.limits
        start = self.start.expand(*states.shape[:2], 1, -1)
        before = torch.cat([start, states[:, :, :-1]], dim=2)
        return self.weight * over_horizon(self._against(before, moves).cumsum(-1), self.running, 0.0)

    def _against(self, before: Float[Tensor, "b n h s"], moves: Float[Tensor, "b n h a"]) -> Float[Tensor, "b n h"]:
        held = self.memory
        apart = self.space.difference(held.states, before[..., None, :]) / self.limits
        near = torch.exp(-0.5 * (apart / NEAR).square().sum(-1))
        done = held.actions / self.limits
        length = moves.norm(dim=-1, keepdim=True)
        cosine = (moves @ done.T) / (length * done.norm(dim=-1)).clamp(min=1e-9)
        share = (length / done.norm(dim=-1).clamp(min=1e-9)).clamp(max=1)
        return (near * cosine.clamp(min=0) ** ALIKE * share * held.losses).sum(-1)
