"""V-JEPA 2-AC's predictor as the paper and FACTS of its checkpoints describe it, written for reading and not for speed.

No cache, no fused kernel, a dense mask, one head after the other. It shares nothing with `vjepa_mpc.predictor` but
the names of the weights (Assran et al. 2025, arXiv:2506.09985, section 3.1 and appendix).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vjepa_mpc.predictor import PredictorConfig


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    normed = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return normed if weight is None or bias is None else normed * weight + bias


def turned(head: Tensor, positions: list[tuple[float, float, float]]) -> Tensor:
    """One head's queries or keys [b, tokens, d], each pair of dimensions (2i, 2i + 1) of each of three axes turned by
    the token's position; frequencies run through the axis twice."""
    size = 2 * ((head.shape[-1] // 3) // 2)
    where = torch.tensor(positions, dtype=head.dtype)
    out = head.clone()
    for axis in range(3):
        for j in range(size):
            angle = where[:, axis] * 10000.0 ** (-(j % (size // 2)) / (size / 2))
            here = axis * size + j
            other, sign = (here + 1, -1.0) if j % 2 == 0 else (here - 1, 1.0)
            out[..., here] = head[..., here] * angle.cos() + sign * head[..., other] * angle.sin()
    return out


def predict(
    weights: Mapping[str, Tensor], config: PredictorConfig, latents: Tensor, actions: Tensor, states: Tensor
) -> Tensor:
    """Predictions of frames 1..t [b, t, p, d] from frames 0..t-1."""
    _, frames, patches, _ = latents.shape
    rows, columns = config.train_grid or (config.grid_height, config.grid_width)
    place = [
        (i * rows / config.grid_height, j * columns / config.grid_width)
        for i in range(config.grid_height) for j in range(config.grid_width)
    ]  # fmt: skip
    tokens, positions, owner = [], [], []
    for t in range(frames):
        tokens.append(actions[:, t] @ weights["action_encoder.weight"].T + weights["action_encoder.bias"])
        tokens.append(states[:, t] @ weights["state_encoder.weight"].T + weights["state_encoder.bias"])
        embedded = latents[:, t] @ weights["predictor_embed.weight"].T + weights["predictor_embed.bias"]
        tokens += list(embedded.unbind(dim=1))
        positions += [(t, 0.0, 0.0), (t, 0.0, 0.0), *((t, *where) for where in place)]
        owner += [t] * (patches + 2)
    x = torch.stack(tokens, dim=1)
    seen = torch.tensor([[theirs <= mine for theirs in owner] for mine in owner])
    for layer in range(config.depth):
        part = {
            name.removeprefix(f"predictor_blocks.{layer}."): value
            for name, value in weights.items() if name.startswith(f"predictor_blocks.{layer}.")
        }  # fmt: skip
        normed = layer_norm(x, part["norm1.weight"], part["norm1.bias"], config.eps)
        queries, keys, values = (normed @ part["attn.qkv.weight"].T + part["attn.qkv.bias"]).chunk(3, dim=-1)
        size, heads = config.width // config.heads, []
        for head in range(config.heads):
            own = slice(head * size, (head + 1) * size)
            query, key = turned(queries[..., own], positions), turned(keys[..., own], positions)
            scores = (query @ key.mT / math.sqrt(size)).masked_fill(~seen, -torch.inf)
            heads.append(scores.softmax(dim=-1) @ values[..., own])
        x = x + torch.cat(heads, dim=-1) @ part["attn.proj.weight"].T + part["attn.proj.bias"]
        hidden = layer_norm(x, part["norm2.weight"], part["norm2.bias"], config.eps) @ part["mlp.fc1.weight"].T
        hidden = hidden + part["mlp.fc1.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + hidden @ part["mlp.fc2.weight"].T + part["mlp.fc2.bias"]
    x = x.unflatten(1, (frames, patches + 2))[:, :, 2:]
    x = layer_norm(x, weights["predictor_norm.weight"], weights["predictor_norm.bias"], config.eps)
    return x @ weights["predictor_proj.weight"].T + weights["predictor_proj.bias"]


def imagine(
    weights: Mapping[str, Tensor],
    config: PredictorConfig,
    latents: Tensor,
    states: Tensor,
    past: Tensor,
    actions: Tensor,
    step: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Frames [b, h, p, d] and states [b, h, s] after a history of k frames and k - 1 `past` actions: the whole
    trajectory is run again for every step, each prediction layer-normed, states integrated by `step`."""
    known = latents.shape[1]
    for t in range(actions.shape[1]):
        past = torch.cat((past, actions[:, t : t + 1]), dim=1)
        following = layer_norm(predict(weights, config, latents, past, states)[:, -1:])
        latents = torch.cat((latents, following), dim=1)
        states = torch.cat((states, step(states[:, -1], actions[:, t])[:, None]), dim=1)
    return latents[:, known:], states[:, known:]
