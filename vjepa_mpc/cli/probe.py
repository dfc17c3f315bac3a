"""`vjepa-mpc probe`: what linear and attentive probes read from frozen encoders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from vjepa_mpc.pretrain.probes import Score
    from vjepa_mpc.pretrain.probing import Probing


def probe(
    encoders: list[str] = typer.Argument(..., help="Encoders, as `train --encoder` takes them; 'untrained', 'pixels'."),
    store: Path = typer.Argument(..., help="Trajectory store (logs.zarr)."),
    frames: int = typer.Option(3000, min=1, help="Examples that the probes are trained on."),
    held: int = typer.Option(1000, min=1, help="Examples of held-out episodes that they are judged on."),
    clip: int = typer.Option(1, min=1, help="Frames an example; from 2 on velocities are read too."),
    stride: int = typer.Option(1, min=1, help="Control steps between the frames of an example."),
    grid: int | None = typer.Option(None, min=1, help="Tokens are pooled to grid x grid (default: 4)."),
    steps: int = typer.Option(500, min=0, help="Steps of the attentive probe; 0 for linear probes alone."),
    seed: int = typer.Option(0, min=0, max=2**32, help="Seed of examples and probes."),
    camera: str | None = typer.Option(None, help="Camera, when the store has several."),
    cache: Path | None = typer.Option(None, help="Folder for the decoded-frame cache (default: beside the store)."),
    threads: int | None = typer.Option(None, min=1, help="Torch threads (default: the cores this process may use)."),
    out: Path | None = typer.Option(None, help="Folder for probe.json and probe.png."),
    device: str = typer.Option("auto", help="auto, cpu or cuda: where the encoders run."),
    json_output: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """What can be read of state and velocity from frozen encoders, on the held-out episodes of a store."""
    import json
    from dataclasses import asdict

    from rich.console import Console

    from vjepa_mpc.cli.building import choose_device, encoder_source, limit_threads
    from vjepa_mpc.cli.training import training_progress
    from vjepa_mpc.core.files import write_json
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.pretrain.probing import ProbeSettings, probe_encoders
    from vjepa_mpc.pretrain.probing_figure import save_figure

    settings = ProbeSettings(frames, held, grid, clip, stride, steps, seed)
    limit_threads(threads)
    opened, where = ZarrStore.open(store), choose_device(device)
    with training_progress("probing") as (on_step, caching):
        found = probe_encoders(
            [encoder_source(name) for name in encoders], opened, settings, where, camera=camera, cache=cache,
            progress=lambda done, total: on_step(done, total, {}), caching=caching,
        )  # fmt: skip
    record = {"store": str(store), "data": opened.content_hash(), "settings": asdict(settings), **asdict(found)}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        save_figure(found, out / "probe.png")
        write_json(out / "probe.json", record)
    if json_output:
        typer.echo(json.dumps(record, indent=2))
        return
    typer.echo(
        f"{found.looks['all']} held-out examples of {found.episodes[1]} episodes of {store}, "
        f"probes trained on {found.train} of {found.episodes[0]}: share of the variance explained, median error."
    )
    Console().print(_table(found))


def _table(found: Probing) -> Table:
    from rich.table import Table

    table = Table("encoder", "probe", "looks", *(f"{target.name} ({target.unit})" for target in found.targets))
    for name, probes in found.scores.items():
        for kind, looks in probes.items():
            for look, row in looks.items():
                table.add_row(name, kind, look, *(_cell(row[target.name]) for target in found.targets))
    return table


def _cell(score: Score) -> str:
    share = "    -" if score.r2 is None else f"{score.r2:.3f}"
    return f"{share}  {score.error:.3g}"
