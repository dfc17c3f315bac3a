"""The predictor's matrix products: `nn.Linear`, with weights that a CPU's matrix units find laid out for them.

A plain product on CPUs copies the bias into its output, brings the weights into the matrix units' order on every
call, and leaves what follows (GELU, the residual sum) to passes of their own over memory. `prepare` keeps the weights
in oneDNN's order from the first call on, and lets it do both while the product is still in registers; in bfloat16 GELU
then sees the product before it is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

_TOKENS = 2048  # for how many rows oneDNN is asked to choose an order; it serves any number


@dataclass(frozen=True)
class _Laid:
    """Weights in oneDNN's order, the bias beside them, and what they were made from: held, so that no other weights
    can come to lie at the same address."""

    weight: Tensor
    bias: Tensor | None
    held: tuple[Tensor, ...]
    source: tuple[tuple[int, int], ...]


class Linear(nn.Linear):
    """`nn.Linear`; see `prepare`. What it computes is the same but for rounding."""

    _prepared: bool = False
    _laid: _Laid | None = None
    _rows: Tensor | None = None

    def prepare(self, rows: Int[Tensor, "outputs"] | None = None) -> None:
        """Be fast where no gradients are wanted, at the price of holding the weights a second time.

        Weights that change are laid out anew; a change through `.data` is seen by nobody: prepare again after one.
        `rows`: give the outputs in this order, with gradients as without.
        """
        self._prepared, self._laid, self._rows = True, None, rows

    def forward(self, x: Float[Tensor, "*batch i"]) -> Float[Tensor, "*batch o"]:
        laid = self._ready(x)
        if laid is None:
            return F.linear(x, *self._ordered())
        product: Tensor = _onednn()._linear_pointwise(x, laid.weight, laid.bias, "none", [], "")
        return product

    def gelu(self, x: Float[Tensor, "*batch i"], approximate: str) -> Float[Tensor, "*batch o"]:
        """GELU of the product."""
        laid = self._ready(x)
        if laid is None:
            return F.gelu(F.linear(x, *self._ordered()), approximate=approximate)
        product: Tensor = _onednn()._linear_pointwise(x, laid.weight, laid.bias, "gelu", [], approximate)
        return product

    def onto(self, sum_: Float[Tensor, "*batch o"], x: Float[Tensor, "*batch i"]) -> Float[Tensor, "*batch o"]:
        """`sum_` plus the product."""
        laid = self._ready(x)
        if laid is None:
            return sum_ + F.linear(x, *self._ordered())
        total: Tensor = _onednn()._linear_pointwise.binary(x, sum_.contiguous(), laid.weight, laid.bias, "add")
        return total

    def _ordered(self) -> tuple[Tensor, Tensor | None]:
        if self._rows is None:
            return self.weight, self.bias
        return self.weight[self._rows], None if self.bias is None else self.bias[self._rows]

    def _ready(self, x: Tensor) -> _Laid | None:
        """The laid out weights where they can serve, made when they are first wanted or the weights have changed."""
        if not self._prepared or torch.is_grad_enabled() or x.dtype != self.weight.dtype or not _served(x):
            return None
        parts = (self.weight,) if self.bias is None else (self.weight, self.bias)
        source = tuple((part.data_ptr(), 0 if part.is_inference() else part._version) for part in parts)
        if self._laid is None or self._laid.source != source:
            weight, bias = self._ordered()
            laid = _onednn()._reorder_linear_weight(weight.detach().contiguous(), _TOKENS)
            held = tuple(part.detach() for part in parts)
            self._laid = _Laid(laid, None if bias is None else bias.detach(), held, source)
        return self._laid

    def _apply(self, *given: Any, **named: Any) -> Any:
        self._laid = None  # of another type, or on another device
        return super()._apply(*given, **named)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and other processes lay out their own."""
        return {**self.__dict__, "_laid": None}


def _onednn() -> Any:
    return torch.ops.mkldnn


def has_fused_products() -> bool:
    """Whether oneDNN's fused products are in this build of torch."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _served(x: Tensor) -> bool:
    """Whether they take such numbers on this machine."""
    if x.device.type != "cpu" or not has_fused_products():
        return False
    if x.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return x.dtype == torch.float32
