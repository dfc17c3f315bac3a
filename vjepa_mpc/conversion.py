"""Meta's published checkpoints as folders that everything here loads: `vjepa-mpc convert`.

An encoder's file becomes a `VJEPA2Model` folder; V-JEPA 2-AC's, which holds encoder and predictor, a world
model with its robot. Tensors go from the mapped file to the new one by one: no model is ever built in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vjepa_mpc.checkpoints import (
    POSITIONS,
    EncoderKey,
    MetaCheckpoint,
    check_names,
    encoder_config,
    hugging_face_names,
    open_checkpoint,
    predictor_config,
)
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import atomic_folder, write_json, write_text
from vjepa_mpc.core.settings import to_plain
from vjepa_mpc.encoder import encoder_grid
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.latents import LatentConfig
from vjepa_mpc.tensor_files import DTYPES, give_back, write_tensors
from vjepa_mpc.vjepa2_ac import CAMERA, CONTROL_PERIOD_S, UNCALIBRATED, franka_spec
from vjepa_mpc.world_model import WEIGHTS, WorldModelConfig, default_card

if TYPE_CHECKING:
    from transformers import VJEPA2Config

HEADS = {1024: 16, 1280: 16, 1408: 22}
"""Attention heads by width, which no tensor tells: encoders ViT-L, ViT-H and ViT-g; 1024 is the predictor's too."""


@dataclass(frozen=True)
class ConversionSettings:
    """What tensors do not say. `key`: which encoder, None for the averaged one if there is one. `heads`,
    `predictor_heads`: None for those of the published widths. `size`: pixels. `crop_aspect`: of the central
    crop, which is squashed to a square (V-JEPA 2-AC: 1.35). `frames`: that the predictor was trained on.
    `encoder_only`: leave a predictor out. `dtype` of the written weights."""

    key: EncoderKey | None = None
    heads: int | None = None
    predictor_heads: int | None = None
    size: int = 256
    crop_aspect: float = 1.35
    frames: int = 8
    encoder_only: bool = False
    dtype: str = "float32"


@dataclass(frozen=True)
class ConversionReport:
    """What was made of a file: `kind` "encoder" or "world model", which `encoder` was taken, how many tensors
    were `mapped` by part, what was `dropped`, the result's `bytes`, and `compared`: sentences on encoders."""

    source: str
    kind: str
    encoder: str
    mapped: dict[str, int]
    dropped: tuple[str, ...]
    unmatched: tuple[str, ...]
    bytes: int
    compared: tuple[str, ...]


def convert(
    source: Path | str, out: Path | str, settings: ConversionSettings | None = None, *, beside: str | None = None
) -> ConversionReport:
    """Convert a checkpoint in Meta's layout into folder `out`, which is whole or left as it was.

    `beside`: another encoder (folder, Hugging Face id or .pt) to compare the converted one with. Raises
    `InputError` for a file that is broken, of another kind, or whose tensors do not fit, naming them.
    """
    settings = settings or ConversionSettings()
    if settings.dtype not in DTYPES:
        raise InputError(f"Weights are written as {', '.join(DTYPES)}, not {settings.dtype}.")
    file, out = open_checkpoint(source), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; choose another, or remove it.")
    key = _encoder_key(file, settings.key)
    tensors = file.part(key)
    config = encoder_config(
        file.path, tensors, heads=settings.heads or _heads(tensors, "patch_embed.proj.bias", "--heads"),
        image_size=settings.size,
    )  # fmt: skip
    complete = file.action_conditioned and not settings.encoder_only
    prefix = "encoder.model." if complete else ""
    weights = _encoder_weights(config, tensors, f"the {key} in {file.path}", prefix)
    mapped: dict[str, int] = {key: sum(1 for name in tensors if name != POSITIONS)}
    if complete:
        world = _world_model(file, config, settings)
        weights |= _predictor_weights(file, world)
        mapped["predictor"] = len(file.part("predictor"))
    compared = _compared(file, key, beside)
    with atomic_folder(out) as folder:
        size = write_tensors(folder / WEIGHTS, weights, DTYPES[settings.dtype])
        if complete:
            write_json(folder / "config.json", to_plain(world))
            write_text(folder / "README.md", default_card(world, "convert"))
        else:
            config.architectures = ["VJEPA2Model"]
            config.save_pretrained(folder)
    return ConversionReport(
        source=file.path.name, kind="world model" if complete else "encoder", encoder=key, mapped=mapped,
        dropped=_dropped(file, tensors, mapped), unmatched=(), bytes=size, compared=compared,
    )  # fmt: skip


def _encoder_key(file: MetaCheckpoint, wanted: EncoderKey | None) -> EncoderKey:
    if wanted is not None:
        file.part(wanted)
        return wanted
    if "target_encoder" in file.parts:
        return "target_encoder"
    if "encoder" not in file.parts:
        raise InputError(f"{file.path} has no encoder, only {', '.join(file.parts)}; give a file that holds one.")
    return "encoder"


def _heads(tensors: Mapping[str, Tensor], name: str, option: str) -> int:
    """The published number of heads for the width of this bias."""
    width = len(tensors[name]) if name in tensors and tensors[name].dim() == 1 else 0
    if width not in HEADS:
        known = ", ".join(f"{width} ({heads})" for width, heads in HEADS.items())
        raise InputError(f"How many heads share a width of {width} cannot be read off; say it with {option}: {known}.")
    return HEADS[width]


def _encoder_weights(
    config: VJEPA2Config, tensors: Mapping[str, Tensor], what: str, prefix: str
) -> dict[str, Tensor]:
    """The tensors of a whole `VJEPA2Model`; those of its mask predictor, which nothing here uses, are zero."""
    from transformers import VJEPA2Model

    with torch.device("meta"):
        wanted = VJEPA2Model(config).state_dict()
    inner = {name.removeprefix("encoder."): value for name, value in wanted.items() if name.startswith("encoder.")}
    renamed = hugging_face_names(tensors)
    check_names(inner, renamed, what)
    unused = {name: torch.zeros(kept.shape) for name, kept in wanted.items() if not name.startswith("encoder.")}
    return {prefix + name: value for name, value in ({f"encoder.{n}": t for n, t in renamed.items()} | unused).items()}


def _world_model(file: MetaCheckpoint, config: VJEPA2Config, settings: ConversionSettings) -> WorldModelConfig:
    grid = encoder_grid(config)
    tensors = file.part("predictor")
    predictor = predictor_config(
        file.path, tensors, grid=(grid, grid), max_frames=settings.frames,
        heads=settings.predictor_heads or _heads(tensors, "predictor_embed.bias", "--predictor-heads"),
    )  # fmt: skip
    if predictor.latent_dim != config.hidden_size:
        raise InputError(
            f"The predictor in {file.path} takes latents of {predictor.latent_dim} values and the encoder gives "
            f"{config.hidden_size}; they are not of one model."
        )
    if predictor.action_dim != 7 or predictor.state_dim != 7:
        raise InputError(
            f"The predictor in {file.path} takes {predictor.action_dim} action and {predictor.state_dim} state values; "
            "V-JEPA 2-AC's take 7 and 7."
        )
    return WorldModelConfig(
        robot=franka_spec(),
        camera=CAMERA,
        preparation=ImagePreparation(settings.size, settings.crop_aspect),
        encoder=config.to_diff_dict(),
        latent=LatentConfig(grid, grid, config.hidden_size, standardise=False),
        predictor=predictor,
        history=1,
        calibration=UNCALIBRATED,
        training={
            "converted_from": file.path.name,
            "encoder": _encoder_key(file, settings.key),
            "control_period_s": CONTROL_PERIOD_S,
        },
    )


def _predictor_weights(file: MetaCheckpoint, world: WorldModelConfig) -> dict[str, Tensor]:
    from vjepa_mpc.predictor import ActionConditionedPredictor

    with torch.device("meta"):
        wanted = ActionConditionedPredictor(world.predictor).state_dict()
    tensors = file.part("predictor")
    check_names(wanted, tensors, f"the predictor in {file.path}")
    shape = world.latent.positions, world.latent.dim
    space = {"latent_space.mean": torch.zeros(shape), "latent_space.std": torch.ones(shape)}
    return space | {f"predictor.{name}": tensors[name] for name in wanted}


def _dropped(file: MetaCheckpoint, tensors: Mapping[str, Tensor], mapped: Mapping[str, int]) -> tuple[str, ...]:
    parts = [name for name in file.parts if name not in mapped]
    return (*parts, *file.others, *([POSITIONS] if POSITIONS in tensors else []))


def _compared(file: MetaCheckpoint, key: EncoderKey, beside: str | None) -> tuple[str, ...]:
    """Sentences on how the chosen encoder differs from the other one inside the file, and from one beside it."""
    own, found = file.part(key), []
    for other in ("encoder", "target_encoder"):
        if other != key and other in file.parts:
            found.append(f"{key} and {other} in this file {_difference(own, file.part(other))}")
    if beside is not None:
        with _other_encoder(beside) as theirs:
            found.append(f"{key} and {beside} {_difference(hugging_face_names(own), theirs)}")
    return tuple(found)


def _difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str:
    """How two sets of tensors differ, as the end of a sentence; compared in float32, unused positions aside."""
    a, b = ({name: value for name, value in part.items() if name != POSITIONS} for part in (a, b))
    if a.keys() != b.keys():
        alone = sorted(a.keys() ^ b.keys())
        return f"are of different kinds ({len(alone)} tensors in only one of them, {alone[0]} for one)."
    differing, largest = 0, 0.0
    for name, mine in a.items():
        theirs = b[name]
        if mine.shape != theirs.shape:
            return f"are of different sizes ({name}: {tuple(mine.shape)} and {tuple(theirs.shape)})."
        gap = float((mine.float() - theirs.float()).abs().max())
        differing += gap != 0.0  # so NaN differs
        largest = max(largest, gap)
        give_back(mine)
        give_back(theirs)
    if not differing:
        return "are equal."
    return f"differ in {differing} of {len(a)} tensors, by {largest:.3g} at most."


@contextmanager
def _other_encoder(source: str) -> Iterator[Mapping[str, Tensor]]:
    """Encoder tensors, under Hugging Face's names, of a checkpoint, a folder's safetensors or an id."""
    path = Path(source)
    if path.is_file():
        file = open_checkpoint(path)
        yield hugging_face_names(file.part(_encoder_key(file, None)))
    elif (path / WEIGHTS).is_file():
        from safetensors import safe_open

        with safe_open(path / WEIGHTS, framework="pt") as tensors:
            yield {
                name.partition("encoder.")[2].removeprefix("model.encoder."): tensors.get_tensor(name)
                for name in tensors.keys()  # noqa: SIM118
                if name.startswith("encoder.") and not name.startswith("encoder.model.predictor.")
            }
    else:
        from vjepa_mpc.encoder import load_encoder

        yield load_encoder(source).encoder.state_dict()
