"""`vjepa-mpc data view`: a store as one HTML page."""

from __future__ import annotations

from pathlib import Path

import typer

from vjepa_mpc.cli.episode_bar import EpisodeBar


def view(
    store: Path = typer.Argument(..., help="The store."),
    out: Path | None = typer.Option(None, help="The page; STORE.html when left out."),
    episodes: int = typer.Option(12, min=1, help="Episodes shown, evenly spread over the store."),
    check: bool = typer.Option(True, help="Validate the store and show what is found."),
) -> None:
    """Write one self-contained HTML page of a store: videos, plots, statistics, findings. It opens from disk."""
    from vjepa_mpc.datasets.page import write_page
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.datasets.validation import validate

    source, found = ZarrStore.open(store), None
    whole = store.resolve() if store.exists() else Path(store.name)  # "." has no name; a remote one's page is put here
    target = out or whole.with_name(f"{whole.name}.html")
    if check:
        with EpisodeBar("checking") as show:
            found = validate(source, show)
    with EpisodeBar("drawing") as show:
        shown = write_page(source, target, found, episodes, show)
    typer.echo(f"{target}: {len(shown)} of {len(source)} episodes, {target.stat().st_size / 1e6:.1f} MB.")
