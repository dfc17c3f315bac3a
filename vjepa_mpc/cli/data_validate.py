"""`vjepa-mpc data validate`: everything in a store that would spoil training, and a mended copy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vjepa_mpc.cli.episode_bar import EpisodeBar

if TYPE_CHECKING:
    from vjepa_mpc.datasets.findings import Finding
    from vjepa_mpc.datasets.validation import Validation

FOUND = 3  # the exit code when something is wrong
_SHOWN = 5  # findings of one kind that are printed


def validate(
    path: Path = typer.Argument(..., help="The store."),
    fix: Path | None = typer.Option(None, help="Write a mended copy here; the store itself is never changed."),
    json_output: bool = typer.Option(False, "--json", help="Print the findings as JSON."),
) -> None:
    """Read every episode: compare it with its hash, and look for gaps, jumps, black and frozen pictures, values
    out of range, degrees, actions of other steps, duplicates and a wrong rate. Leaves with 3 when something is found.
    """
    from vjepa_mpc.datasets.mending import mend
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.datasets.validation import validate as check

    store = ZarrStore.open(path)
    with EpisodeBar("checking") as show:
        found = check(store, show)
    if json_output:
        _print_json(path, found)
    else:
        _print(path, found)
    if fix is not None:
        with EpisodeBar("mending") as show:
            mended = mend(store, found, fix, show)
        typer.echo(f"{fix}: {mended.episodes} episodes, {mended.frames} frames.", err=json_output)
    elif found.findings:
        raise typer.Exit(FOUND)


def _print(path: Path, found: Validation) -> None:
    from vjepa_mpc.datasets.findings import REMEDIES

    damaged = len(found.of("damaged"))
    whole = "all" if not damaged else f"{found.episodes - damaged} of"
    typer.echo(f"{path}: {whole} {found.episodes} episodes ({found.frames} frames) are what was written.")
    kinds: dict[str, list[Finding]] = {}
    for finding in found.findings:
        kinds.setdefault(finding.check, []).append(finding)
    for check, findings in kinds.items():
        for finding in findings[:_SHOWN]:
            typer.echo(str(finding))
        more = f" ({len(findings) - _SHOWN} more are not shown)" if len(findings) > _SHOWN else ""
        typer.echo(f"  with --fix: {REMEDIES[check]}{more}")
    if not kinds:
        typer.echo("Nothing is wrong with it.")


def _print_json(path: Path, found: Validation) -> None:
    import json

    value = {
        "path": str(path),
        "episodes": found.episodes,
        "frames": found.frames,
        "alignment": {str(lag): share for lag, share in found.alignment.items()},
        "findings": [vars(finding) for finding in found.findings],
    }
    typer.echo(json.dumps(value, indent=2))
