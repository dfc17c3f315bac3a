"""`vjepa-mpc data merge`, `split` and `export`: stores and other formats made from stores."""

from __future__ import annotations

from pathlib import Path

import typer

from vjepa_mpc.cli.episode_bar import EpisodeBar


def merge(
    out: Path = typer.Argument(..., help="The new store."),
    stores: list[Path] = typer.Argument(..., help="The stores to merge, in order."),
) -> None:
    """Write the episodes of several stores into a new one; episodes with the same content are taken once."""
    from vjepa_mpc.datasets.copying import merge as run
    from vjepa_mpc.datasets.store import ZarrStore

    with EpisodeBar("merging") as show:
        episodes, twice = run([ZarrStore.open(path) for path in stores], out, show)
    typer.echo(f"{out}: {episodes} episodes; {twice} were there twice.")


def split(
    store: Path = typer.Argument(..., help="The store."),
    first: Path = typer.Argument(..., help="The new store with most of it, for training."),
    second: Path = typer.Argument(..., help="The new store with the rest, for testing."),
    fraction: float = typer.Option(0.1, help="The share of recordings in the second."),
    seed: int = typer.Option(0, help="Which recordings go where depends on this alone."),
) -> None:
    """Copy a store into two; what was cut from one recording stays together."""
    from vjepa_mpc.datasets.copying import split as run
    from vjepa_mpc.datasets.store import ZarrStore

    with EpisodeBar("copying") as show:
        sides = run(ZarrStore.open(store), (first, second), fraction, seed, show)
    for out, indices in zip((first, second), sides, strict=True):
        typer.echo(f"{out}: {len(indices)} episodes.")


def export(
    store: Path = typer.Argument(..., help="The store."),
    out: Path = typer.Argument(..., help="A file *.hdf5, or a folder for LeRobot."),
    format: str | None = typer.Option(None, help="hdf5 or lerobot; by the ending of OUT when left out."),
    codec: str = typer.Option("h264", help="The codec of LeRobot's videos: h264 or av1."),
) -> None:
    """Write a store as HDF5 in robomimic's layout (exact), or as a LeRobot v3.0 dataset (videos with loss)."""
    from vjepa_mpc.core.errors import unknown_name
    from vjepa_mpc.datasets.export_hdf5 import export_hdf5
    from vjepa_mpc.datasets.export_lerobot import export_lerobot
    from vjepa_mpc.datasets.store import ZarrStore

    kind = format or ("hdf5" if out.suffix in (".hdf5", ".h5") else "lerobot")
    if kind not in ("hdf5", "lerobot"):
        raise unknown_name("export format", kind, ("hdf5", "lerobot"))
    source = ZarrStore.open(store)
    with EpisodeBar("exporting") as show:
        if kind == "hdf5":
            export_hdf5(source, out, show)
        else:
            export_lerobot(source, out, codec, show)
    typer.echo(f"{out}: {len(source)} episodes, {int(source.lengths().sum())} frames.")
