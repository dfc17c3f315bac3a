"""Rotary positions of V-JEPA 2-AC's predictor: time, height and width, one third of a head each.

Every axis turns `2 * ((head_dim // 3) // 2)` dimensions; what is left of the head stays as it is. The
angle of dimension j of an axis of d dimensions is position * 10000 ** -(2 (j mod d/2) / d): the
frequencies are TILED over the axis, although dimensions (2i, 2i+1) are turned together, so that the two
of a pair turn by different angles. That is a known slip which the released weights depend on; INTERLEAVED
frequencies (2 (j // 2) in place of 2 (j mod d/2)) are what was meant.
Action and state tokens have a time and no place: they turn on the time axis alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_THETA = 10000.0


def rotary_tables(
    *, frames: int, grid: tuple[int, int], train_grid: tuple[int, int], conditions: int, head_dim: int,
    interleaved: bool = False,
) -> tuple[Float[Tensor, "frames tokens head_dim"], Float[Tensor, "frames tokens head_dim"]]:
    """Cosine and signed sine of every token's angles, for `rotate`; float64.

    A frame's tokens are its `conditions` (action, state, ...), then the `grid` (height, width) of patches
    row by row. Patch positions are scaled to `train_grid`, the grid the weights were trained at. The tables lie in
    ordinary memory, also where modules are being built without any (torch's "meta" device).
    """
    with torch.device("cpu"):
        return _tables(frames, grid, train_grid, conditions, head_dim, interleaved)


def _tables(
    frames: int, grid: tuple[int, int], train_grid: tuple[int, int], conditions: int, head_dim: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    axis = 2 * ((head_dim // 3) // 2)
    tokens = conditions + grid[0] * grid[1]
    angles = torch.zeros(frames, tokens, head_dim, dtype=torch.float64)
    if axis:
        frequency = _THETA ** -(torch.arange(axis // 2, dtype=torch.float64) / (axis / 2))
        spread = frequency.repeat_interleave(2) if interleaved else frequency.repeat(2)
        rows = torch.arange(grid[0], dtype=torch.float64) * (train_grid[0] / grid[0])
        columns = torch.arange(grid[1], dtype=torch.float64) * (train_grid[1] / grid[1])
        angles[:, :, :axis] = torch.arange(frames, dtype=torch.float64)[:, None, None] * spread
        angles[:, conditions:, axis : 2 * axis] = rows.repeat_interleave(grid[1])[:, None] * spread
        angles[:, conditions:, 2 * axis : 3 * axis] = columns.repeat(grid[0])[:, None] * spread
    sign = torch.ones(head_dim, dtype=torch.float64)
    sign[0::2] = -1.0
    return angles.cos(), angles.sin() * sign


def rotate(
    x: Float[Tensor, "b tokens heads head_dim"],
    cos: Float[Tensor, "... tokens #heads head_dim"],
    sin: Float[Tensor, "... tokens #heads head_dim"],
) -> Float[Tensor, "b tokens heads head_dim"]:
    """Turn the pairs (2i, 2i+1): x cos + (x[2i+1], x[2i]) sin, where `sin` carries the sign.

    Tables as wide as `x`, and a stack of strided halves rather than a flip: on CPUs both are several times
    faster than the obvious form, and this runs in every layer.
    """
    even = x.shape[-1] // 2 * 2
    swapped = torch.stack((x[..., 1:even:2], x[..., 0:even:2]), dim=-1).flatten(-2)
    if even != x.shape[-1]:  # an odd head's last dimension is never turned
        swapped = torch.cat((swapped, x[..., even:]), dim=-1)
    return torch.addcmul(x * cos, swapped, sin)


def half_order(head_dim: int) -> Int[Tensor, "head_dim"]:
    """A head's dimensions in the order that `rotate_halves` takes: of all pairs the first, then the second ones."""
    even = head_dim // 2 * 2
    return torch.cat([torch.arange(0, even, 2), torch.arange(1, even, 2), torch.arange(even, head_dim)])


def rotate_halves(
    x: Float[Tensor, "b tokens heads head_dim"],
    cos: Float[Tensor, "... tokens #heads head_dim"],
    sin: Float[Tensor, "... tokens #heads head_dim"],
) -> Float[Tensor, "b tokens heads head_dim"]:
    """`rotate` of what is in `half_order`, tables and all, to the same numbers in that order. A pair's partners lie in
    two whole runs of memory, which saves gathering them one by one."""
    half = x.shape[-1] // 2
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = x * cos
    if torch.is_grad_enabled():
        return torch.addcmul(turned, torch.cat((second, first, rest), dim=-1), sin)
    turned[..., :half].addcmul_(second, sin[..., :half])
    turned[..., half : 2 * half].addcmul_(first, sin[..., half : 2 * half])
    return turned
