"""`--preset` and `--resume` of the trainings: options by a name, and all of them from a run that was begun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from typer import Context as Context
else:
    Context = typer.Context.__base__  # what typer hands over is of no narrower class

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "pretrain": {
        # Something to try a store out with, in minutes.
        "tiny": {"width": 64, "depth": 2, "heads": 2, "batch": 16, "warmup": 20},
        # V-JEPA 2's ViT-L (Assran et al. 2025, section 2 and its appendix), main phase; published: 252,000 steps.
        "vjepa2-vitl": {
            "width": 1024, "depth": 24, "heads": 16, "patch": 16, "frames": 16, "batch": 3072, "lr": 5.25e-4,
            "warmup": 12_000, "cooldown": 0.0, "ema": 0.99925, "sigreg": 0.0, "still": 0.0, "contrast": "dataset",
            "other": ["predictor_width=384", "predictor_depth=12", "predictor_heads=12"],
        },
    },
    "train": {
        "tiny": {"width": 64, "depth": 2, "batch": 64},
        # V-JEPA 2-AC's predictor (section 3); published: 94,500 steps, the last 4,500 of them down to 0.
        "vjepa2-ac": {
            "grid": 16, "width": 1024, "depth": 24, "heads": 16, "stride": 1, "frames": 8, "rollout": 2, "l2": False,
            "residual": False, "centre": False, "optimizer": "adamw", "lr": 4.25e-4, "warmup": 4500, "batch": 256,
            "cooldown": 4500 / 94_500,
        },
    },
}  # fmt: skip
"""By command and name: values of its parameters, in place of their defaults."""

PRESET_HELP = "Defaults by a name; options given beside it count. See docs/pretraining.md."
RESUME_HELP = "Go on with the run in this folder, with its own settings; nothing else is given."


def preset(context: Context, name: str | None) -> str | None:
    """Callback of `--preset`, before any other option is read: what it names are the defaults from here on."""
    if name is not None:
        named = PRESETS[str(context.info_name)]
        if name not in named:
            raise unknown_name(f"preset of {context.info_name}", name, named)
        context.default_map = {**(context.default_map or {}), **named[name]}
    return name


def resume(context: Context, run: Path | None) -> Path | None:
    """Callback of `--resume`: runs the command line that the run was begun with, and leaves with its exit code."""
    if run is None:
        return None
    if isinstance(context.obj, list) and len(context.obj) > (2 if context.obj[1].startswith("--resume=") else 3):
        raise InputError("--resume goes on with a run's own settings; leave all other options out.")
    arguments, directory = recorded(run, str(context.info_name))
    os.chdir(directory)
    code = context.find_root().command.main(
        args=arguments, prog_name="vjepa-mpc", standalone_mode=False, obj=arguments
    )
    raise typer.Exit(code if isinstance(code, int) else 0)


def recorded(run: Path, command: str) -> tuple[list[str], Path]:
    """The command line that the run in a folder was begun with, its `--out` being where it lies now; and the folder
    that it was begun from."""
    from vjepa_mpc.core.files import read_json

    if not (run / "settings.json").is_file():
        raise InputError(f"{run} holds no run of `{command}` (no settings.json); check the path.")
    record = read_json(run / "settings.json")
    line = record.get("provenance", {}).get("command", [])[1:] if isinstance(record, dict) else []
    if not line or line[0] != command:
        kind = record.get("kind") if isinstance(record, dict) else None
        hint = f"it is one of `{kind}`" if kind and kind != command else "run again what began it"
        raise InputError(f"The run in {run} was not begun by `vjepa-mpc {command}`; {hint}.")
    kept = [part for i, part in enumerate(line) if part != "--out" and line[i - 1] != "--out" and part[:6] != "--out="]
    directory = Path(record.get("directory", "."))
    if not directory.is_dir():
        raise InputError(f"The run in {run} was begun in {directory}, which is gone; run again what began it.")
    return [*kept, "--out", str(run.resolve())], directory
