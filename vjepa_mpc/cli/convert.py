"""`vjepa-mpc convert`: Meta's published checkpoints as folders that everything here loads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from vjepa_mpc.core.errors import unknown_name

if TYPE_CHECKING:
    from vjepa_mpc.checkpoints import EncoderKey
    from vjepa_mpc.conversion import ConversionReport

KEYS = ("encoder", "target_encoder")


def convert(
    file: Path = typer.Argument(..., help="A .pt of V-JEPA 2 or V-JEPA 2-AC as Meta publishes it."),
    out: Path = typer.Argument(..., help="Folder to make: a VJEPA2Model, or a world model from an AC file."),
    key: str | None = typer.Option(None, help="encoder or target_encoder (default: the latter, averaged, if there)."),
    report: bool = typer.Option(False, "--report", help="Say what was mapped, dropped, unmatched; if encoders differ."),
    beside: str | None = typer.Option(None, help="An encoder (folder, id or .pt) to compare the converted one with."),
    encoder_only: bool = typer.Option(False, "--encoder-only", help="Leave an AC file's predictor out."),
    heads: int | None = typer.Option(None, min=1, help="Encoder heads (default: those of ViT-L, ViT-H, ViT-g)."),
    predictor_heads: int | None = typer.Option(None, min=1, help="Predictor heads (default: the published 16)."),
    size: int = typer.Option(256, min=1, help="Side of the encoder's pictures, pixels (384 for fpc64-384)."),
    crop_aspect: float = typer.Option(1.35, min=0.1, help="Width / height of the crop squashed to that square (AC)."),
    frames: int = typer.Option(8, min=2, help="Frames the predictor was trained on (AC): bounds the horizon."),
    dtype: str = typer.Option("float32", help="Of the written weights: float32, float16 or bfloat16."),
    json_output: bool = typer.Option(False, "--json", help="Print the report as JSON."),
) -> None:
    """Turn Meta's .pt files into folders: an encoder for `train --encoder`, an AC checkpoint for `plan --model`.

    The file is mapped, never unpickled as code; tensors are copied one by one, optimiser state is left out.
    """
    if key is not None and key not in KEYS:
        raise unknown_name("encoder key", key, KEYS)
    from vjepa_mpc.conversion import ConversionSettings, convert

    settings = ConversionSettings(
        key=cast("EncoderKey | None", key), heads=heads,
        predictor_heads=predictor_heads, size=size, crop_aspect=crop_aspect, frames=frames,
        encoder_only=encoder_only, dtype=dtype,
    )  # fmt: skip
    made = convert(file, out, settings, beside=beside)
    if json_output:
        typer.echo(json.dumps(asdict(made), indent=2))
        return
    if report or beside is not None:
        _print(made)
    planning = f"plan with `vjepa-mpc plan --model {out} --goal PICTURE --observation NOW --state POSE`"
    use = planning if made.kind == "world model" else f"use it with `vjepa-mpc train LOGS --encoder {out}`"
    typer.echo(f"{out}: {made.kind}, {made.bytes / 1e6:.1f} MB, {made.encoder} of {made.source}; {use}.")


def _print(made: ConversionReport) -> None:
    typer.echo("mapped: " + ", ".join(f"{count} tensors of {part}" for part, count in made.mapped.items()))
    typer.echo("dropped: " + (", ".join(made.dropped) or "nothing"))
    typer.echo("unmatched: " + (", ".join(made.unmatched) or "nothing"))
    for sentence in made.compared:
        typer.echo(sentence)
