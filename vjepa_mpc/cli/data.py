"""`vjepa-mpc data`: what is in a trajectory store, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from vjepa_mpc.cli.data_import import import_log
from vjepa_mpc.cli.data_validate import validate

app = typer.Typer(help="Bring logs into trajectory stores, look at them, check them.", no_args_is_help=True)
app.command("import")(import_log)
app.command()(validate)


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
