"""`vjepa-mpc data`: what is in a trajectory store, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from vjepa_mpc.cli.data_caches import caches
from vjepa_mpc.cli.data_copy import export, merge, split
from vjepa_mpc.cli.data_import import import_log
from vjepa_mpc.cli.data_repair import repair
from vjepa_mpc.cli.data_validate import validate
from vjepa_mpc.cli.data_view import view

app = typer.Typer(help="Bring logs into trajectory stores, look at them, check them.", no_args_is_help=True)
app.command("import")(import_log)
app.command()(validate)
app.command()(repair)
app.command()(merge)
app.command()(split)
app.command()(export)
app.command()(view)
app.command()(caches)


@app.command()
def info(
    path: Path = typer.Argument(..., help="The store."),
    json_output: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Say what a store holds: episodes, cameras, units, bounds, sizes, ranges, and where it came from."""
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.datasets.summary import summarise

    summary = summarise(ZarrStore.open(path))
    if json_output:
        import json

        typer.echo(json.dumps(summary, indent=2))
    else:
        _print(summary)


@app.command()
def stats(
    path: Path = typer.Argument(..., help="The store."),
    coverage: Path | None = typer.Option(None, help="Also draw which states were visited, to this picture."),
    json_output: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Means, deviations and quantiles of states and actions, colours of the pictures, lengths and tasks."""
    from vjepa_mpc.datasets.statistics import statistics
    from vjepa_mpc.datasets.store import ZarrStore

    store = ZarrStore.open(path)
    found = statistics(store)
    if coverage is not None:
        found["coverage"] = draw_store_coverage(store, coverage)
    if json_output:
        import json

        typer.echo(json.dumps(found, indent=2))
    else:
        _print_stats(found)


def draw_store_coverage(store: Any, path: Path) -> dict[str, float]:
    """Shares of visited cells by the components' names; the picture goes to `path`."""
    from vjepa_mpc.datasets.coverage import coverage, draw_coverage, states_of
    from vjepa_mpc.robots.base import StateSpec
    from vjepa_mpc.robots.factory import find_task

    spec, states = store.spec, states_of(store)
    world = StateSpec(spec.robot, spec.state_names, spec.state_low, spec.state_high, spec.state_units)
    if states.shape[1] != len(spec.state_names):  # then a task collected it, which knows what they are
        recipe = spec.provenance["recipe"]
        world = find_task(recipe.get("task") or recipe["robot"]).world
    found = coverage(states, world.names, world.low, world.high)
    draw_coverage(found, path, f"{store.path.name}: {len(states)} frames, cells visited")
    return {", ".join(part.names): part.share for part in found}


def _print_stats(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{found['path']}: {found['episodes']} episodes, {found['frames']} frames")
    columns = ("mean", "std", "min", "q01", "q50", "q99", "max")
    for kind in ("states", "actions"):
        table = Table(kind, *columns)
        for name, row in found[kind].items():
            table.add_row(name, *(f"{row[column]:.4g}" if column in row else "-" for column in columns))
        console.print(table)
    for camera, row in found["images"].items():
        mean, std = (", ".join(f"{value:.3f}" for value in row[key]) for key in ("mean", "std"))
        console.print(f"camera {camera}: colours {mean} on average, deviation {std} ({row['count'][0]:g} frames)")
    for names, share in found.get("coverage", {}).items():
        console.print(f"coverage of {names}: {share:.0%} of 20 x 20 cells")
    lengths = found["lengths"]
    console.print(f"lengths: {lengths['min']:g} to {lengths['max']:g}, {lengths['q50']:g} in the middle")
    console.print(f"steps without motion: {found['motionless_share']:.1%}")
    if found["unreadable"]:
        console.print(f"not counted: {len(found['unreadable'])} episodes that cannot be read (see data validate)")
    for task, count in list(found["tasks"].items())[:10]:
        console.print(f"task {task or '(none)'}: {count} episodes", markup=False)


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    head = Table.grid(padding=(0, 2))
    lengths = summary["episode_lengths"]
    writer = summary["being_written_by"]
    provenance = summary["provenance"]
    rows = {
        "store": f"{summary['path']} (schema version {summary['schema_version']})",
        "robot": f"{summary['robot']}, state model {summary['state_model']}, {summary['control_period_s']:g} s a step",
        "episodes": f"{summary['episodes']} of {lengths['min']} to {lengths['max']} frames",
        "frames": f"{summary['frames']} ({summary['duration_s'] / 60:.1f} minutes)",
        "cameras": ", ".join(f"{name} {w}x{h}" for name, (h, w) in summary["cameras"].items()),
        "renderer": summary["renderer"] or "-",
        "on disk": f"{summary['bytes_on_disk'] / 1e6:.1f} MB, {summary['compression_ratio']:.1f}x smaller than raw",
        "made by": f"{provenance.get('command', '-')}, version {provenance.get('version', '-')}, "
        f"commit {provenance.get('commit') or '-'}",
        "recipe": ", ".join(f"{name} {value}" for name, value in provenance.get("recipe", {}).items()) or "-",
        "being written": f"by process {writer.get('pid')} on {writer.get('host')}" if writer is not None else "no",
    }
    for name, value in rows.items():
        head.add_row(name, value)
    console.print(head)
    for kind in ("states", "actions"):
        table = Table("", *(("unit", "low", "high", "least seen", "most seen")), title=kind, title_justify="left")
        for row in summary[kind]:
            seen = [f"{row[key]:.4g}" if row[key] is not None else "-" for key in ("min", "max")]
            table.add_row(row["name"], row["unit"], f"{row['low']:.4g}", f"{row['high']:.4g}", *seen)
        console.print(table)
