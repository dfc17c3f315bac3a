"""The predictor's parts: attention with a cache of keys and values, and the two kinds of block around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vjepa_mpc.attention import attend
from vjepa_mpc.rotary import rotate


class KeyValues:
    """One attention layer's rotated keys and values of the frames seen so far, [b, tokens, heads, head_dim].

    With a `capacity` in tokens they are written into buffers of that length; without, each `extend`
    concatenates: autograd must find what it saved unchanged.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._length = 0
        self._stored: tuple[Tensor, Tensor] | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append tokens; return the keys and values of all tokens so far."""
        start, self._length = self._length, self._length + keys.shape[1]
        if self._capacity is None:
            if self._stored is not None:
                keys, values = torch.cat((self._stored[0], keys), 1), torch.cat((self._stored[1], values), 1)
            self._stored = keys, values
            return keys, values
        if self._stored is None:
            shape = (keys.shape[0], self._capacity, *keys.shape[2:])
            self._stored = keys.new_empty(shape), values.new_empty(shape)
        for buffer, new in zip(self._stored, (keys, values), strict=True):
            buffer[:, start : self._length] = new
        return self._stored[0][:, : self._length], self._stored[1][:, : self._length]

    def repeated(self, problems: slice, copies: int, capacity: int | None) -> KeyValues:
        """A cache of `capacity` that starts with these tokens of `problems`, `copies` times each."""
        cache = KeyValues(capacity)
        if self._stored is not None:
            keys, values = (part[problems, : self._length] for part in self._stored)
            cache.extend(keys.repeat_interleave(copies, 0), values.repeat_interleave(copies, 0))
        return cache


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KeyValues | None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3 * self.heads, -1))
        query, key = rotate(qkv[:, :, : 2 * self.heads], cos, sin).chunk(2, dim=2)
        value = qkv[:, :, 2 * self.heads :]
        if cache is not None:
            key, value = cache.extend(key, value)
        return self.proj(attend(query, key, value, mask).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class Block(nn.Module):
    """Attention, then an MLP, each on a layer norm of what it adds to. Actions and states are tokens among others."""

    def __init__(self, width: int, heads: int, hidden: int, activation: str, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = _Mlp(width, hidden, activation)

    def reset_parameters(self, number: int) -> None:
        """Make what block `number` (from 1) adds to the residual stream smaller with depth."""
        with torch.no_grad():
            self.attn.proj.weight.div_((2.0 * number) ** 0.5)
            self.mlp.fc2.weight.div_((2.0 * number) ** 0.5)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KeyValues | None,
        condition: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Tokens x [b, n, w]; `condition` [b, t, w], each frame's, is for blocks that are modulated by it."""
        return self.widened(self.attended(x, cos, sin, mask, cache, condition), condition)

    def attended(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KeyValues | None,
        condition: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The first half of the block."""
        return x + self.attn(self.norm1(x), cos, sin, mask, cache)

    def widened(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The second half of the block."""
        return x + self.mlp(self.norm2(x))

    def recomputed(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KeyValues | None,
        condition: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """`forward`, keeping its input alone for the way back; with a cache, which is written to once, that of the
        second half, where most of the memory is."""
        if cache is None:
            whole: Tensor = checkpoint(self, x, cos, sin, mask, None, condition, use_reentrant=False)
            return whole
        x = self.attended(x, cos, sin, mask, cache, condition)
        half: Tensor = checkpoint(self.widened, x, condition, use_reentrant=False)
        return half


class AdaptiveBlock(Block):
    """A block whose frames' condition (action and state) scales, shifts and gates what it does: adaptive layer norm
    that begins as the identity (adaLN-Zero: Peebles & Xie 2023, arXiv:2212.09748, section 3.2)."""

    def __init__(self, width: int, heads: int, hidden: int, activation: str, eps: float) -> None:
        super().__init__(width, heads, hidden, activation, eps)
        self.norm1 = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)

    def reset_parameters(self, number: int) -> None:
        """Begin as the identity: nothing is added before the modulation has learned to."""
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def attended(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KeyValues | None,
        condition: Tensor | None,
    ) -> Tensor:  # fmt: skip
        shift, scale, gate = self._modulations(condition)[:3]
        inner = _by_frame(self.norm1(x), scale, shift)
        return x + _by_frame(self.attn(inner, cos, sin, mask, cache), gate)

    def widened(self, x: Tensor, condition: Tensor | None) -> Tensor:
        shift, scale, gate = self._modulations(condition)[3:]
        return x + _by_frame(self.mlp(_by_frame(self.norm2(x), scale, shift)), gate)

    def _modulations(self, condition: Tensor | None) -> tuple[Tensor, ...]:
        """(shift, 1 + scale, gate) of attention and of the MLP, each [b, t, w]."""
        assert condition is not None, "an adaptive block needs each frame's condition"
        parts = list(self.modulation(F.silu(condition)).chunk(6, dim=-1))
        parts[1], parts[4] = 1 + parts[1], 1 + parts[4]
        return tuple(parts)


def _by_frame(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """x [b, t * k, w] times its frame's `scale` [b, t, w], plus its `shift`."""
    scaled = x.unflatten(1, (scale.shape[1], -1)) * scale[:, :, None]
    return (scaled if shift is None else scaled + shift[:, :, None]).flatten(1, 2)
