"""`vjepa-mpc bench scale`: what more workers and larger batches gain, where the rest goes, and what many would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.cli.building import MODEL_HELP, PLANNER_HELP, SET_HELP
from vjepa_mpc.core.errors import InputError

if TYPE_CHECKING:
    from vjepa_mpc.scale_bench import BatchRun, Run

MISSED = 3  # the exit code when a bar is not held


def scale(
    workers: list[int] = typer.Option([], min=1, help="Workers of one thread each; may be repeated. 1 and 2 if none."),
    batch: list[int] = typer.Option(
        [], min=2, max=10_000, help="Also so many episodes decided together, by one worker; may be repeated."
    ),
    physics_workers: int = typer.Option(0, min=0, help="Processes for the robots of batches (0: none)."),
    ray: bool = typer.Option(False, "--ray", help="Also a Ray started on this machine."),
    task: str | None = typer.Option(None, help="Name or module:Class (default: the model's)."),
    model: str | None = typer.Option(None, help=MODEL_HELP),
    manifest: str = typer.Option("dev", help="Start/goal pairs."),
    pairs: int = typer.Option(8, min=1, help="Episodes of each measurement."),
    steps: int | None = typer.Option(None, min=1, help="Break episodes off after so many steps."),
    repeats: int = typer.Option(1, min=1, help="Measurements of each; their medians are told."),
    planner: str = typer.Option("cem", help=PLANNER_HELP),
    horizon: int | None = typer.Option(None, help="Model steps planned ahead."),
    samples: int | None = typer.Option(None, help="Candidates an iteration."),
    iterations: int | None = typer.Option(None, help="Iterations of a plan."),
    elites: int | None = typer.Option(None, help="Candidates that are kept."),
    settings: list[str] = typer.Option([], "--set", help=SET_HELP),
    chunk: int | None = typer.Option(None, min=1, help="Candidates imagined at a time."),
    predict: list[int] = typer.Option([], min=1, help="Workers to predict; may be repeated. 8, 64 and 512 if none."),
    episodes: int = typer.Option(5000, min=1, max=1_000_000, help="Episodes of the predicted runs."),
    backend: str = typer.Option("auto", help="Renderer: auto, egl, osmesa or rays (no GL)."),
    out: Path = typer.Option(Path("bench-scale"), help="Folder for scale.json and scale.png."),
    json_output: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """Episodes a second of 1, 2, 4 ... workers beside as many processes that nothing coordinates, which is what the
    machine allows; where the workers' time goes; what 8, 64 and 512 workers would do, by a model from these parts.

    All ways are measured in turn in one run, on the CPU. Leaves with 3 when a bar is not held.
    """
    import torch

    from vjepa_mpc.cli.building import check_planner, limit_threads, load_model, usable_cores
    from vjepa_mpc.cli.contenders import PlannerOptions, check_batch, planning, shared_chunk, stage_of
    from vjepa_mpc.core.files import write_json
    from vjepa_mpc.evaluation import ArenaSetup
    from vjepa_mpc.executor import LocalExecutor
    from vjepa_mpc.plan_files import check_writable
    from vjepa_mpc.robots.factory import find_task
    from vjepa_mpc.robots.tasks import load_manifest
    from vjepa_mpc.scale_figure import save_scaling

    check_planner(planner)
    counts = sorted(set(workers or ([1, 2] if not batch else [1])))
    LocalExecutor(max(counts))  # refuses more than this machine can do with
    check_batch(max(batch, default=1), physics_workers, workers=1, ray=False)
    if pairs < max(batch, default=1):
        raise InputError(f"A batch of {max(batch)} needs as many episodes; raise --pairs, which is {pairs}.")
    check_writable(out)
    world = load_model(model, torch.device("cpu"))
    asked: Any = find_task(task or world.config.robot.name)
    frozen = load_manifest(manifest, asked)
    if pairs > len(frozen.pairs):
        raise InputError(f"{frozen.split} of {asked.name} has {len(frozen.pairs)} pairs; ask for at most as many.")
    limit_threads(1)
    name = model or "shipped"
    at_a_time = chunk or shared_chunk({name: world}, horizon, max(counts))
    stage = stage_of(world, name, asked, backend)
    options = PlannerOptions(planner, horizon, samples, iterations, elites, tuple(settings))
    one = planning(world, stage, name, options, at_a_time)
    setup = ArenaSetup(one.robot, one.policy, asked, 0)
    chosen = list(enumerate(frozen.pairs))[:pairs]
    runs, batches = _measured(setup, chosen, counts, batch, ray, physics_workers, repeats, steps)
    record = _record(runs, batches, setup, chosen[0], steps, predict or [8, 64, 512], episodes, usable_cores())
    record["settings"] = {
        "task": asked.name, "manifest": frozen.sha256, "model": name, "pairs": pairs, "steps": steps,
        "repeats": repeats, "ray": ray, "physics_workers": physics_workers, **one.played,
    }  # fmt: skip
    write_json(out / "scale.json", record)
    save_scaling(record, out / "scale.png")
    if json_output:
        import json

        typer.echo(json.dumps(record, indent=2))
    else:
        _print(record, out)
    if any(bar["held"] is False for bar in record["bars"]):
        raise typer.Exit(MISSED)


def _measured(
    setup: Any, pairs: list[Any], counts: Sequence[int], batches: Sequence[int], ray: bool, physics: int, repeats: int,
    steps: int | None,
) -> tuple[list[Run], list[BatchRun]]:  # fmt: skip
    from rich.console import Console

    from vjepa_mpc.scale_bench import measure_batches, measure_workers

    runs: list[Run] = []
    with Console(stderr=True).status("") as shown:
        told: Callable[[str], object] = shown.update
        for count in counts:
            runs += measure_workers(setup, pairs, count, ray=ray, repeats=repeats, steps=steps, told=told)
        if not batches:
            return runs, []
        found = measure_batches(setup, pairs, batches, physics=physics, repeats=repeats, steps=steps, told=told)
    return runs, found


def _record(
    runs: list[Run], batches: list[BatchRun], setup: Any, pair: Any, steps: int | None, predicted: Sequence[int],
    episodes: int, cores: int,
) -> dict[str, Any]:  # fmt: skip
    """Everything that is told and kept."""
    from dataclasses import asdict

    from vjepa_mpc.benchmark import hardware
    from vjepa_mpc.core.settings import provenance
    from vjepa_mpc.scale_bench import LOCAL, RAY, parts_of, ray_overhead, table, traffic
    from vjepa_mpc.scaling import assumptions, predict, ray_bar, two_workers_bar

    rows, moved = table(runs), traffic(setup, pair, steps)
    predictions = {}
    for way in (LOCAL, RAY):
        parts = parts_of(runs, way, cores, moved["item_bytes"] + moved["answer_bytes"])
        if parts is not None:
            told = [predict(parts, count, episodes) for count in sorted(set(predicted))]
            predictions[way] = {
                "parts": asdict(parts), "assumptions": assumptions(parts, cores),
                "runs": [{**asdict(one), "efficiency": one.efficiency} for one in told],
            }  # fmt: skip
    two = next((row["speedup"] for row in rows if (row["workers"], row["way"]) == (2, LOCAL)), None)
    mean_s = sum(span.seconds for run in runs for span in run.spans) / sum(run.episodes for run in runs)
    has_one = any((row["workers"], row["way"]) == (1, LOCAL) for row in rows)
    bars = [two_workers_bar(two if has_one else None, cores), ray_bar(ray_overhead(runs), mean_s)]
    return {
        "rows": rows, "traffic": moved, "predictions": predictions, "batches": [asdict(one) for one in batches],
        "bars": [asdict(bar) for bar in bars], "load": _load(), "hardware": hardware(), "usable_cores": cores,
        "provenance": provenance(),
    }  # fmt: skip


def _load() -> float | None:
    """How many processes wanted the cores, of late: in a crowd measurements say little."""
    import os

    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _print(record: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    screen = Console()
    screen = screen if screen.is_terminal else Console(width=160)
    _print_workers(record, screen)
    for way, told in record["predictions"].items():
        _print_predictions(way, told, screen)
    if record["batches"]:
        _print_batches(record["batches"], screen)
    for bar in record["bars"]:
        value = "" if bar["value"] is None else f": {bar['value']:.2f}"
        word = {True: ": held", False: ": MISSED", None: ""}[bar["held"]]
        screen.print(f"{bar['text']}{value}{word}", soft_wrap=True, highlight=False)
    if record["load"] is not None and record["load"] > record["usable_cores"] + max(
        row["workers"] for row in record["rows"]
    ):
        screen.print(f"This machine was busy with other work (load {record['load']:.1f}): measure on a quiet one.")
    screen.print(f"{out / 'scale.json'}, {out / 'scale.png'}", soft_wrap=True)


def _print_workers(record: dict[str, Any], screen: Any) -> None:
    from rich.table import Table

    shown = Table(title="Workers of one thread; their time at work, until the first item, between items, at the end")
    for name in ("workers", "way", "episodes/s", "speed-up", "of allowed", "work", "first", "between", "end", "start s",
                 "parent ms/item"):  # fmt: skip
        shown.add_column(name, justify="left" if name == "way" else "right")
    for row in record["rows"]:
        percents = [f"{100 * row[name]:.1f} %" for name in ("busy", "before", "between", "after")]
        parent = row["parent_ms_an_item"]
        shown.add_row(
            str(row["workers"]), row["way"], f"{row['episodes_a_second']:.3f}",
            "-" if row["speedup"] is None else f"{row['speedup']:.2f}",
            f"{100 * row['of_what_the_machine_allows']:.0f} %", *percents, f"{row['start_s']:.1f}",
            "-" if parent is None else f"{parent:.1f}",
        )  # fmt: skip
    screen.print(shown)
    moved = record["traffic"]
    screen.print(
        f"An episode: item {moved['item_bytes'] / 1e3:.1f} kB, answer {moved['answer_bytes'] / 1e3:.1f} kB, pickled "
        f"and unpickled in {moved['pickling_ms']:.2f} ms; a worker's setup, weights and all: "
        f"{moved['setup_bytes'] / 1e6:.1f} MB. \"apart\": processes that nothing coordinates, what the machine allows.",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def _print_predictions(way: str, told: dict[str, Any], screen: Any) -> None:
    from rich.table import Table

    runs = told["runs"]
    shown = Table(title=f"{way}: predicted for {runs[0]['episodes']:,} episodes")
    for name in ("workers", "seconds", "start-up s", "speed-up", "with start-up", "useful", "shared machine", "waiting",
                 "end", "kB/s"):  # fmt: skip
        shown.add_column(name, justify="right")
    for one in runs:
        percents = [f"{100 * one[name]:.1f} %" for name in ("useful", "sharing", "waiting", "idle")]
        shown.add_row(
            str(one["workers"]), f"{one['play_s']:,.0f}", f"{one['start_s']:.1f}", f"{one['speedup']:.1f}",
            f"{one['whole_speedup']:.1f}", *percents, f"{one['bytes_a_second'] / 1e3:,.0f}",
        )  # fmt: skip
    screen.print(shown)
    for sentence in told["assumptions"]:
        screen.print(f"- {sentence}", soft_wrap=True, highlight=False)


def _print_batches(batches: list[dict[str, Any]], screen: Any) -> None:
    from rich.table import Table

    shown = Table(title="Episodes decided together, one worker")
    for name in ("batch", "physics", "episodes/s", "gain", "decision ms", "each ms", "same end", "distances differ"):
        shown.add_column(name, justify="right")
    for one in batches:
        shown.add_row(
            str(one["batch"]), str(one["physics"]), f"{one['rate']:.3f}", f"{one['rate'] / batches[0]['rate']:.2f}",
            f"{one['decision_ms']:.1f}", f"{one['decision_ms'] / one['batch']:.1f}",
            f"{one['same']} of {one['episodes']}", f"{1e3 * one['apart_m']:.2f} mm",
        )  # fmt: skip
    screen.print(shown)
