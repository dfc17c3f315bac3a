"""Checkpoints in Meta's published layout, made from small Hugging Face encoders with fresh weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import VJEPA2Config, VJEPA2Model

SIZE, PATCH = 32, 8


def small_encoder(seed: int = 0, **changes: Any) -> VJEPA2Model:
    """A `VJEPA2Model` whose attention matters (Hugging Face starts near zero)."""
    fields = {
        "crop_size": SIZE, "patch_size": PATCH, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "mlp_ratio": 2.5, "layer_norm_eps": 1e-6, "pred_num_hidden_layers": 0, "pred_hidden_size": 24,
        "pred_num_attention_heads": 2, "pred_num_mask_tokens": 1,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VJEPA2Model(VJEPA2Config(**{**fields, **changes})).eval()
        with torch.no_grad():
            for parameter in model.encoder.parameters():
                parameter.normal_(std=0.3)
    return model


def metas_names(model: VJEPA2Model, prefix: str = "module.backbone.") -> dict[str, Tensor]:
    """The encoder's tensors under the names of Meta's files: one fused qkv, blocks, patch_embed, norm."""
    tensors = {name: value.detach().clone() for name, value in model.encoder.state_dict().items()}
    renamed: dict[str, Tensor] = {}
    for name in list(tensors):
        if ".attention." in name:
            layer, _, part = name.removeprefix("layer.").partition(".attention.")
            which, _, kind = part.partition(".")
            if which == "proj":
                renamed[f"blocks.{layer}.attn.proj.{kind}"] = tensors[name]
            elif which == "query":
                rows = [tensors[f"layer.{layer}.attention.{one}.{kind}"] for one in ("query", "key", "value")]
                renamed[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(rows)
        elif name.startswith("layer."):
            renamed[f"blocks.{name.removeprefix('layer.')}"] = tensors[name]
        elif name.startswith("layernorm."):
            renamed[f"norm.{name.removeprefix('layernorm.')}"] = tensors[name]
        else:
            renamed[name.replace("embeddings.patch_embeddings", "patch_embed")] = tensors[name]
    return {prefix + name: value for name, value in renamed.items()}


def save_encoder_file(path: Path, online: VJEPA2Model, averaged: VJEPA2Model | None = None, **extra: Any) -> Path:
    """A file as released encoders are: two encoders, the mask predictor, optimiser state and counters."""
    content: dict[str, Any] = {
        "encoder": metas_names(online),
        "predictor": {"module.backbone.mask_tokens.0": torch.zeros(1, 1, 8)},
        "opt": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        "scaler": None, "epoch": 3, "loss": 0.5, "batch_size": 8, "world_size": 1, "lr": 1e-4,
    }  # fmt: skip
    if averaged is not None:
        content["target_encoder"] = metas_names(averaged)
    torch.save({**content, **extra}, path)
    return path
