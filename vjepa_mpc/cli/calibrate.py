"""`vjepa-mpc calibrate`: measure what a model's guardrails compare with, again whenever the model changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from vjepa_mpc.cli.building import MODEL_HELP
from vjepa_mpc.core.errors import InputError


def calibrate(
    logs: Path = typer.Argument(..., help="Store of episodes that the model was not trained on."),
    model: str | None = typer.Option(None, help=MODEL_HELP),
    camera: str | None = typer.Option(None, help="Camera, where the store has several (default: the model's)."),
    episodes: int = typer.Option(200, min=1, help="At most so many episodes, evenly spread over the store."),
    out: Path | None = typer.Option(
        None, help="File to write (default: guardrails.json beside the model; for the shipped one, say where)."
    ),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    json_output: bool = typer.Option(False, "--json", help="Print the thresholds as JSON."),
) -> None:
    """Measure the latent distances that count as a surprise, and as the same place as in a picture to be avoided.

    They are quantiles over the given episodes, bound to the model's weights: run it again for every new model.
    """
    import json
    from dataclasses import asdict

    from rich.console import Console

    from vjepa_mpc.cli.building import choose_device, is_shipped, limit_threads, load_model, model_folder
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.pretrain.thresholds import thresholds_of
    from vjepa_mpc.thresholds import FILE, save_thresholds

    folder = model_folder(model)
    if out is None and is_shipped(folder):
        raise InputError(
            f"The shipped model lies in the installed package, which is left as it is; write elsewhere with --out "
            f"{FILE}, and give that to `plan --thresholds {FILE}`."
        )
    limit_threads(None)
    world = load_model(model, choose_device(device))
    store = ZarrStore.open(logs)
    with Console(stderr=True).status("Measuring"):
        found: Any = thresholds_of(world, store, camera or world.config.camera, episodes)
    place = out or folder / FILE
    save_thresholds(found, place)
    if json_output:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    typer.echo(
        f"{place}: surprise slows above {found.surprise_slow:.4f} and stops above {found.surprise_stop:.4f} "
        f"({found.frames} predictions); the same place within {found.same_place:.4f} ({found.pairs} pairs)."
    )
