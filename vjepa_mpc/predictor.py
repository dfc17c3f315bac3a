"""The action-conditioned predictor of V-JEPA 2-AC (arXiv 2506.09985): patch latents one frame ahead.

A frame's tokens are [action, state, (extrinsics), patches]; frame t's patch outputs are the prediction of
frame t + 1. Attention is block-causal: a token sees its own frame and every earlier one, whole. Parameter
names are those of Meta's published checkpoints, which load strictly.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.linear import Linear
from vjepa_mpc.predictor_blocks import AdaptiveBlock, Block, KeyValues, beside
from vjepa_mpc.rotary import half_order, rotary_tables

CONDITIONING = {"tokens": Block, "adaptive_norm": AdaptiveBlock}
ROTARY = ("tiled", "interleaved")


@dataclass(frozen=True)
class PredictorConfig:
    """Shape of a predictor. Everything it takes to build the module that a checkpoint fits into.

    `grid_height` x `grid_width` patches a frame; rotary positions are scaled to `train_grid` (height,
    width), by default the own grid. `max_frames` bounds history + horizon. `activation` is the MLP's:
    "gelu" (exact, V-JEPA 2-AC's) or "gelu_tanh". `residual`: the output is
    the change from the present frame, not the next frame itself (V-JEPA 2-AC: no). `conditioning`: actions and states
    are "tokens" beside the patches (V-JEPA 2-AC), or modulate every block ("adaptive_norm"). `rotary`: frequencies
    "tiled" over an axis as in the released weights, or "interleaved", each pair turning by one angle as meant.
    `displacements`: values of an action, for a predictor that also foretells how much of it comes to pass
    (`shortfall`); 0: it does not (V-JEPA 2-AC), and states follow from actions alone.
    """

    grid_height: int
    grid_width: int
    latent_dim: int
    width: int
    depth: int
    heads: int
    max_frames: int
    mlp_ratio: float = 4.0
    action_dim: int = 7
    state_dim: int = 7
    extrinsics_dim: int = 6
    use_extrinsics: bool = False
    train_grid: tuple[int, int] | None = None
    residual: bool = False
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    conditioning: str = "tokens"
    rotary: str = "tiled"
    displacements: int = 0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.train_grid is not None:
            object.__setattr__(self, "train_grid", tuple(self.train_grid))  # JSON gives a list
        if self.width % self.heads:
            raise InputError(f"A width of {self.width} does not divide into {self.heads} heads; change one of them.")
        if self.activation not in ("gelu", "gelu_tanh"):
            raise InputError(f"There is no activation {self.activation!r}; use 'gelu' or 'gelu_tanh'.")
        if self.conditioning not in CONDITIONING:
            raise unknown_name("conditioning", self.conditioning, CONDITIONING)
        if self.rotary not in ROTARY:
            raise unknown_name("rotary frequencies", self.rotary, ROTARY)
        if self.displacements < 0:
            raise InputError(f"A predictor foretells 0 displacements or more, not {self.displacements}.")

    @property
    def patches(self) -> int:
        """Patches of a frame."""
        return self.grid_height * self.grid_width

    @property
    def conditions(self) -> int:
        """Conditioning tokens of a frame: action, state and, if used, extrinsics; none where they modulate blocks."""
        if self.conditioning == "adaptive_norm":
            return 0
        return 3 if self.use_extrinsics else 2

    @property
    def tokens(self) -> int:
        """All tokens of a frame that blocks attend to."""
        return self.conditions + self.patches


class ActionConditionedPredictor(nn.Module):
    """Predicts the next frame's patch latents from the frames, actions and states so far.

    Runs in the type of its parameters (`predictor.to(torch.bfloat16)` is the fast form on CPUs with
    bfloat16 products); takes and returns the latents' own type. Action and state tokens are made in
    float32 at least: a bfloat16 metre has steps of millimetres. With `recompute` set, training keeps less of the
    forward pass and computes it again on the way back. `prepare` makes it fast on CPUs where no gradients are wanted.
    """

    _cos: Tensor
    _sin: Tensor

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self._prepared = False
        self._made: dict[tuple[str, int, int], tuple[Tensor, ...]] = {}
        self.predictor_embed = Linear(config.latent_dim, config.width)
        self.action_encoder = nn.Linear(config.action_dim, config.width)
        self.state_encoder = nn.Linear(config.state_dim, config.width)
        self.extrinsics_encoder = nn.Linear(config.extrinsics_dim, config.width)
        self.predictor_blocks = nn.ModuleList(
            CONDITIONING[config.conditioning](
                config.width, config.heads, int(config.width * config.mlp_ratio), config.activation, config.eps
            )
            for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.predictor_proj = Linear(config.width, config.latent_dim)
        if config.displacements:
            self.displacement_head = nn.Linear(config.width, config.displacements)
        grid = (config.grid_height, config.grid_width)
        cos, sin = rotary_tables(
            frames=config.max_frames,
            grid=grid,
            train_grid=config.train_grid or grid,
            conditions=config.conditions,
            head_dim=config.width // config.heads,
            interleaved=config.rotary == "interleaved",
        )
        self.register_buffer("_cos", cos.to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("_sin", sin.to(torch.get_default_dtype()), persistent=False)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: normals of std 0.02, those into the residual stream smaller with depth."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)
        if self.config.displacements:  # at first all of an action comes to pass
            nn.init.zeros_(self.displacement_head.weight)
        blocks: list[Any] = list(self.predictor_blocks)
        for number, block in enumerate(blocks, start=1):
            block.reset_parameters(number)

    def prepare(self) -> ActionConditionedPredictor:
        """Lay the weights out for the CPU's matrix units, which then hold them a second time; the same but for
        rounding, and parameters and their names stay as they are."""
        self._prepared = True
        self._made.clear()
        block: Any
        for block in self.predictor_blocks:
            block.prepare()
        self.predictor_embed.prepare()
        self.predictor_proj.prepare()
        return self

    def first_blocks(self, count: int) -> ActionConditionedPredictor:
        """This predictor with its first `count` blocks alone, and the same weights: quicker, and rougher.

        Raises `InputError` unless that leaves some out and some in.
        """
        if not 1 <= count < self.config.depth:
            raise InputError(
                f"This predictor has {self.config.depth} blocks; a draft takes the first 1 to {self.config.depth - 1} "
                f"of them, not {count}."
            )
        short = copy.copy(self)  # its own record of modules and of what was made, the same modules
        short._modules, short._made = dict(self._modules), {}
        short.config = replace(self.config, depth=count)
        short.predictor_blocks = nn.ModuleList(list(self.predictor_blocks)[:count])
        return short

    def forward(
        self,
        latents: Float[Tensor, "b t p d"],
        actions: Float[Tensor, "b t a"],
        states: Float[Tensor, "b t s"],
        extrinsics: Float[Tensor, "b t e"] | None = None,
    ) -> Float[Tensor, "b t p d"]:
        """Predictions of frames 1..t from frames 0..t-1; entry i has seen frames 0..i and their actions.

        Raises `InputError` when the shapes do not fit the config or t exceeds its `max_frames`.
        """
        tokens = self.embed(latents, actions, states, extrinsics)
        return self.predict(self.advance(tokens), latents)

    def embed(
        self,
        latents: Float[Tensor, "b t p d"],
        actions: Float[Tensor, "b t a"],
        states: Float[Tensor, "b t s"],
        extrinsics: Float[Tensor, "b t e"] | None = None,
    ) -> Float[Tensor, "b t k w"]:
        """The input tokens of each frame, [action, state, (extrinsics), patches]; with adaptive norm the conditions
        are one token, their sum, which no block attends to."""
        self._check(latents, actions, states, extrinsics)
        dtype = self.predictor_embed.weight.dtype
        conditions = [_project(self.action_encoder, actions), _project(self.state_encoder, states)]
        if extrinsics is not None:
            conditions.append(_project(self.extrinsics_encoder, extrinsics))
        first = torch.stack(conditions, dim=2)
        if not self.config.conditions:
            first = first.sum(dim=2, keepdim=True)
        return torch.cat((first, self.predictor_embed(latents.to(dtype))), dim=2)

    def advance(
        self, tokens: Float[Tensor, "b t k w"], start: int = 0, caches: list[KeyValues] | None = None
    ) -> Float[Tensor, "b t p w"]:
        """Run the blocks over the embedded frames start..start+t-1, and return their patches; `caches` (one a block)
        hold the frames before.

        One frame at a time needs no mask: it sees everything in the cache. Several frames need the block mask
        and must come first (start = 0).
        """
        condition = None
        if not self.config.conditions:
            condition, tokens = tokens[:, :, 0], tokens[:, :, 1:]
        frames, size = tokens.shape[1], tokens.shape[2]
        assert frames == 1 or start == 0, "several frames at once must be the first ones"
        mask = self._mask(frames, tokens) if frames > 1 else None
        x = self._through(tokens.flatten(1, 2), 0, start, frames, mask, caches, condition)
        return x[:, None] if frames == 1 else x.unflatten(1, (frames, size))[:, :, self.config.conditions :]

    def begin(
        self,
        latents: Float[Tensor, "r p d"],
        actions: Float[Tensor, "r c a"],
        states: Float[Tensor, "r s"],
        extrinsics: Float[Tensor, "r e"] | None = None,
        start: int = 0,
        caches: list[KeyValues] | None = None,
    ) -> Float[Tensor, "r c p w"]:
        """`embed` and `advance` for c actions from each of r frames: what a frame's candidates share is embedded, and
        goes through what it can of the first block, once and not c times."""
        seen = None if extrinsics is None else extrinsics[:, None]
        self._check(latents[:, None], actions, states[:, None], seen)
        patches = self.predictor_embed(latents.to(self.predictor_embed.weight.dtype))
        own = _project(self.action_encoder, actions)[:, :, None]
        given = [_project(self.state_encoder, states[:, None])]
        if seen is not None:
            given.append(_project(self.extrinsics_encoder, seen))
        if self.config.conditions:
            cos, sin = self._turns(start, 1)
            first: Any = self.predictor_blocks[0]
            shared, skip = torch.cat((*given, patches), dim=1), self._skipped(0, 1)
            x = first.begun(own, shared, cos, sin, None if caches is None else caches[0], skip)
            x = (first.widened_again if self._recomputing() else first.widened)(x, None)
            x = self._through(x, 1, start, 1, None, caches, None)
        else:
            condition = torch.stack([own[:, :, 0], *(part.expand_as(own[:, :, 0]) for part in given)]).sum(0)
            x = beside(own[:, :, :0], patches)
            x = self._through(x, 0, start, 1, None, caches, condition.flatten(0, 1)[:, None])
        return x.unflatten(0, actions.shape[:2])

    def _through(
        self, x: Tensor, first: int, start: int, frames: int, mask: Tensor | None, caches: list[KeyValues] | None,
        condition: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """x through the blocks from number `first` on; of a single frame patches alone come out of the last one."""
        cos, sin = self._turns(start, frames)
        for number in range(first, self.config.depth):
            block: Any = self.predictor_blocks[number]
            run = block.recomputed if self._recomputing() else block
            cache = None if caches is None else caches[number]
            x = run(x, cos, sin, mask, cache, condition, self._skipped(number, frames))
        return x

    def _recomputing(self) -> bool:
        return self.recompute and torch.is_grad_enabled()

    def _skipped(self, number: int, frames: int) -> int:
        """How many tokens block `number` need not answer: nobody asks what became of the last one's conditions."""
        return self.config.conditions if frames == 1 and number == self.config.depth - 1 else 0

    def _turns(self, start: int, frames: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of some frames, for every head's queries and keys: [tokens, 2 heads, head_dim]; kept."""
        if ("turns", start, frames) not in self._made:
            order: Any = half_order(self._cos.shape[-1]) if self._prepared else slice(None)
            with torch.inference_mode(False):  # what is kept may be asked for with gradients later
                cos, sin = (
                    table[start : start + frames, :, order].flatten(0, 1)[:, None].repeat(1, 2 * self.config.heads, 1)
                    for table in (self._cos, self._sin)
                )
            self._made["turns", start, frames] = cos, sin
        cos, sin = self._made["turns", start, frames]
        return cos, sin

    def _mask(self, frames: int, tokens: Tensor) -> Tensor:
        """The block-causal mask of some frames, in the type and on the device of `tokens`; kept."""
        kept = self._made.get(("mask", frames, tokens.shape[2]))
        if kept is None or kept[0].dtype != tokens.dtype or kept[0].device != tokens.device:
            with torch.inference_mode(False):
                frame = torch.arange(frames, device=tokens.device).repeat_interleave(tokens.shape[2])
                mask = torch.zeros(len(frame), len(frame), dtype=tokens.dtype, device=tokens.device)
                mask.masked_fill_(frame[:, None] < frame[None], float("-inf"))
            self._made["mask", frames, tokens.shape[2]] = kept = (mask,)
        return kept[0]

    def _apply(self, *given: Any, **named: Any) -> Any:
        self._made.clear()  # of another type, or on another device
        return super()._apply(*given, **named)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}

    def predict(
        self, tokens: Float[Tensor, "*batch p w"], latents: Float[Tensor, "*#batch p d"]
    ) -> Float[Tensor, "*batch p d"]:
        """The next frame's latents from what came out of the blocks; `latents` are those of the present frame."""
        output = self.predictor_proj(self.predictor_norm(tokens)).to(latents.dtype)
        return latents + output if self.config.residual else output

    def shortfall(self, tokens: Float[Tensor, "*batch p w"]) -> Float[Tensor, "*batch a"]:
        """How far the robot will have come beyond what it was told (below: negative), in units of one control step's
        limits, from what came out of the blocks; in float32 at least. For predictors with `displacements` alone."""
        return _project(self.displacement_head, self.predictor_norm(tokens).mean(dim=-2), keep=True)

    def _check(self, latents: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None) -> None:
        config = self.config
        if latents.shape[1] > config.max_frames:
            raise InputError(
                f"{latents.shape[1]} frames were given to a predictor built for {config.max_frames}; pass fewer."
            )
        if (extrinsics is not None) != config.use_extrinsics:
            given, remedy = ("not given", "pass") if extrinsics is None else ("given", "drop")
            raise InputError(
                f"This predictor has use_extrinsics={config.use_extrinsics}, and extrinsics were {given}; "
                f"{remedy} them."
            )
        rows = (
            ("latent patches", latents.shape[2], config.patches),
            ("latent values", latents.shape[3], config.latent_dim),
            ("action values", actions.shape[2], config.action_dim),
            ("state values", states.shape[2], config.state_dim),
            (
                "extrinsic values",
                config.extrinsics_dim if extrinsics is None else extrinsics.shape[2],
                config.extrinsics_dim,
            ),
        )
        for name, size, built in rows:
            if size != built:
                raise InputError(f"The predictor was built for {built} {name}, got {size}; give it its own kind.")


def _project(layer: nn.Linear, values: Tensor, *, keep: bool = False) -> Tensor:
    """`layer(values)` computed in float32 at least, returned in the layer's type, or (`keep`) as computed."""
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    result = F.linear(values.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
    return result if keep else result.to(layer.weight.dtype)
