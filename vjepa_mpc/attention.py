"""Attention as encoder and predictor share it: the fused kernel, except where it is the slow one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def attend(
    query: Float[Tensor, "b n heads head_dim"],
    key: Float[Tensor, "b m heads head_dim"],
    value: Float[Tensor, "b m heads head_dim"],
    mask: Tensor | None = None,
) -> Float[Tensor, "b n heads head_dim"]:
    """Scaled dot-product attention; `mask` is added to the scores."""
    # Under autocast the rotation (float32 tables) leaves queries and keys wider than the values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.is_grad_enabled()
    if not slow:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    # The fused kernel's bfloat16 backward on CPUs took 2 to 6 times as long as this at our sizes (torch 2.13).
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    if mask is not None:
        scores = scores + mask
    return (scores.float().softmax(-1).to(value.dtype) @ value).transpose(1, 2)
