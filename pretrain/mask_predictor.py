"""What masked prediction has in common: context encoder, EMA target, and the narrow predictor between them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vjepa_mpc.encoder import LAYER_NORM_EPS, build_encoder, encoder_grid, run_layers
from vjepa_mpc.pretrain.objective import EncoderModules

if TYPE_CHECKING:
    from transformers import VJEPA2Config, VJEPA2Model


class MaskPredictor(nn.Module):
    """Narrow transformer that predicts target latents, at kept and masked positions, from context tokens."""

    def __init__(self, config: VJEPA2Config, width: int, depth: int, heads: int) -> None:
        from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Layer

        super().__init__()
        self.grid = encoder_grid(config)
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(
            VJEPA2Layer(config, hidden_size=width, num_attention_heads=heads) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.project = nn.Linear(width, config.hidden_size)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def tokens(
        self, context: Float[Tensor, "b k d"], positions: Int[Tensor, "b k"], targets: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b n w"]:
        """What the layers make of the kept tokens at `positions`, then of the hidden `targets`: n = k + m."""
        tokens = self.embed(context)
        asked = self.mask_token.to(tokens.dtype).expand(*targets.shape, -1)
        ids = torch.cat([positions, targets], dim=1)
        return run_layers(self.layers, torch.cat([tokens, asked], dim=1), ids, self.grid)

    def read(self, tokens: Float[Tensor, "b n w"]) -> Float[Tensor, "b n d"]:
        """The latents that tokens stand for."""
        return self.project(self.norm(tokens))

    def forward(
        self, context: Float[Tensor, "b k d"], positions: Int[Tensor, "b k"], targets: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b m d"]:
        """Predictions at the hidden positions."""
        return self.read(self.tokens(context, positions, targets)[:, positions.shape[1] :])


class MaskedModules(EncoderModules):
    """Context encoder, its moving average (the target), the mask predictor, and perhaps inverse dynamics."""

    def __init__(
        self, config: VJEPA2Config, predictor: tuple[int, int, int], action_scale: Float[Tensor, "a"] | None = None
    ) -> None:
        """`predictor`: its width, depth and heads."""
        super().__init__()
        self.encoder: VJEPA2Model = build_encoder(config)
        self.target: VJEPA2Model = copy.deepcopy(self.encoder)
        for parameter in self.target.parameters():
            parameter.requires_grad_(False)
        self.predictor = MaskPredictor(config, *predictor)
        self.inverse = self.inverse_for(config, action_scale)


def normed(tokens: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """What is predicted: tokens after a layer norm without parameters (V-JEPA; I-JEPA's code)."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:], eps=LAYER_NORM_EPS)


def at(tokens: Float[Tensor, "b all d"], ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
    """The tokens at positions `ids`."""
    return torch.gather(tokens, 1, ids[..., None].expand(-1, -1, tokens.shape[-1]))
