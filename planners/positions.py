"""Actions as positions in the box: one number from -1 to 1 each, so that one step length suits every unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.planners.base import Bounds


@dataclass(frozen=True)
class Positions:
    """The map from [-1, 1] to actions inside `bounds` and back. An action without range has position 0."""

    bounds: Bounds
    centre: Float[Tensor, "a"]
    half: Float[Tensor, "a"]

    @staticmethod
    def of(bounds: Bounds) -> Positions:
        """The map for these bounds."""
        return Positions(bounds, bounds.high / 2 + bounds.low / 2, bounds.high / 2 - bounds.low / 2)

    def rows(self, problems: Int[Tensor, "r"]) -> Positions:
        """The map of these problems."""
        return Positions(self.bounds.rows(problems), self.centre, self.half)

    def actions(self, position: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """The actions at these positions, projected into the bounds."""
        return self.bounds.clip(self.centre + self.half * position)

    def of_actions(self, actions: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """The positions of these actions."""
        wide = torch.where(self.half > 0, self.half, 1.0)
        return ((actions - self.centre) / wide).clamp(-1, 1)

    def project(self, position: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """The positions of the actions that are allowed."""
        if type(self.bounds) is Bounds:
            return position.clamp(-1, 1)
        return self.of_actions(self.actions(position))
