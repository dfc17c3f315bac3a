"""`vjepa-mpc data import`: bring a log into a trajectory store."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vjepa_mpc.cli.episode_bar import EpisodeBar

if TYPE_CHECKING:
    from vjepa_mpc.datasets.conversion import Converted, Converter
    from vjepa_mpc.datasets.importing import ImportPlan, ImportReport


def import_log(
    source: Path = typer.Argument(..., help="The log: a file, a folder, or an address of one (s3://...)."),
    out: Path = typer.Argument(..., help="The store (a folder, by custom *.zarr); an unfinished import goes on."),
    state: list[str] = typer.Option(
        [], help="A part of the state, FIELD[START:STOP]:KIND; several make it up in their order."
    ),
    action: str | None = typer.Option(
        None, help="The log's own actions, FIELD[START:STOP]:KIND; left out, displacements between states."
    ),
    camera: list[str] = typer.Option([], help="A camera, SOURCE or NAME=SOURCE; all of them when left out."),
    rate: float | None = typer.Option(None, help="Observations a second in the store; the log's when left out."),
    size: int | None = typer.Option(
        None, min=8, help="Pixels of a picture's shorter side; as it is when left out or smaller."
    ),
    episodes: int | None = typer.Option(None, min=1, help="Only the first so many episodes."),
    shard: int | None = typer.Option(
        None, min=0, help="Frames in a file of the store, a multiple of 16; left out, 16, or more for very many files."
    ),
    format: str | None = typer.Option(None, help="A format's name or module:Class; recognised when left out."),
    robot: str | None = typer.Option(None, help="The robot's name; the log's when left out."),
    states: Path | None = typer.Option(None, help="The table of states of a single video or folder of pictures."),
    log_rate: float | None = typer.Option(None, help="Rows a second of a log without time stamps."),
    follow_links: bool = typer.Option(False, help="Read symbolic links that lead out of the log."),
    workers: int = typer.Option(1, min=1, help="Converting processes."),
    dry_run: bool = typer.Option(False, help="Show the mapping and write a preview picture; no store."),
    preview: Path | None = typer.Option(None, help="The preview picture; OUT.preview.png when left out."),
    json_output: bool = typer.Option(False, "--json", help="Print the report as JSON."),
) -> None:
    """Bring a log (LeRobot, robomimic, DROID, Minari, OGBench, diffusion-policy, folders) into a store.

    All numbers are read first: what cannot be read is named, the disk space is checked. Run again to go on
    after an interruption, or when the log has grown. Broken episodes are left out and reported.
    """
    from vjepa_mpc.datasets.importing import ImportSettings, prepare
    from vjepa_mpc.datasets.logs import LogOptions
    from vjepa_mpc.datasets.remote import address, fetch_log

    if (url := address(source)) is not None:
        source = fetch_log(url)
    settings = ImportSettings(
        source=source,
        out=out,
        format=format,
        state=tuple(state),
        action=action,
        cameras=tuple(camera),
        rate_hz=rate,
        size=size,
        episodes=episodes,
        robot=robot,
        shard_frames=shard,
        options=LogOptions(log_rate, follow_links, states),
    )
    with EpisodeBar("looking through") as show:
        plan = prepare(settings, show)
    if dry_run:
        from vjepa_mpc.datasets.preview import draw_preview

        target = preview or out.with_name(f"{out.name}.preview.png")
        draw_preview(plan, target)
        _print_plan(plan, target, json_output)
        return
    report = _run(plan, workers)
    _print_report(report, json_output)


def _run(plan: ImportPlan, workers: int) -> ImportReport:
    """Convert in this process, or in several."""
    from vjepa_mpc.datasets.importing import run
    from vjepa_mpc.executor import LocalExecutor

    with LocalExecutor(workers).open(partial(_same, plan.converter)) as pool, EpisodeBar("importing") as show:
        return run(plan, partial(pool.stream, _convert), show)


def _same(converter: Converter) -> Converter:
    return converter


def _convert(converter: Converter, name: str) -> Converted:
    return converter.convert(name)


def _print_plan(plan: ImportPlan, preview: Path, as_json: bool) -> None:
    import json

    from rich.console import Console
    from rich.table import Table

    recipe = plan.spec.provenance["recipe"]
    found = plan.survey
    if as_json:
        value = {
            **recipe,
            "robot": plan.spec.robot,
            "cameras": {name: list(size) for name, size in plan.spec.cameras.items()},
            "episodes": len(found.frames),
            "frames": found.total,
            "bytes_estimate": plan.bytes_estimate,
            "skipped": dict(found.reasons),
            "notes": list(plan.notes),
            "preview": str(preview),
        }
        typer.echo(json.dumps(value, indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    head = Table.grid(padding=(0, 2))
    cameras = plan.converter.log.cameras
    shown = [
        f"{name} {size[1]}x{size[0]} (from {source} {cameras[source].width}x{cameras[source].height})"
        for (name, size), source in zip(plan.spec.cameras.items(), plan.converter.mapping.cameras.values(), strict=True)
    ]
    rows = {
        "log": f"{recipe['source']} ({recipe['format']}, robot {plan.spec.robot})",
        "episodes": f"{len(found.frames)} can be read, {found.total} frames; {len(found.reasons)} cannot",
        "rate": f"{recipe['rate_hz']:g} a second, the log has {recipe['log_rate_hz']:g}",
        "state": f"{', '.join(recipe['state'])} (state model {recipe['state_model']})",
        "action": recipe["action"],
        "cameras": ", ".join(shown),
        "on disk": f"about {plan.bytes_estimate / 1e6:.1f} MB, {plan.spec.file_frames} frames in a file",
        "preview": str(preview),
    }
    for name, text in rows.items():
        head.add_row(name, text)
    console.print(head)
    for kind, low, high in (
        ("state", found.state_low, found.state_high),
        ("action", found.action_low, found.action_high),
    ):
        table = Table(kind, "unit", "least", "most")
        names, units = getattr(plan.spec, f"{kind}_names"), getattr(plan.spec, f"{kind}_units")
        for name, unit, least, most in zip(names, units, low, high, strict=True):
            table.add_row(name, unit, f"{least:.4g}", f"{most:.4g}")
        console.print(table)
    _print_reasons(dict(found.reasons), plan.notes)


def _print_report(report: ImportReport, as_json: bool) -> None:
    import json

    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
        return
    before = f" ({report.already} were there)" if report.already else ""
    typer.echo(f"{report.out}: {report.episodes} episodes, {report.frames} frames; {report.added} added{before}.")
    if report.split:
        typer.echo(f"Cut where time has gaps: {_some(report.split)}.")
    _print_reasons(report.skipped, report.notes)


def _print_reasons(reasons: dict[str, str], notes: tuple[str, ...]) -> None:
    """Notes, and what was left out: one line a reason."""
    for note in notes:
        typer.echo(f"Note: {note}.", err=True)
    grouped: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        grouped.setdefault(reason, []).append(name)
    for reason, names in grouped.items():
        typer.echo(f"Left out, episode {_some(names)}: {reason}.", err=True)


def _some(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
