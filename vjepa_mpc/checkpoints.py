"""Reading checkpoints in the layout facebookresearch/vjepa2 publishes.

A `.pt` file holds a dict with some of `encoder`, `target_encoder`, `predictor` (tensors whose names carry
`module.` and `backbone.` prefixes) beside optimiser state, which is never read from disk: files are mapped,
not loaded (the public action-conditioned one is 11.8 GB). No code in a file is ever run.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.predictor import ActionConditionedPredictor, PredictorConfig

if TYPE_CHECKING:
    from transformers import VJEPA2Config, VJEPA2Model

EncoderKey = Literal["encoder", "target_encoder"]
_PARTS = ("encoder", "target_encoder", "predictor")
_PREFIXES = ("module.", "backbone.")
POSITIONS = "pos_embed"
"""A table that released encoders carry and V-JEPA 2, whose positions are rotary, never reads."""


@dataclass(frozen=True)
class MetaCheckpoint:
    """What a file holds: its `parts` (prefix-free name -> mapped tensor) and the names of all `others`."""

    path: Path
    parts: dict[str, dict[str, Tensor]]
    others: tuple[str, ...]

    @property
    def action_conditioned(self) -> bool:
        """Whether its predictor is V-JEPA 2-AC's, and not the one that fills masks in pretraining."""
        return "action_encoder.weight" in self.parts.get("predictor", {})

    def part(self, key: str) -> dict[str, Tensor]:
        """One part; `InputError` with the names of those there are."""
        if key not in self.parts:
            raise InputError(f"{self.path} has no {key!r}; it has {', '.join(self.parts)}.")
        return self.parts[key]


def read_meta_checkpoint(path: Path | str) -> dict[str, dict[str, Tensor]]:
    """The parts in a checkpoint among `encoder`, `target_encoder`, `predictor`: prefix-free name -> tensor.

    See `open_checkpoint`."""
    return open_checkpoint(path).parts


def open_checkpoint(path: Path | str) -> MetaCheckpoint:
    """A checkpoint in Meta's layout, mapped.

    Tensors are mapped from the file: keep it in place while they are used. Raises `InputError` for a file
    that is missing, truncated, not a PyTorch archive, holds none of the parts, tensors larger than itself,
    compressed entries (PyTorch writes none, and they could unpack to any size), or anything but plain tensors
    and numbers (such a file could run code when unpickled; it is refused unread).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give the path of a V-JEPA 2 .pt checkpoint.")
    _refuse_packed(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors and numbers and was not opened, because that could run code; "
            "save its state dicts alone with torch.save."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not a whole PyTorch checkpoint: {_what_is_wrong(path, error)}") from error
    parts = {name: content[name] for name in _PARTS if name in content} if isinstance(content, dict) else {}
    if not parts:
        raise InputError(f"{path} holds none of {', '.join(_PARTS)}; give a checkpoint in V-JEPA 2's layout.")
    others = tuple(str(name) for name in content if name not in parts)
    return MetaCheckpoint(path, {name: _tensors(path, name, part) for name, part in parts.items()}, others)


def predictor_from_checkpoint(
    path: Path | str,
    *,
    grid: tuple[int, int],
    heads: int,
    max_frames: int,
    train_grid: tuple[int, int] | None = None,
    use_extrinsics: bool = False,
    activation: Literal["gelu", "gelu_tanh"] = "gelu",
) -> ActionConditionedPredictor:
    """The action-conditioned predictor in a checkpoint; sizes come from the tensors, the rest from you.

    `grid` is (height, width) in patches; see `PredictorConfig` for the others. V-JEPA 2-AC's own: grid
    (16, 16), 16 heads, 8 frames. Raises `InputError` naming what is missing, left over or misshapen.
    """
    tensors = open_checkpoint(path).part("predictor")
    config = predictor_config(
        path, tensors, grid=grid, heads=heads, max_frames=max_frames, train_grid=train_grid,
        use_extrinsics=use_extrinsics, activation=activation,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced: leave no trace of drawing them
        predictor = ActionConditionedPredictor(config)
    _load(predictor, tensors, f"the predictor in {path}")
    return predictor


def predictor_config(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    *,
    grid: tuple[int, int],
    heads: int,
    max_frames: int,
    train_grid: tuple[int, int] | None = None,
    use_extrinsics: bool = False,
    activation: Literal["gelu", "gelu_tanh"] = "gelu",
) -> PredictorConfig:
    """The configuration that predictor tensors of `path` fit; see `predictor_from_checkpoint`."""
    width, latent_dim = _shape(path, tensors, "predictor_embed.weight")
    return PredictorConfig(
        grid_height=grid[0],
        grid_width=grid[1],
        latent_dim=latent_dim,
        width=width,
        depth=_depth(tensors, "predictor_blocks."),
        heads=heads,
        max_frames=max_frames,
        mlp_ratio=_ratio(width, _shape(path, tensors, "predictor_blocks.0.mlp.fc1.weight")[0]),
        action_dim=_shape(path, tensors, "action_encoder.weight")[1],
        state_dim=_shape(path, tensors, "state_encoder.weight")[1],
        extrinsics_dim=_shape(path, tensors, "extrinsics_encoder.weight")[1],
        use_extrinsics=use_extrinsics,
        train_grid=train_grid,
        activation=activation,
    )


def encoder_from_checkpoint(
    path: Path | str,
    key: EncoderKey = "target_encoder",
    *,
    heads: int,
    image_size: int,
    frames_per_clip: int = 64,
) -> VJEPA2Model:
    """An encoder in a checkpoint as Hugging Face's `VJEPA2Model`, without the mask predictor's blocks.

    `target_encoder` is the averaged (EMA) one. `heads` and `image_size` (pixels, square) cannot be read off
    the tensors: ViT-L 16, ViT-H 16, ViT-g 22 heads; 256 pixels for V-JEPA 2-AC. Its features still lack the
    parameter-free layer norm. Raises `InputError` naming what is missing, left over or misshapen.
    """
    from transformers import VJEPA2Model

    tensors = open_checkpoint(path).part(key)
    config = encoder_config(path, tensors, heads=heads, image_size=image_size, frames_per_clip=frames_per_clip)
    with torch.random.fork_rng(devices=[]):
        model = VJEPA2Model(config).eval()
    _load(model.encoder, hugging_face_names(tensors), f"the {key} in {path}")
    return model


def encoder_config(
    path: Path | str, tensors: Mapping[str, Tensor], *, heads: int, image_size: int, frames_per_clip: int = 64
) -> VJEPA2Config:
    """Hugging Face's configuration that encoder tensors of `path` fit; see `encoder_from_checkpoint`."""
    from transformers import VJEPA2Config

    width, channels, tubelet, patch, _ = _shape(path, tensors, "patch_embed.proj.weight", 5)
    if width % heads:
        raise InputError(f"The encoder in {path} is {width} wide, which {heads} heads do not divide; give its own.")
    if image_size < patch or image_size % patch:
        raise InputError(f"Pictures of {image_size} pixels do not divide into this encoder's patches of {patch}.")
    table = tensors.get(POSITIONS)
    if table is not None and (table.dim() != 3 or table.shape[1] % (image_size // patch) ** 2):
        raise InputError(
            f"{path} has positions of shape {tuple(table.shape)}, which no clip of {image_size} pixels has: give the "
            "size it was trained at; V-JEPA 1 (224 pixels, positions that are added) cannot be converted."
        )
    return VJEPA2Config(
        patch_size=patch,
        crop_size=image_size,
        frames_per_clip=frames_per_clip,
        tubelet_size=tubelet,
        hidden_size=width,
        in_chans=channels,
        num_attention_heads=heads,
        num_hidden_layers=_depth(tensors, "blocks."),
        mlp_ratio=_ratio(width, _shape(path, tensors, "blocks.0.mlp.fc1.weight")[0]),
        layer_norm_eps=1e-6,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        pred_num_hidden_layers=0,
    )


def hugging_face_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta's encoder tensors under the names of `VJEPA2Model.encoder`; unknown names stay, to be reported.

    The unused table of positions is left out.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == POSITIONS:
            continue
        head, _, tail = name.partition(".")
        if head == "patch_embed":
            renamed[f"embeddings.patch_embeddings.{tail}"] = tensor
        elif head == "norm":
            renamed[f"layernorm.{tail}"] = tensor
        elif head == "blocks" and ".attn.qkv." in tail:
            layer, _, kind = tail.partition(".attn.qkv.")
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"layer.{layer}.attention.{part}.{kind}"] = rows
        elif head == "blocks":
            renamed[f"layer.{tail.replace('.attn.', '.attention.')}"] = tensor
        else:
            renamed[name] = tensor
    return renamed


def _refuse_packed(path: Path) -> None:
    """`InputError` for an archive that takes more room unpacked than on disk, before anything in it is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # an old format, or no archive at all: for `torch.load` to say
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise InputError(
            f"{path} holds compressed or overlapping entries, which PyTorch never writes and which could unpack to any "
            "size; it was not opened. Save its state dicts again with torch.save."
        )


def _what_is_wrong(path: Path, error: Exception) -> str:
    """The end of a sentence on a file that PyTorch does not open, in words of what was given instead of PyTorch's own
    (which speak of memory maps)."""
    with path.open("rb") as stream:
        start = stream.read(4)
    if not start:
        return "it is empty; download it again."
    if start != b"PK\x03\x04":
        return "it is no archive as torch.save has written since PyTorch 1.6; give a .pt file of V-JEPA 2 or 2-AC."
    if not zipfile.is_zipfile(path):
        return "it begins like one and breaks off; download it again."
    return f"{first_line(error)}; download or save it again."


def _tensors(path: Path, name: str, part: object) -> dict[str, Tensor]:
    if not isinstance(part, Mapping) or not all(isinstance(value, Tensor) for value in part.values()):
        raise InputError(f"The {name!r} in {path} is not a dict of tensors; give a checkpoint in V-JEPA 2's layout.")
    tensors: dict[str, Tensor] = {}
    for key, value in part.items():
        short = str(key)
        while short.startswith(_PREFIXES):
            short = short.partition(".")[2]
        if value.numel() * value.element_size() > path.stat().st_size:
            raise InputError(f"{short} of the {name!r} in {path} claims to be larger than the file; it is not genuine.")
        tensors[short] = value
    return tensors


def _shape(path: Path | str, tensors: Mapping[str, Tensor], name: str, dimensions: int = 2) -> tuple[int, ...]:
    if name not in tensors or tensors[name].dim() != dimensions:
        raise InputError(f"{path} has no {name} of {dimensions} dimensions; it is not of the kind asked for.")
    return tuple(tensors[name].shape)


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered blocks there are: one more than the highest number."""
    numbers = (name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix))
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


def _ratio(width: int, hidden: int) -> float:
    """An MLP ratio for which int(width * ratio) is `hidden`, whatever the rounding (ViT-g: 1408 -> 6144)."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _load(module: torch.nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy `tensors` into `module`; refuse any difference of names or shapes."""
    check_names(module.state_dict(), tensors, what)
    module.load_state_dict(dict(tensors))


def check_names(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse `tensors` whose names or shapes differ from those of `wanted`, naming what is missing or left over."""
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        raise InputError(f"The tensors of {what} do not fit: missing {_few(missing)}, left over {_few(extra)}.")
    for name, tensor in wanted.items():
        if tensor.shape != tensors[name].shape:
            raise InputError(
                f"{name} of {what} is {tuple(tensors[name].shape)} and should be {tuple(tensor.shape)}; "
                "check the sizes it was asked for."
            )


def _few(names: list[str]) -> str:
    return f"{names[:8]}{f' and {len(names) - 8} more' if len(names) > 8 else ''}" if names else "none"
