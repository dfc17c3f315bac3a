"""The picture of `vjepa-mpc bench scale`: speed-up against workers, measured and predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vjepa_mpc.core.files import atomic_path


def save_scaling(record: Mapping[str, Any], path: Path) -> None:
    """Both axes are logarithmic; the grey line is a worker's worth for every worker."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows: Sequence[Mapping[str, Any]] = record["rows"]
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    farthest = 1
    for number, way in enumerate(dict.fromkeys(row["way"] for row in rows)):
        seen = [(row["workers"], row["speedup"]) for row in rows if row["way"] == way and row["speedup"] is not None]
        if seen:
            label = "processes apart" if way == "apart" else f"{way}, measured"
            axis.plot(*zip(*seen, strict=True), "o-", color=f"C{number}", label=label)
            farthest = max(farthest, *(workers for workers, _ in seen))
        told = [(one["workers"], one["speedup"]) for one in record["predictions"].get(way, {}).get("runs", [])]
        if told:
            axis.plot(*zip(*told, strict=True), "x--", color=f"C{number}", label=f"{way}, predicted")
            farthest = max(farthest, *(workers for workers, _ in told))
    axis.plot([1, farthest], [1, farthest], color="0.8", linewidth=0.8, zorder=0)
    axis.set(xscale="log", yscale="log", xlabel="workers", ylabel="speed-up, without start-up")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.legend(fontsize=8)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
