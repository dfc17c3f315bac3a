"""`vjepa-mpc bench data`: clips a second of every way of keeping frames."""

from __future__ import annotations

import tempfile
from pathlib import Path

import typer

MISSED = 3  # the exit code when a bar is not held


def data(
    size: list[int] = typer.Option([96, 256], help="Pictures' side, pixels; may be repeated."),
    episodes: int = typer.Option(8, min=1, help="Episodes."),
    frames: int = typer.Option(100, min=8, help="Frames an episode."),
    seconds: float = typer.Option(3.0, min=0.1, help="Seconds each way is measured."),
    workers: int = typer.Option(2, min=0, help="Also compare an epoch through this many loader processes with none."),
    peer: list[str] = typer.Option(
        [], help="Also another project's own loader, where it is installed: lerobot or lance; may be repeated."
    ),
    folder: Path | None = typer.Option(None, help="Where files are made and removed again; a temporary folder."),
    json_output: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """Random 4-frame clips a second: caches and store against np.memmap, h5py, plain zarr and MP4, in one run.

    One thread of torch; warm files. Leaves with 3 when a bar is not held.
    """
    import torch

    from vjepa_mpc.core.settings import provenance
    from vjepa_mpc.data_bench import bars, bench, epoch_digest
    from vjepa_mpc.datasets.store import ZarrStore

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        speeds = bench(Path(place), size, episodes, frames, seconds, peer)
        store = ZarrStore.open(Path(place) / str(size[0]) / "store.zarr")
        same = epoch_digest(store, 0) == epoch_digest(store, workers)
    judged = bars(speeds)
    if json_output:
        import json

        value = {
            "speeds": [vars(speed) for speed in speeds],
            "bars": [{**vars(bar), "held": bar.held} for bar in judged],
            "same_epoch": same,
            "provenance": provenance(),
        }
        typer.echo(json.dumps(value, indent=2))
    else:
        for speed in speeds:
            megabytes = speed.bytes_on_disk / 1e6
            typer.echo(f"{speed.size:4d} px  {speed.name:22s} {speed.clips_a_second:10.0f} clips/s {megabytes:9.1f} MB")
        for bar in judged:
            word = "held" if bar.held else "MISSED"
            typer.echo(f"{bar.text}: {bar.ratio:.2f}, at least {bar.least:g}: {word}")
        typer.echo(f"An epoch through 0 and {workers} workers: {'the same' if same else 'DIFFERENT'}")
    if not (same and all(bar.held for bar in judged)):
        raise typer.Exit(MISSED)
