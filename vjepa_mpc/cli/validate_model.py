"""`vjepa-mpc validate-model`: what a world model foresees of logged episodes, without robot or simulator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vjepa_mpc.cli.building import MODEL_HELP
from vjepa_mpc.core.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from vjepa_mpc.pretrain.validation import Validation


def validate_model(
    models: list[str] | None = typer.Argument(None, metavar="MODEL", help=MODEL_HELP),
    store: Path = typer.Argument(..., help="Trajectory store (logs.zarr)."),
    run: Path | None = typer.Option(
        None, help="Instead of a MODEL: the models of all checkpoints that this run of train kept (train --keep)."
    ),
    evaluation: list[Path] = typer.Option(
        [], help="With --run: a results.json of `evaluate` on these models; may be repeated. Which figure foretells it?"
    ),
    clips: int = typer.Option(200, min=1, help="Clips drawn from the store."),
    candidates: int = typer.Option(256, min=1, help="Random action sequences, the logged one's rivals."),
    horizon: int | None = typer.Option(None, min=1, help="Model steps foreseen (default: the model's longest)."),
    stride: int | None = typer.Option(None, min=1, help="Control steps a model step spans (default: the model's)."),
    seed: int = typer.Option(0, min=0, max=2**32, help="Seed of clips and candidates."),
    threads: int | None = typer.Option(None, min=1, help="Torch threads (default: the cores this process may use)."),
    out: Path | None = typer.Option(None, help="Folder for the results (with --run: RUN/validation)."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    json_output: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Prediction error, action rank and open-loop end of a world model on logs: held-out episodes of the store
    that it was trained on, all episodes of another."""
    import json
    from dataclasses import asdict

    from rich.console import Console

    from vjepa_mpc.cli.building import choose_device, limit_threads, load_model
    from vjepa_mpc.cli.training import training_progress
    from vjepa_mpc.core.files import write_json
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.pretrain.validation import ValidationSettings
    from vjepa_mpc.pretrain.validation import validate_model as measure
    from vjepa_mpc.pretrain.validation_figure import save_figure

    if run is None and evaluation:
        raise InputError("--evaluation is of a run's models; name the run with --run.")
    if run is not None:
        from vjepa_mpc.cli.validate_run import validate_run

        if models:
            raise InputError(f"--run stands for the models; leave {', '.join(models)} out.")
        limit_threads(threads)
        asked = ValidationSettings(clips, candidates, horizon, stride, seed)
        return validate_run(run, store, asked, evaluation, out or run / "validation", device, json_output)
    if models is not None and len(models) > 1:
        raise InputError(f"One model is validated at a time, got {', '.join(models)}; give MODEL, then the store.")
    model = models[0] if models else None
    settings = ValidationSettings(clips, candidates, horizon, stride, seed)
    limit_threads(threads)
    opened, world = ZarrStore.open(store), load_model(model, choose_device(device))
    with training_progress("validating") as (on_step, _):
        found = measure(world, opened, settings, lambda done, total: on_step(done, total, {}))
    record = {"model": model or "shipped", "store": str(store), "settings": asdict(settings), **asdict(found)}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        save_figure(found, out / "validation.png")
        write_json(out / "validation.json", record)
    if json_output:
        typer.echo(json.dumps(record, indent=2))
        return
    which = "held-out" if found.held_out else "all"
    span = f"{found.horizon} model steps of {found.stride} control steps"
    typer.echo(f"{model or 'The shipped model'} on {which} episodes of {store} ({found.episodes}): {span}.")
    Console().print(_table(found))


def _table(found: Validation) -> Table:
    from rich.table import Table

    table = Table("looks", "clips", "error", "copying", "rank", "end chosen", "nearest", "random")
    for name, figures in found.groups.items():
        table.add_row(
            name,
            str(figures.clips),
            f"{figures.error[-1]:.3f}",
            f"{figures.copy[-1]:.3f}",
            f"{figures.rank:.3f}",
            *(
                f"{end.median:.3f} {found.unit}"
                for end in (figures.end_chosen, figures.end_nearest, figures.end_random)
            ),
        )
    return table
