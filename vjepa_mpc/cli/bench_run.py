"""`vjepa-mpc bench`: the closed-loop benchmark as one command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.cli.building import ACTOR, ACTOR_HELP, PLANNER_HELP, SET_HELP
from vjepa_mpc.cli.contenders import BATCH_HELP, PHYSICS_HELP
from vjepa_mpc.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from typer import Context

    from vjepa_mpc.bench_files import Run
    from vjepa_mpc.benchmark import Cell, Price
    from vjepa_mpc.episodes import EpisodeResult
    from vjepa_mpc.evaluation import FailedEpisode
    from vjepa_mpc.executor import Executor
else:
    Context = typer.Context.__base__  # what typer hands over is of no narrower class

FAILED_EPISODES = 3  # the exit code when episodes gave no result
_COLUMNS = ("policy", "n", "held", "hit", "end", "ms (95 %)", "late")
_ROBUSTNESS, _SPREADING, _PLANNING = "Robustness", "Where it runs", "Planner"


def bench(
    context: Context,
    suite: str = typer.Option("small", help="small (minutes) or full (hours; its price is told first)."),
    tasks: list[str] = typer.Option([], help="Tasks, by name or module:Class; all that can be had if none."),
    models: list[str] = typer.Option(
        [], help="TASK=MODEL: as --model elsewhere, or none; may be repeated. The shipped ones, if left out."
    ),
    planners: list[str] = typer.Option(
        [], help=f"{PLANNER_HELP} {ACTOR_HELP} May be repeated; cem, and the actor "
        "of models that have one, if none (that alone, where it is what a model is best at).",
    ),
    seeds: int = typer.Option(
        1, min=1, max=1000, help="Seeds 0, 1, ... of planners, of actors that draw and of the random floor."
    ),
    pairs: int | None = typer.Option(None, min=1, help="Start/goal pairs of each task (default: the suite's)."),
    manifest: list[str] = typer.Option(
        [], help="Split, or TASK=split or file; may be repeated (default: dev for small, test for full)."
    ),
    greedy: bool = typer.Option(False, "--greedy/--no-greedy", help="Also greedy-pixel, a slow floor."),
    guarded: bool = typer.Option(
        False, "--guarded", help="Where a task forbids regions, also the planner with guardrails for them."
    ),
    factors: list[str] = typer.Option(
        [], help="Factors of variation, `all` (at once) or `none`; may be repeated.", rich_help_panel=_ROBUSTNESS
    ),
    levels: list[float] = typer.Option(
        [], help="Levels of each, 0 to 1; may be repeated.", rich_help_panel=_ROBUSTNESS
    ),
    varied_pairs: int | None = typer.Option(
        None, min=1, help="Pairs of each factor and level (default: the suite's).", rich_help_panel=_ROBUSTNESS
    ),
    horizon: int | None = typer.Option(None, help="Model steps planned ahead.", rich_help_panel=_PLANNING),
    samples: int | None = typer.Option(None, help="Candidates an iteration.", rich_help_panel=_PLANNING),
    iterations: int | None = typer.Option(None, help="Iterations of a plan.", rich_help_panel=_PLANNING),
    elites: int | None = typer.Option(None, help="Candidates that are kept.", rich_help_panel=_PLANNING),
    settings: list[str] = typer.Option([], "--set", help=SET_HELP, rich_help_panel=_PLANNING),
    workers: int = typer.Option(1, help="Processes, or Ray actors.", rich_help_panel=_SPREADING),
    threads: int = typer.Option(1, help="Torch threads a worker; pinned.", rich_help_panel=_SPREADING),
    ray: bool = typer.Option(False, "--ray", help="A Ray started on this machine.", rich_help_panel=_SPREADING),
    ray_address: str | None = typer.Option(
        None, help="The Ray cluster at this address, or auto.", rich_help_panel=_SPREADING
    ),
    retries: int = typer.Option(
        1, min=0, max=100, help="Times an episode that fails is tried again.", rich_help_panel=_SPREADING
    ),
    batch: int = typer.Option(1, min=1, max=10_000, help=BATCH_HELP, rich_help_panel=_SPREADING),
    physics_workers: int = typer.Option(0, min=0, help=PHYSICS_HELP, rich_help_panel=_SPREADING),
    chunk: int | None = typer.Option(
        None, min=1, help="Candidates imagined at a time; pinned like the threads.", rich_help_panel=_SPREADING
    ),
    backend: str = typer.Option("auto", help="Renderer: auto, egl, osmesa or rays (no GL)."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    out: Path = typer.Option(Path("bench-results"), help="Folder for everything; a run in it is resumed or extended."),
    only_price: bool = typer.Option(False, "--price", help="Say what it would cost, and leave."),
    json_output: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """The closed-loop benchmark: success, distance, latency and robustness of world models, with floors and ceilings.

    Writes results.json, results.csv, episodes.csv and report.html. The same command goes on where it was stopped.
    Leaves with 3 when episodes failed: they are named, and all others are there.
    """
    if context.invoked_subcommand is not None:
        return
    from vjepa_mpc.benchmark import SUITES, failures, price
    from vjepa_mpc.cli.bench_cells import Asked, by_task, cells_of, chosen_tasks, chosen_variations
    from vjepa_mpc.cli.building import check_planner, choose_device, limit_threads
    from vjepa_mpc.cli.contenders import PlannerOptions, check_batch
    from vjepa_mpc.plan_files import check_writable

    if suite not in SUITES:
        raise unknown_name("suite", suite, SUITES)
    for name in planners:
        if name != ACTOR:
            check_planner(name)
    check_batch(batch, physics_workers, workers=workers, ray=ray or ray_address is not None)
    executor = _executor(workers, threads, ray, ray_address)
    limit_threads(threads)  # the price is measured as the workers will play
    asked = Asked(
        chosen_tasks(tasks, models), by_task(models, "--models"), by_task(manifest, "--manifest", alone=True),
        tuple(planners), seeds, pairs or SUITES[suite].pairs, greedy, guarded,
        chosen_variations(factors, levels, SUITES[suite]), varied_pairs or SUITES[suite].varied_pairs, backend,
        SUITES[suite].split, batch,
    )  # fmt: skip
    if set(planners) == {ACTOR} and (horizon or samples or iterations or elites or settings):
        raise InputError(f"--planners {ACTOR} plans nothing: leave out what is said of plans.")
    check_writable(out)
    share = 1 if ray_address else max(1, workers)
    options = PlannerOptions("cem", horizon, samples, iterations, elites, tuple(settings))
    cells = cells_of(asked, options, choose_device(device), chunk or _recorded_chunk(out), share, threads)
    _begin(out, cells)
    cost = price(cells, out, workers, physics_workers)
    told = _told(suite, cells, cost, workers, local=ray_address is None)
    typer.echo(told, err=True)
    if only_price:
        return
    record = {"suite": suite, "price": told, "step_ms": cost.step_ms, "workers": workers, "threads": threads}
    try:
        lost = failures(cells, _play(cells, executor, out, cost, retries + 1, physics_workers))
    except KeyboardInterrupt:
        _finish(out, cells, record | {"failures": []}, complete=False)
        raise
    run = _finish(out, cells, record | {"failures": lost}, complete=not lost)
    _print(run, json_output)
    if lost:
        for one in lost:
            world = f", {one['factor']} {one['level']:g}" if one["factor"] else ""
            place = f"{one['task']}: {one['policy']}{world}, seed {one['seed']}, pair {one['pair']}"
            typer.echo(f"FAILED {place}, tried {one['tries']} times: {one['reason']}", err=True)
        typer.echo("They are in no figure above; the same command tries them again.", err=True)
        raise typer.Exit(FAILED_EPISODES)


def _executor(workers: int, threads: int, ray: bool, address: str | None) -> Executor:
    """Where episodes are played. What cannot be reached is refused now, before anything is loaded."""
    from vjepa_mpc.executor import LocalExecutor, RayExecutor

    if not (ray or address):
        return LocalExecutor(workers, threads)
    spread = RayExecutor(workers, address, threads=threads)
    spread.check()
    return spread


def _recorded_chunk(out: Path) -> int | None:
    """What the run in `out` was begun with; None where there is none."""
    from vjepa_mpc.core.files import read_json

    path = out / "settings.json"
    if not path.is_file():
        return None
    record = read_json(path)
    if not isinstance(record, dict) or record.get("kind") != "bench":
        raise InputError(f"{out} holds a run of another command; choose another --out.")
    value = record.get("chunk")
    return int(value) if value else None


def _begin(out: Path, cells: Sequence[Cell]) -> None:
    from vjepa_mpc.core.files import write_json

    chunks = [cell.played["control"]["chunk"] for cell in cells if cell.kind == "planner"]
    write_json(out / "settings.json", {"kind": "bench", "chunk": chunks[0] if chunks else None})


def _told(suite: str, cells: Sequence[Cell], cost: Price, workers: int, local: bool) -> str:
    """The price in a sentence."""
    from vjepa_mpc.cli.building import usable_cores

    at_once = min(workers, usable_cores()) if local else workers
    minutes = cost.seconds / 60 / at_once
    where = f"{at_once} worker" + "s" * (at_once != 1) + (f" ({workers} share the cores)" if workers > at_once else "")
    tasks = len({cell.task for cell in cells})
    return (
        f"{suite}: {tasks} task{'s' * (tasks != 1)}, {cost.episodes} episodes, {cost.left} of them to be played: about "
        f"{minutes:.1f} minutes on {where}, as measured here and now."
    )


def _play(
    cells: Sequence[Cell], executor: Executor, out: Path, cost: Price, tries: int, physics: int
) -> list[FailedEpisode]:
    """Play, and show how far it is; time left is judged by what episodes of each kind cost."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from vjepa_mpc.benchmark import play

    done = 0
    counted = TextColumn("{task.fields[done]}/{task.fields[left]} episodes, left:")
    columns = (BarColumn(), counted, TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=300) as bar:
        shown = bar.add_task("", total=cost.seconds, done=0, left=cost.left)

        def told(number: int, result: EpisodeResult) -> None:
            nonlocal done
            done += 1
            cell = cells[number]
            where = f", {cell.factor} {cell.level:g}" if cell.factor else ""
            bar.update(shown, advance=cost.each[number], done=done, description=f"{cell.task}: {cell.policy}{where}")

        return play(cells, executor, out, told, tries=tries, physics=physics)


def _finish(out: Path, cells: Sequence[Cell], record: dict[str, Any], *, complete: bool) -> Run:
    from vjepa_mpc.bench_files import save
    from vjepa_mpc.bench_page import write_report
    from vjepa_mpc.benchmark import draw_plans, hardware, rows
    from vjepa_mpc.core.settings import provenance

    machine = {"hardware": hardware(), "provenance": provenance()}
    run = save(out, {**record, "complete": complete, "rows": rows(cells, out), **machine})
    if complete:
        for sentence in draw_plans(cells, out):
            typer.echo(f"note: {sentence}", err=True)
    write_report(run)
    return run


def _print(run: Run, as_json: bool) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(run.record, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    from vjepa_mpc.bench_files import PAGE

    screen = Console()
    for task in dict.fromkeys(row["task"] for row in run.rows):
        some = [row for row in run.rows if row["task"] == task]
        table = Table(title=f"{task}: {some[0]['manifest']} (sha256 {some[0]['sha256'][:12]})")
        for column in _COLUMNS:
            table.add_column(column, no_wrap=column != "policy", overflow="fold")
        for row in some:
            table.add_row(*_columns(row))
        screen.print(table)
    screen.print("Held with its 95 % Wilson interval; late: decisions longer than the control period.")
    screen.print(f"{run.folder / PAGE}, and beside it JSON, CSV and every episode.", soft_wrap=True)


def _columns(row: dict[str, Any]) -> tuple[str, ...]:
    held, world = row["held"], f", {row['factor']} {row['level']:g}" if row["factor"] else ""
    return (
        row["policy"] + world, str(row["episodes"]),
        f"{100 * held['rate']:.0f} % [{100 * held['wilson_low']:.0f}, {100 * held['wilson_high']:.0f}]",
        f"{100 * row['hit']['rate']:.0f} %", f"{100 * row['final_distance_median_m']:.1f} cm",
        f"{row['milliseconds_median']:.3g} ({row['milliseconds_p95']:.3g})" + _each(row),
        f"{100 * row['deadline_misses']['rate']:.0f} %",
    )  # fmt: skip


def _each(row: dict[str, Any]) -> str:
    """An episode's share of a decision that is made for several."""
    each = row.get("milliseconds_each_median")
    return "" if each is None else f", {each:.3g} each"
