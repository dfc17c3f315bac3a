"""`vjepa-mpc data caches`: what the caches of a store take on disk, and room made."""

from __future__ import annotations

from pathlib import Path

import typer


def caches(
    store: Path = typer.Argument(..., help="The store."),
    folder: Path | None = typer.Option(None, help="Where its caches lie, when not beside it."),
    most: float | None = typer.Option(None, min=0, help="Keep at most so many gigabytes; the others go."),
) -> None:
    """List the caches of decoded frames and latents made from a store; with --most, remove those used longest ago.

    A cache that some process has open stays. All can be made again: training does, when it needs one.
    """
    import time

    from vjepa_mpc.datasets.cache_files import bounded, cache_of, caches_in
    from vjepa_mpc.datasets.store import ZarrStore

    place = cache_of(ZarrStore.open(store), folder)
    for gone in bounded(place, int(most * 1e9)) if most is not None else []:
        typer.echo(f"removed {gone.path.name}: {gone.size / 1e6:.1f} MB")
    left = caches_in(place)
    for cache in left:
        when = "in use" if cache.in_use else f"used {(time.time() - cache.used) / 86400:.1f} days ago"
        typer.echo(f"{cache.path.name}: {cache.size / 1e6:.1f} MB, {when}")
    typer.echo(f"{place}: {len(left)} caches, {sum(cache.size for cache in left) / 1e6:.1f} MB.")
