"""`vjepa-mpc tasks`: what there is to do, what it looks like, what it costs, and frozen pairs of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from vjepa_mpc.cli.building import VARY_HELP

app = typer.Typer(help="List tasks, show one, measure what a step costs, freeze start/goal pairs.")

NAME = typer.Argument(..., help="A task's name, or module:Class (show: also gymnasium/<id>).")
BACKEND = typer.Option("auto", help="Renderer: auto, egl, osmesa or rays (no GL).")


def _is_of(name: str, manifest: str, names: Sequence[str]) -> bool:
    """Whether a manifest is the task `name`'s, and not that of another whose name begins alike."""
    longer = (other for other in names if other.startswith(f"{name}-"))
    return manifest.startswith(f"{name}-") and not any(manifest.startswith(f"{other}-") for other in longer)


@app.callback(invoke_without_command=True)
def tasks(
    context: typer.Context, json_output: bool = typer.Option(False, "--json", help="Print the list as JSON.")
) -> None:
    """List the tasks."""
    if context.invoked_subcommand is not None:
        return
    from vjepa_mpc.core.errors import InputError
    from vjepa_mpc.robots.factory import find_task, task_names
    from vjepa_mpc.robots.tasks import manifest_names

    manifests, names = manifest_names(), task_names()
    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            task = find_task(name)
        except InputError as error:  # an installed package's, which is not to hide the others
            rows.append({"name": name, "missing": str(error)})
            continue
        spec = task.spec
        actions = zip(spec.action_names, spec.action_low, spec.action_high, spec.action_units, strict=True)
        rows.append(
            {
                "name": name,
                "summary": task.summary,
                "actions": [f"{action} {low:g} to {high:g} {unit}" for action, low, high, unit in actions],
                "control_period_s": spec.control_period_s,
                "step_budget": task.step_budget,
                "success_radius_m": task.success_radius_m,
                "missing": task.missing,
                "manifests": [entry for entry in manifests if _is_of(name, entry, names)],
            }
        )
    _print_list(rows, json_output)


def _print_list(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        if "summary" not in row:
            typer.echo(f"{row['name']:{width}}  not here: {row['missing']}")
            continue
        splits = ", ".join(entry[len(row["name"]) + 1 :] for entry in row["manifests"]) or "none"
        typer.echo(f"{row['name']:{width}}  {row['summary']}")
        typer.echo(
            f"{'':{width}}  {row['step_budget']} steps of {row['control_period_s']:g} s, success within "
            f"{100 * row['success_radius_m']:g} cm; manifests: {splits}"
        )
        typer.echo(f"{'':{width}}  {'; '.join(row['actions'])}")
        if row["missing"]:
            typer.echo(f"{'':{width}}  not here: {row['missing']}")


@app.command()
def show(
    name: str = NAME,
    out: Path = typer.Option(Path("shown"), help="Folder for the contact sheet (PNG) and the video (MP4)."),
    size: int = typer.Option(96, min=8, max=1024, help="Width and height of the pictures, pixels."),
    seed: int = typer.Option(0, min=0, help="Of the episode's start and goal."),
    vary: list[str] = typer.Option([], help=VARY_HELP),
    backend: str = BACKEND,
) -> None:
    """Write a contact sheet and a short video: the task's own script at work, and other looks.

    Of gymnasium/<id>, which has no script, random actions.
    """
    from vjepa_mpc.cli.building import parse_levels
    from vjepa_mpc.showcase import show as write

    levels = parse_levels(vary)
    if name.startswith("gymnasium/"):
        _show_environment(name, out, size, seed, levels)
        return
    task, robot = _built(name, size, backend)
    try:
        sheet, video, episode = write(robot, task, out, seed, levels)
    finally:
        robot.close()
    end = f"{100 * episode.distances[-1]:.1f} cm from the goal"
    typer.echo(f"{sheet} and {video}: the script {'holds' if episode.held else 'does NOT hold'}, and ends {end}.")


@app.command()
def pair(
    name: str = NAME,
    out: Path = typer.Option(Path("pair"), help="Folder for start.png and goal.png, with the goal's state beside it."),
    size: int = typer.Option(
        64, min=8, max=1024, help="Width and height of the pictures, pixels; best as a model's training pictures."
    ),
    seed: int = typer.Option(0, min=0, help="The pair is a function of it."),
    backend: str = BACKEND,
) -> None:
    """Draw a start and a goal of a task, and write what they look like: goal pictures for `vjepa-mpc plan`.

    goal.json has the goal's state, for the distance column only. A task with sub-goals has goal-1.png and so on before
    the goal itself.
    """
    from vjepa_mpc.core.files import write_json
    from vjepa_mpc.showcase import write_pair

    task, robot = _built(name, size, backend)
    try:
        start, goals = write_pair(robot, task, out, seed)
    finally:
        robot.close()
    for path, state in goals.items():
        write_json(path.with_suffix(".json"), {"state": state})
    said = " ".join(f"--goal {path}" for path in goals)
    typer.echo(f'vjepa-mpc plan --model MODEL --start="{start}" {said}')


def _show_environment(name: str, out: Path, size: int, seed: int, levels: dict[str, float]) -> None:
    from vjepa_mpc.core.errors import InputError
    from vjepa_mpc.robots.factory import make_robot
    from vjepa_mpc.showcase import show_wandering

    if levels:
        raise InputError(f"{name} has no factors of variation; leave --vary out.")
    robot = make_robot(name, camera_size=size, seed=seed)
    try:
        sheet, video = show_wandering(robot, name.replace("/", "-"), out, seed)
    finally:
        robot.close()
    typer.echo(f"{sheet} and {video}: random actions, as {name} has no task of ours.")


@app.command()
def cost(
    names: list[str] = typer.Argument(None, help="Tasks (default: all)."),
    size: int = typer.Option(96, min=8, max=1024, help="Width and height of the pictures, pixels."),
    steps: int = typer.Option(100, min=1, help="Steps measured."),
    backend: str = BACKEND,
    json_output: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Measure the CPU time of one step of each task: physics, picture, and the task's own script."""
    import json

    from vjepa_mpc.robots.factory import available_tasks
    from vjepa_mpc.showcase import step_cost

    figures = {}
    for name in names or available_tasks():
        task, robot = _built(name, size, backend)
        try:
            figures[name] = step_cost(robot, task, steps)
        finally:
            robot.close()
    if json_output:
        typer.echo(json.dumps({name: vars(figure) for name, figure in figures.items()}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"CPU ms at {size} px, medians of {steps}")
    for column in ("task", "physics", "picture", "both", "script"):
        table.add_column(column)
    for name, figure in figures.items():
        values = (figure.physics, figure.picture, figure.step, figure.script)
        table.add_row(name, *(f"{value:.2f}" for value in values))
    Console().print(table)


@app.command()
def check(
    names: list[str] = typer.Argument(None, help="Tasks, or module:Class (default: all that can be had here)."),
    seed: int = typer.Option(0, min=0, help="Of every motion and pair."),
    steps: int = typer.Option(1000, min=24, help="Bold steps into whatever there is."),
    pairs: int = typer.Option(20, min=1, help="Pairs drawn for the script."),
    backend: str = BACKEND,
    json_output: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Measure whether tasks keep their word: units, rest, contacts, pictures, ceiling. Exit code 3: not all do.

    As told: steps whose measured motion is the returned action, as exactly as the task says (mostly 2 % of limits).
    Moving: steps after which something moves on by over 1 mm or mrad. Deepest: bodies in contact inside each other.
    Repeats: another process with the same seed, to the bit. Changed: share of the picture that is another when the
    world is placed in the state it says it is in. Script: pairs held, of those drawn now.
    """
    import json
    from dataclasses import asdict
    from functools import partial

    from vjepa_mpc.core.errors import InputError
    from vjepa_mpc.robots.factory import available_tasks, find_task
    from vjepa_mpc.sanity import Sanity, check_task

    rows: dict[str, Sanity] = {}
    for name in names or available_tasks():
        task = find_task(name)
        if task.missing:
            raise InputError(task.missing)
        build: Any = partial(_world, task, 48, backend)
        rows[name] = check_task(build, task, seed=seed, steps=steps, pairs=pairs)
    if json_output:
        typer.echo(json.dumps({name: asdict(row) for name, row in rows.items()}, indent=2))
    else:
        _print_checks(rows, f"seed {seed}, {steps} bold steps, {pairs} pairs")
    if any(row.faults for row in rows.values()):
        raise typer.Exit(3)


def _print_checks(rows: dict[str, Any], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.3g} %"

    table = Table(title=title)
    for column in ("task", "as told", "moving", "deepest", "repeats", "changed", "script [95 % Wilson]"):
        table.add_column(column)
    for name, row in rows.items():
        deepest = "-" if row.deepest_m is None else f"{1e3 * row.deepest_m:.2f} mm"
        low, high = row.interval
        script = f"{row.held} of {row.pairs} [{100 * low:.0f}, {100 * high:.0f}]"
        repeats = "yes" if row.repeats else "no"
        table.add_row(name, share(row.as_told), share(row.unrest), deepest, repeats, share(row.changed), script)
    screen = Console()
    (screen if screen.is_terminal else Console(width=120)).print(table)
    for name, row in rows.items():
        for fault in row.faults:
            typer.echo(f"{name}: {fault}.")


@app.command("collect")
def collect_all(
    names: list[str] = typer.Argument(None, help="Tasks (default: all that can be had here)."),
    out: Path = typer.Option(..., help="Folder for one store a task, and a picture of the states visited in each."),
    frames: int = typer.Option(410, min=2, help="Frames of each task, in whole episodes of 41."),
    size: int = typer.Option(64, min=8, max=1024, help="Width and height of the pictures, pixels."),
    workers: int | None = typer.Option(None, help="Simulating processes; all CPU cores when left out."),
    seed: int = typer.Option(0, min=0, help="Of the episodes."),
    json_output: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Collect some of every task, and say how fast: frames a second, and the time for 100,000 frames of all."""
    import json
    import os

    from vjepa_mpc.cli.data import draw_store_coverage
    from vjepa_mpc.collect import CollectSettings, collect
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.exploration import EpisodeSettings, mixture_of
    from vjepa_mpc.robots.factory import available_tasks, find_task

    rows: dict[str, dict[str, Any]] = {}
    for name in names or available_tasks():
        task, folder = find_task(name), out / f"{name.replace(':', '-')}.zarr"
        own = None if task.robot == name else name
        episode = EpisodeSettings(robot=task.robot, task=own, seed=seed, camera_size=size)
        count = -(-frames // episode.frames)
        report = collect(CollectSettings(folder, count, workers or os.cpu_count() or 1, episode))
        shares = draw_store_coverage(ZarrStore.open(folder), folder.with_suffix(".png"))
        rows[name] = {
            "frames": report.frames, "frames_per_s": report.frames_per_s, "mixture": dict(mixture_of(episode)),
            "coverage": shares,
        }  # fmt: skip
        if not json_output:
            mixture = ", ".join(f"{kind} {share:.0%}" for kind, share in rows[name]["mixture"].items())
            typer.echo(f"{name}: {report.frames} frames, {report.frames_per_s:.0f} frames/s ({mixture})")
    rates = [row["frames_per_s"] for row in rows.values()]
    minutes = sum(100_000 / len(rates) / rate for rate in rates) / 60 if all(rates) else None
    if json_output:
        typer.echo(json.dumps({"tasks": rows, "minutes_for_100000_frames": minutes}, indent=2))
    elif minutes is not None:
        typer.echo(f"100,000 frames of all of them together, in equal shares: {minutes:.0f} minutes at this rate.")


@app.command()
def freeze(
    name: str = NAME,
    split: str = typer.Option(..., help="What the manifest is called, e.g. dev."),
    out: Path = typer.Option(..., help="The JSON file to write."),
    pairs: int = typer.Option(100, min=1, max=1000, help="Start/goal pairs."),
    seed: int = typer.Option(..., min=0, help="The pairs are a function of it."),
    varied: bool = typer.Option(False, "--varied", help="A look of its own for every pair."),
) -> None:
    """Draw start/goal pairs that the task's script reaches and holds, and write them with their hash."""
    from vjepa_mpc.core.errors import InputError
    from vjepa_mpc.core.files import write_json
    from vjepa_mpc.robots.tasks import make_manifest, proof

    if out.exists():
        raise InputError(f"{out} exists, and frozen pairs are not replaced; choose another --out.")
    task, robot = _built(name, 16, "auto")
    tried = 0
    accept = proof(robot, task)

    def counted(start: Any, goal: Any) -> bool:
        nonlocal tried
        tried += 1
        return accept(start, goal)

    try:
        manifest = make_manifest(split, pairs, seed, varied=varied, task=task, accept=counted)
    finally:
        robot.close()
    write_json(out, manifest.to_json())
    typer.echo(f"{out}: {pairs} pairs, sha256 {manifest.sha256[:12]}; the script held {pairs} of {tried} drawn.")


def _built(name: str, size: int, backend: str) -> tuple[Any, Any]:
    """The task called `name`, and its world."""
    from vjepa_mpc.robots.factory import find_task

    task = find_task(name)
    return task, _world(task, size, backend)


def _world(task: Any, size: int, backend: str) -> Any:
    from vjepa_mpc.core.errors import InputError
    from vjepa_mpc.robots.base import SimulatedRobot
    from vjepa_mpc.robots.factory import make_robot

    robot = make_robot(task.robot, camera_size=size, backend=backend)
    if not isinstance(robot, SimulatedRobot):
        raise InputError(f"{task.robot} is no simulated robot: it cannot be placed at starts and goals.")
    return robot
