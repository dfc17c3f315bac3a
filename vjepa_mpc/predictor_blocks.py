"""The predictor's parts: attention with a cache of keys and values, and the two kinds of block around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vjepa_mpc.attention import attend
from vjepa_mpc.linear import Linear
from vjepa_mpc.rotary import half_order, rotate, rotate_halves


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
    """`halves`: queries and keys have the first dimensions of all turned pairs before the second ones (`prepare`)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.halves = False
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def prepare(self) -> None:
        """Have queries and keys in the order in which they are turned fastest; their products are the same in any."""
        size = self.qkv.in_features // self.heads
        order = half_order(size)
        rows = torch.arange(self.qkv.out_features).unflatten(0, (3 * self.heads, size))
        rows = torch.cat([rows[: 2 * self.heads, order], rows[2 * self.heads :]]).flatten()
        self.qkv.prepare(rows.to(self.qkv.weight.device))
        self.proj.prepare()
        self.halves = True

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens x [b, n, w]: turned queries and keys [b, n, 2 heads, size], values [b, n, heads, size]."""
        qkv = self.qkv(x).unflatten(-1, (3 * self.heads, -1))
        turn = rotate_halves if self.halves else rotate
        return turn(qkv[:, :, : 2 * self.heads], cos, sin), qkv[:, :, 2 * self.heads :]

    def mix(
        self, turned: Tensor, value: Tensor, mask: Tensor | None, cache: KeyValues | None, skip: int = 0
    ) -> Tensor:
        """What attention gives the tokens but the first `skip`, [b, n - skip, w], still to be projected."""
        query, key = turned.chunk(2, dim=2)
        if cache is not None:
            key, value = cache.extend(key, value)
        return attend(query[:, skip:], key, value, mask).flatten(2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KeyValues | None) -> Tensor:
        return self.proj(self.mix(*self.project(x, cos, sin), mask, cache))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1.gelu(x, self.approximate))

    def onto(self, sum_: Tensor, x: Tensor) -> Tensor:
        """`sum_` plus what the MLP makes of x."""
        return self.fc2.onto(sum_, self.fc1.gelu(x, self.approximate))


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

    def prepare(self) -> None:
        """See `ActionConditionedPredictor.prepare`."""
        self.attn.prepare()
        self.mlp.fc1.prepare()
        self.mlp.fc2.prepare()

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KeyValues | None,
        condition: Tensor | None, skip: int = 0,
    ) -> Tensor:  # fmt: skip
        """Tokens x [b, n, w]; `condition` [b, t, w], each frame's, is for blocks that are modulated by it. The first
        `skip` tokens are seen, and not answered: [b, n - skip, w]."""
        return self.widened(self.attended(x, cos, sin, mask, cache, condition, skip), condition)

    def attended(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KeyValues | None,
        condition: Tensor | None, skip: int = 0,
    ) -> Tensor:  # fmt: skip
        """The first half of the block."""
        turned, value = self.attn.project(self.norm1(x), cos, sin)
        return self.attn.proj.onto(x[:, skip:], self.attn.mix(turned, value, mask, cache, skip))

    def begun(
        self, own: Float[Tensor, "r c m w"], shared: Float[Tensor, "r k w"], cos: Tensor, sin: Tensor,
        cache: KeyValues | None, skip: int = 0,
    ) -> Float[Tensor, "n l w"]:  # fmt: skip
        """`attended` for r problems' c candidates, whose frame is m tokens of their own and k that a problem's
        candidates share: what the shared ones alone say is computed once a problem. [r c, m + k - skip, w]"""
        number = own.shape[2]
        mine = self.attn.project(self.norm1(own.flatten(0, 1)), cos[:number], sin[:number])
        theirs = self.attn.project(self.norm1(shared), cos[number:], sin[number:])
        turned, value = (
            beside(part.unflatten(0, own.shape[:2]), common) for part, common in zip(mine, theirs, strict=True)
        )
        return self.attn.proj.onto(beside(own, shared)[:, skip:], self.attn.mix(turned, value, None, cache, skip))

    def widened(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The second half of the block."""
        return self.mlp.onto(x, self.norm2(x))

    def recomputed(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KeyValues | None,
        condition: Tensor | None, skip: int = 0,
    ) -> Tensor:  # fmt: skip
        """`forward`, keeping its input alone for the way back; with a cache, which is written to once, that of the
        second half, where most of the memory is."""
        if cache is None:
            whole: Tensor = checkpoint(self, x, cos, sin, mask, None, condition, skip, use_reentrant=False)
            return whole
        return self.widened_again(self.attended(x, cos, sin, mask, cache, condition, skip), condition)

    def widened_again(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """`widened`, keeping its input alone for the way back."""
        half: Tensor = checkpoint(self.widened, x, condition, use_reentrant=False)
        return half


def beside(own: Float[Tensor, "r c m *rest"], shared: Float[Tensor, "r k *rest"]) -> Float[Tensor, "n l *rest"]:
    """Each candidate's own tokens, then those that its problem's candidates share: [r c, m + k, ...]."""
    return torch.cat((own, shared[:, None].expand(-1, own.shape[1], *shared.shape[1:])), dim=2).flatten(0, 1)


class AdaptiveBlock(Block):
    """A block whose frames' condition (action and state) scales, shifts and gates what it does: adaptive layer norm
    that begins as the identity (adaLN-Zero: Peebles & Xie 2023, arXiv:2212.09748, section 3.2)."""

    def __init__(self, width: int, heads: int, hidden: int, activation: str, eps: float) -> None:
        super().__init__(width, heads, hidden, activation, eps)
        self.norm1 = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.modulation = Linear(width, 6 * width)

    def reset_parameters(self, number: int) -> None:
        """Begin as the identity: nothing is added before the modulation has learned to."""
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def prepare(self) -> None:
        super().prepare()
        self.modulation.prepare()

    def attended(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KeyValues | None,
        condition: Tensor | None, skip: int = 0,
    ) -> Tensor:  # fmt: skip
        assert not skip, "without tokens for actions and states there is nothing to skip"
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
