"""`vjepa-mpc data repair`: mend what a dead writer or a careless copy left of a store."""

from __future__ import annotations

from pathlib import Path

import typer

from vjepa_mpc.cli.episode_bar import EpisodeBar

DAMAGED = 3  # the exit code when episodes are lost


def repair(
    store: Path = typer.Argument(..., help="The store; its bookkeeping is mended in place."),
    json_output: bool = typer.Option(False, "--json", help="Print the report as JSON."),
) -> None:
    """Make a lost table, list of episodes or array description anew from what is left, move what lies past the last
    episode to meta/aside-N in the store, and read every episode. Leaves with 3 when some cannot be read.
    """
    from vjepa_mpc.datasets.repairing import repair as run

    with EpisodeBar("reading") as show:
        report = run(store, show)
    if json_output:
        import json

        value = {"done": list(report.done), "episodes": report.episodes, "damaged": report.damaged}
        typer.echo(json.dumps(value, indent=2))
    else:
        for line in report.done:
            typer.echo(f"Mended: {line}.")
        for index, reason in list(report.damaged.items())[:20]:
            typer.echo(f"Episode {index} cannot be read: {reason}")
        whole = report.episodes - len(report.damaged)
        typer.echo(f"{store}: {whole} of {report.episodes} episodes are whole.")
        if report.damaged:
            typer.echo("A copy without the others: vjepa-mpc data validate STORE --fix COPY.")
    if report.damaged:
        raise typer.Exit(DAMAGED)
