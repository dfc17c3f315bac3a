"""`validate-model --run`: the models of a run's checkpoints, and which offline figure foretells their success."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from vjepa_mpc.cli.training import StepProgress
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.pretrain.foretelling import Foretelling
    from vjepa_mpc.pretrain.validation import Figures, ValidationSettings


def validate_run(
    run: Path, store: Path, settings: ValidationSettings, evaluations: Sequence[Path], out: Path, device: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Validate the models of all checkpoints that `run` kept, each once, into `out`; with `evaluations`, results of
    `evaluate` on them, also say which figure orders them as success does (checkpoints.json and checkpoints.html)."""
    import json

    import numpy as np

    from vjepa_mpc.cli.building import choose_device
    from vjepa_mpc.core.files import write_json
    from vjepa_mpc.core.settings import provenance
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.pretrain.foretelling import FIGURES, foretelling, read_played
    from vjepa_mpc.pretrain.foretelling_page import write_page
    from vjepa_mpc.pretrain.run_models import models_of

    opened = ZarrStore.open(store)
    models = models_of(run)
    played = read_played(evaluations, models) if evaluations else None
    offline = _validated(models, opened, settings, out, choose_device(device))
    if played is None:
        table = {step: {name: of(step, offline[step]) for name, (_, of) in FIGURES.items()} for step in models}
        _say(table, {}, as_json)
        _say_how_to_play(models, run, store)
        return
    found = foretelling(offline, played, np.random.default_rng(settings.seed))
    record = {
        "run": str(run), "store": str(store), "settings": asdict(settings), "manifest": played.manifest,
        "sha256": played.sha256, **asdict(found), "provenance": provenance(),
    }  # fmt: skip
    write_json(out / "checkpoints.json", record)
    pairs = next(iter(played.rows.values()))["episodes"]
    facts = {
        "run": str(run), "logs": str(store), "clips": str(settings.clips), "checkpoints": str(len(found.figures)),
        "closed loop": f"{played.manifest}, sha256 {played.sha256[:16]}, {pairs} pairs",
    }  # fmt: skip
    write_page(found, played, facts, out / "checkpoints.html")
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    _say(found.figures, found.outcomes, as_json)
    _print(_correlations(found))
    typer.echo(f"{out / 'checkpoints.html'}: the same with plots.")


def _validated(
    models: Mapping[int, Path], store: ZarrStore, settings: ValidationSettings, out: Path, device: Any
) -> dict[int, Figures]:
    """Figures of every model on all clips; what `out` holds of these weights, store and settings is not done again."""
    from vjepa_mpc.cli.building import load_model
    from vjepa_mpc.cli.training import training_progress
    from vjepa_mpc.core.files import read_json, write_json
    from vjepa_mpc.core.settings import from_plain
    from vjepa_mpc.encoder import weights_hash
    from vjepa_mpc.pretrain.validation import Figures, validate_model

    found = {}
    data = store.content_hash()
    for number, (step, folder) in enumerate(models.items()):
        world, path = load_model(str(folder), device), out / f"validation-{step}.json"
        key = {"settings": asdict(settings), "data": data, "weights": weights_hash(world)}
        record = read_json(path) if path.is_file() else None
        if not (isinstance(record, dict) and record.get("key") == key):
            with training_progress(f"validating {number + 1} of {len(models)}") as (on_step, _):
                fresh = validate_model(world, store, settings, partial(_advance, on_step))
            record = {"key": key, "model": str(folder), "step": step, **asdict(fresh)}
            out.mkdir(parents=True, exist_ok=True)
            write_json(path, record)
        found[step] = from_plain(Figures, record["groups"]["all"], path)
    return found


def _advance(on_step: StepProgress, done: int, total: int) -> None:
    on_step(done, total, {})


def _say(
    figures: Mapping[int, Mapping[str, float]], outcomes: Mapping[int, Mapping[str, float]], as_json: bool
) -> None:
    """A row a checkpoint."""
    import json

    from rich.table import Table

    if as_json:
        typer.echo(json.dumps({"figures": figures}, indent=2))
        return
    first = next(iter(figures))
    table = Table(*figures[first], *(outcomes[first] if outcomes else ()))
    for step, row in figures.items():
        cells = [f"{value:.4g}" for value in row.values()]
        for name, value in outcomes.get(step, {}).items():
            cells.append(f"{100 * value:.1f} cm" if name == "end" else f"{100 * value:.0f} %")
        table.add_row(*cells)
    _print(table)


def _say_how_to_play(models: Mapping[int, Path], run: Path, store: Path) -> None:
    named = " ".join(f"--model {folder}" for folder in models.values())
    typer.echo(
        f"Play them: vjepa-mpc evaluate {named} --no-floors --out {run / 'evaluation'}\n"
        f"then:      vjepa-mpc validate-model --run {run} {store} --evaluation {run / 'evaluation' / 'results.json'}",
        err=True,
    )


def _correlations(found: Foretelling) -> Table:
    from rich.table import Table

    from vjepa_mpc.pretrain.foretelling import OUTCOMES
    from vjepa_mpc.pretrain.foretelling_page import told

    table = Table("rank correlation with", *OUTCOMES)
    for name, row in found.correlations.items():
        table.add_row(name, *(told(row[outcome]) for outcome in OUTCOMES))
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    screen = Console()
    # A file or a pipe has no width: nothing is folded there.
    (screen if screen.is_terminal else Console(width=200)).print(table)
