"""Actions as positions in the box: one number from -1 to 1 each, so that one step length suits every unit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.planners.base import Bounds


@dataclass(frozen=True)
class Positions:
    """The map from [-1, 1] to actions inside `bounds` and back. An action without range has position 0.
    `half` of each range, and `wide`, the same without the zeros and rounded so that the last action of each side has
    position -1 or 1 exactly: what a bound holds is known by that."""

    bounds: Bounds
    centre: Float[Tensor, "*h a"]
    half: Float[Tensor, "*h a"]
    wide: Float[Tensor, "*h a"]

    @staticmethod
    def of(bounds: Bounds, horizon: int | None = None) -> Positions:
        """The map for these bounds; for whole plans alone, and quicker, where their `horizon` is given."""
        centre, half = bounds.high / 2 + bounds.low / 2, bounds.high / 2 - bounds.low / 2
        if horizon is not None:
            centre, half = centre.repeat(horizon, 1), half.repeat(horizon, 1)
        top, bottom = bounds.high.clamp(max=centre + half), bounds.low.clamp(min=centre - half)
        reach = torch.minimum(top - centre, centre - bottom)
        return Positions(bounds, centre, half, torch.where(reach > 0, reach, 1.0))

    def rows(self, problems: Int[Tensor, "r"]) -> Positions:
        """The map of these problems."""
        return replace(self, bounds=self.bounds.rows(problems))

    def actions(self, position: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """The actions at these positions: inside the box but for rounding, and not yet projected into the bounds."""
        return self.centre + self.half * position

    def of_actions(self, actions: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """The positions of these actions."""
        return ((actions - self.centre) / self.wide).clamp(-1, 1)

    def slope(self, slope: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """Slopes by actions as slopes by positions, no steeper than what is a number."""
        most = torch.finfo(slope.dtype).max
        return (slope * self.half).clamp(-most, most)

    def project(self, position: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """The positions of the actions that are allowed."""
        if type(self.bounds) is Bounds:
            return position.clamp(-1, 1)
        return self.of_actions(self.bounds.clip(self.actions(position)))
