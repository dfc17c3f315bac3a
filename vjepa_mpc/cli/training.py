"""What `pretrain` and `train` show: a bar with the time left, and where the result lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from vjepa_mpc.pretrain.trainer import TrainResult

UNTOLD = ("step", "lr", "grad_norm", "spread_least", "spread_most", "places")  # in the log only
StepProgress = Callable[[int, int | None, Mapping[str, float]], None]
RowProgress = Callable[[str, int, int], None]


@contextmanager
def training_progress(title: str) -> Iterator[tuple[StepProgress, RowProgress]]:
    """Bars on stderr; without a terminal, a line about every tenth of the way."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[str, object] = {}
    said: dict[str, int] = {}

    def show(name: str, done: int, total: int | None, note: str) -> None:
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=total, note="")
        bar.update(tasks[name], completed=done, total=total, note=note)  # type: ignore[arg-type]
        if not console.is_terminal and total:
            tenth = 10 * done // total
            if said.get(name) != tenth:
                said[name] = tenth
                console.print(f"{name}: {done}/{total} {note}", soft_wrap=True)

    def on_step(step: int, total: int | None, figures: Mapping[str, float]) -> None:
        names = [name for name in figures if name not in UNTOLD]
        show(title, step, total, " ".join(f"{name} {figures[name]:.3f}" for name in names))

    def on_rows(what: str, done: int, total: int) -> None:
        show(f"caching {what}", done, total, "")

    with bar:
        yield on_step, on_rows


def report(result: TrainResult, run: Path, product: Path, next_step: str, as_json: bool) -> None:
    """Say what was made, or how to go on; exit code 130 after an interruption."""
    if as_json:
        typer.echo(json.dumps({**asdict(result), "run": str(run), "result": str(product)}, indent=2))
    elif result.finished:
        typer.echo(f"{product}: done after {result.step} steps ({result.seconds / 60:.1f} minutes); {next_step}.")
    if not result.finished:
        typer.echo(f"Interrupted at step {result.step}: saved; run the same command to go on.", err=True)
        raise typer.Exit(130)
