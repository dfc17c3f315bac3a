"""What `pretrain` and `train` show: a bar with the time left, and where the result lies."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.cli.episode_bar import SILENT_S
from vjepa_mpc.cli.workers import is_worker

if TYPE_CHECKING:
    from vjepa_mpc.pretrain.trainer import TrainResult

UNTOLD = ("step", "lr", "grad_norm", "spread_least", "spread_most", "places")  # in the log only
StepProgress = Callable[[int, int | None, Mapping[str, float]], None]
FIRST, LAST = "preparing", "finishing"
RowProgress = Callable[[str, int, int], None]


@contextmanager
def training_progress(
    title: str, settings: Sequence[Any] = (), clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[StepProgress, RowProgress]]:
    """Bars on stderr, redrawn ten times a second from beginning to end, with the time they have taken; without a
    terminal, a line about every tenth of the way and at least every `SILENT_S`. `settings` are told once there is
    something to show, so that what is refused is refused in one sentence."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, quiet=not speaks())
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
    # The first step can be long in coming: something moves until then.
    tasks = {FIRST: bar.add_task(f"{title}: preparing", total=None, note="")}
    said: dict[str, int] = {}
    to_tell = list(settings)
    last = clock()

    def show(name: str, done: int, total: int | None, note: str) -> None:
        nonlocal last
        while to_tell:
            console.print(_told(to_tell.pop(0)), soft_wrap=True, markup=False, highlight=False)
        if name not in tasks:
            if name == title and done > 1:
                console.print(f"{title}: going on after step {done - 1}", soft_wrap=True)
            if FIRST in tasks:
                bar.remove_task(tasks.pop(FIRST))
            tasks[name] = bar.add_task(name, total=total, completed=done, note=note)
        bar.update(tasks[name], completed=done, total=total, note=note)
        if name == title and total and done >= total and LAST not in tasks:
            tasks[LAST] = bar.add_task(f"{title}: finishing", total=None, note="")
        tenth = 10 * done // total if total else 0
        if not console.is_terminal and (said.get(name) != tenth or clock() - last >= SILENT_S):
            said[name], last = tenth, clock()
            console.print(f"{name}: {done}/{total or '?'} {note}", soft_wrap=True)

    def on_step(step: int, total: int | None, figures: Mapping[str, float]) -> None:
        names = [name for name in figures if name not in UNTOLD]
        show(title, step, total, " ".join(f"{name} {figures[name]:.3f}" for name in names))

    def on_rows(what: str, done: int, total: int) -> None:
        show(f"caching {what}", done, total, "")

    with bar:
        yield on_step, on_rows
        for name in {FIRST, LAST} & tasks.keys():
            bar.remove_task(tasks[name])


def _told(settings: Any) -> str:
    """All settings in a line, as they were resolved."""
    told = ", ".join(f"{name} {value}" for name, value in _flat(asdict(settings)).items())
    return f"{type(settings).__name__}: {told}"


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return flat


def speaks() -> bool:
    """Whether this process is the one that tells of the training: alone, or the first of its workers."""
    return not is_worker() or os.environ["RANK"] == "0"


def _arithmetic(result: TrainResult) -> str:
    """How well the machine was used."""
    if not result.flops_a_second:
        return ""
    share = f"{100 * result.utilisation:.0f} % of {result.peak}"
    return f"; {result.flops_a_second / 1e12:.3g} TFLOP/s, {share} (model FLOP utilisation)"


def report(
    result: TrainResult, run: Path, product: Path, next_step: str, as_json: bool, more: Mapping[str, Any] | None = None
) -> None:
    """Say what was made, or how to go on; exit code 130 after an interruption. `more`: what JSON has besides."""
    if as_json and speaks():
        typer.echo(json.dumps({**asdict(result), **(more or {}), "run": str(run), "result": str(product)}, indent=2))
    elif result.finished and speaks():
        typer.echo(f"{product}: done after {result.step} steps ({result.seconds / 60:.1f} minutes); {next_step}.")
        if result.clips_a_second:
            waited = f"{100 * result.data_wait:.0f} % of the time waiting for data"
            typer.echo(f"{result.clips_a_second:.0f} clips a second, {waited}{_arithmetic(result)}.", err=True)
    if not result.finished:
        if speaks():
            typer.echo(f"Interrupted at step {result.step}: saved; run the same command to go on.", err=True)
        raise typer.Exit(130)
