"""Units in which a search's numbers, and their squares, are ordinary ones: powers of two, which change no other bit."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.planners.base import Bounds


def power_of_two(numbers: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The largest power of two that is no larger; 0 is answered with a half."""
    return torch.ldexp(torch.ones_like(numbers), torch.frexp(numbers).exponent - 1)


def units_of(bounds: Bounds) -> Float[Tensor, "a"] | None:
    """The unit of each action in which bounds are searched: 1 but where they are so wide, or so narrow, that ranges,
    sums or squares of candidates would not be numbers of their type. None where all are 1."""
    most, half = torch.maximum(bounds.low.abs(), bounds.high.abs()), bounds.high / 2 - bounds.low / 2
    large = torch.finfo(half.dtype).max ** 0.25
    size = torch.where((half > 0) & (half < 1 / large), half, 1.0)
    size = torch.where(most > large, most, size)
    for group in bounds.groups:  # in one unit together
        members = list(group)
        size[members] = size[members].max()
    return None if bool((size == 1).all()) else power_of_two(size)


def each_in_units(values: tuple[float, ...] | None, unit: Float[Tensor, "a"]) -> tuple[float, ...] | None:
    """A setting of one value an action in these units; one of another number of values, which is refused later, as it
    is."""
    if values is None or len(values) != len(unit):
        return values
    return tuple(value / one for value, one in zip(values, unit.tolist(), strict=True))
