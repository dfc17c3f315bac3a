"""The frozen video encoder: a Hugging Face `VJEPA2Model`, loaded, run on single frames or kept patches.

`run_layers` evaluates HF's own layers (its weights, its positions) with the rotary tables built once per
call rather than once per layer and projection; tests hold it equal to HF's forward. Hugging Face's
`context_mask` only picks from the OUTPUT of an encoder that saw everything; here the patches that are not
in `ids` are dropped before the first layer, so nothing of them can leak.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vjepa_mpc.attention import attend
from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.rotary import rotate

if TYPE_CHECKING:
    from transformers import VJEPA2Config, VJEPA2Model

LAYER_NORM_EPS = 1e-5
"""Of the parameter-free layer norm on encoder outputs (V-JEPA 2-AC, `app/vjepa_droid/train.py`)."""


def encoder_grid(config: VJEPA2Config) -> int:
    """Patches along one side of the (square) picture."""
    patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    return config.crop_size // patch


def build_encoder(config: VJEPA2Config) -> VJEPA2Model:
    """An encoder with fresh weights from torch's global generator (seed it inside `torch.random.fork_rng`)."""
    from transformers import VJEPA2Model

    return VJEPA2Model(config)


def load_encoder(source: str | Path) -> VJEPA2Model:
    """Load a `VJEPA2Model` folder or Hugging Face id in float32, evaluation mode, gradients off.

    Only safetensors are read. Raises `InputError` when there is no such model, its weights are missing or
    damaged, or it is of another kind.
    """
    from transformers import VJEPA2Model

    source = str(source)
    config_file = Path(source) / "config.json"
    if Path(source).exists() and not config_file.is_file():
        raise InputError(f"{source} has no config.json: give a folder that save_pretrained wrote, or train one.")
    here = Path(source).parent
    if not Path(source).exists() and (source.count("/") != 1 or source.startswith((".", "~")) or here.exists()):
        raise InputError(f"{source} does not exist; give an encoder's folder or a Hugging Face id (owner/name).")
    try:
        with without_bars() if config_file.is_file() else nullcontext():
            loaded: Any = VJEPA2Model.from_pretrained(
                source, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
    except Exception as error:  # transformers raises a dozen kinds for files that cannot be read
        raise InputError(f"No encoder could be loaded from {source!r}: {first_line(error)}.") from error
    model, report = loaded
    missing = [key for key in report["missing_keys"] if not key.startswith("predictor.")]
    if missing:
        raise InputError(f"{source!r} lacks encoder weights ({missing[0]} and {len(missing) - 1} more).")
    with torch.no_grad():
        for key in report["missing_keys"]:  # of the mask predictor, not used here: fixed, for the hash is a key
            model.get_parameter(key).zero_()
    return freeze(model)


@contextmanager
def without_bars() -> Iterator[None]:
    """Transformers draws a bar for every file it reads or writes, also in milliseconds; kept for downloads only."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def freeze(model: VJEPA2Model) -> VJEPA2Model:
    """Evaluation mode, no gradients into its weights."""
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers: equal only for equal weights."""
    return tensors_hash(module.state_dict())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """The same of tensors by their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def rotary_tables(
    ids: Int[Tensor, "#b n"], grid: int, head_dim: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "#b n 1 h"], Float[Tensor, "#b n 1 h"]]:
    """Cosine and signed sine, for `rotary.rotate`, of tokens whose flat positions (frame, row, column of a
    square `grid`) are `ids`.

    Each axis turns `2*((head_dim//3)//2)` dimensions with TILED frequencies over interleaved pairs: the
    released weights depend on it. What is left of `head_dim` is not turned (cosine 1, sine 0).
    """
    per_axis = 2 * ((head_dim // 3) // 2)
    places = torch.stack((ids // (grid * grid), ids % (grid * grid) // grid, ids % grid), dim=-1)
    omega = torch.arange(per_axis // 2, dtype=torch.float32, device=ids.device) / (per_axis / 2)
    frequency = (1.0 / 10000**omega).repeat(2)
    angle = (places[..., None].float() * frequency).flatten(-2)
    angle = F.pad(angle, (0, head_dim - 3 * per_axis))[:, :, None]
    sine = angle.sin()
    sine[..., 0::2].neg_()
    return angle.cos().to(dtype), sine.to(dtype)


def run_layers(
    layers: nn.ModuleList, tokens: Float[Tensor, "b n d"], ids: Int[Tensor, "#b n"], grid: int
) -> Float[Tensor, "b n d"]:
    """Evaluate `VJEPA2Layer`s on tokens at flat positions `ids`; every token attends to every other."""
    attention: Any = layers[0].attention
    heads, head_dim = attention.num_attention_heads, attention.attention_head_size
    tables: tuple[Tensor, Tensor] | None = None
    layer: Any
    for layer in layers:
        block = layer.attention
        parts = (block.query, block.key, block.value)
        weight = torch.cat([part.weight for part in parts])
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])  # `qkv_bias` of its config
        qkv = F.linear(layer.norm1(tokens), weight, bias).unflatten(-1, (3 * heads, head_dim))
        if tables is None:
            tables = rotary_tables(ids, grid, head_dim, qkv.dtype)
        turned = rotate(qkv[:, :, : 2 * heads], *tables)
        mixed = attend(turned[:, :, :heads], turned[:, :, heads:], qkv[:, :, 2 * heads :])
        tokens = tokens + block.proj(mixed.flatten(2))
        tokens = tokens + layer.mlp(layer.norm2(tokens))
    return tokens


def embed_patches(
    model: VJEPA2Model, clips: Float[Tensor, "b t 3 s s"], ids: Int[Tensor, "b k"] | None
) -> Float[Tensor, "b k d"]:
    """The encoder's patch embedding at positions `ids` (None: all), as a matrix product.

    Equal to its strided 3-D convolution, whose backward pass is slow on CPUs and cannot skip patches.
    """
    projection: Any = model.encoder.embeddings.patch_embeddings.proj
    time, height, width = projection.kernel_size
    batch, frames, channels, rows, columns = clips.shape
    patches = clips.view(
        batch, frames // time, time, channels, rows // height, height, columns // width, width
    )
    patches = patches.permute(0, 1, 4, 6, 3, 2, 5, 7).reshape(batch, -1, channels * time * height * width)
    if ids is not None:
        patches = torch.gather(patches, 1, ids[..., None].expand(-1, -1, patches.shape[-1]))
    return F.linear(patches, projection.weight.flatten(1), projection.bias)


def encode_clips(
    model: VJEPA2Model, clips: Float[Tensor, "b t 3 s s"], ids: Int[Tensor, "b k"] | None = None
) -> Float[Tensor, "b k d"]:
    """Encoder tokens of clips (T a multiple of the tubelet), after the encoder's own final layer norm.

    With `ids`, only those patches enter the encoder: what comes out is a function of them alone. Raises
    `InputError` for another picture size than the model's, which HF would run with wrong positions.
    """
    config = model.config
    if clips.shape[-1] != config.crop_size or clips.shape[-2] != config.crop_size:
        raise InputError(
            f"The encoder takes {config.crop_size}x{config.crop_size} pictures, got "
            f"{clips.shape[-2]}x{clips.shape[-1]}; prepare them with its ImagePreparation."
        )
    tokens = embed_patches(model, clips, ids)
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None] if ids is None else ids
    tokens = run_layers(model.encoder.layer, tokens, positions, encoder_grid(config))
    return model.encoder.layernorm(tokens)


def encode_frames(model: VJEPA2Model, frames: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n p d"]:
    """Tokens of single frames, each doubled to one tubelet as V-JEPA 2-AC does."""
    return encode_clips(model, frames[:, None].repeat(1, model.config.tubelet_size, 1, 1, 1))


class VJepaFrames(nn.Module):
    """A `VJEPA2Model` as a world model uses it: single prepared pictures to tokens."""

    def __init__(self, model: VJEPA2Model) -> None:
        super().__init__()
        self.model = model

    @property
    def grid(self) -> int:
        return encoder_grid(self.model.config)

    @property
    def dim(self) -> int:
        return self.model.config.hidden_size

    @property
    def size(self) -> int:
        return self.model.config.crop_size

    def describe(self) -> dict[str, Any]:
        """Hugging Face's configuration as plain values."""
        return self.model.config.to_diff_dict()

    def forward(self, pixels: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n p d"]:
        return encode_frames(self.model, pixels)


class PixelPatches(nn.Module):
    """No encoder at all: a patch's prepared pixels are its tokens. The floor that an encoder must beat."""

    model_type = "pixel_patches"

    def __init__(self, crop_size: int, patch_size: int) -> None:
        super().__init__()
        if patch_size < 1 or crop_size % patch_size:
            raise InputError(f"Pictures of {crop_size} pixels do not divide into patches of {patch_size}.")
        self.size, self.patch_size = crop_size, patch_size

    @property
    def grid(self) -> int:
        return self.size // self.patch_size

    @property
    def dim(self) -> int:
        return 3 * self.patch_size**2

    def describe(self) -> dict[str, Any]:
        return {"model_type": self.model_type, "crop_size": self.size, "patch_size": self.patch_size}

    def forward(self, pixels: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n p d"]:
        if pixels.shape[-2:] != (self.size, self.size):
            raise InputError(f"Pictures must be {self.size}x{self.size}, got {tuple(pixels.shape[-2:])}.")
        return F.unfold(pixels, self.patch_size, stride=self.patch_size).transpose(1, 2)


FrameEncoder = VJepaFrames | PixelPatches


def frame_encoder(values: Mapping[str, Any]) -> FrameEncoder:
    """The encoder that `describe()` gave `values` for, with fresh weights, frozen."""
    if values.get("model_type") == PixelPatches.model_type:
        return PixelPatches(int(values["crop_size"]), int(values["patch_size"]))
    from transformers import VJEPA2Config, VJEPA2Model

    try:
        config = VJEPA2Config(**values)
    except Exception as error:  # Hugging Face's own validation, in several kinds
        reason = " ".join(str(error).split())
        raise InputError(f"The encoder's configuration cannot be used ({reason}); restore config.json.") from error
    return VJepaFrames(freeze(VJEPA2Model(config)))
