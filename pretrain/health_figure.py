"""The picture of a run's health: its log's losses and what `health.py` measures, over the steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vjepa_mpc.core.files import atomic_path
from vjepa_mpc.pretrain.health import COLLAPSED_RANK, COLLAPSED_SPREAD
from vjepa_mpc.pretrain.sigreg import COLLAPSED_STATISTIC

HEALTH = "health.png"
SPREADS = ("spread", "spread_least", "spread_most", "places")
APART = {"step", "lr", "sigreg", "grad_norm", "rank", *SPREADS}


def save_health(log: Path, path: Path) -> None:
    """Draw the rows of `log` (JSON lines) into a PNG, atomically; nothing where there is no row yet."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    if not rows:
        return
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    losses = [name for name in rows[-1] if name not in APART]
    _curves(axes[0], rows, losses, "loss and its parts")
    _curves(axes[1], rows, SPREADS, "spread of the features", COLLAPSED_SPREAD)
    _curves(axes[2], rows, ("rank",), "effective rank of the content", COLLAPSED_RANK)
    _curves(axes[3], rows, ("sigreg",), "SIGReg statistic", COLLAPSED_STATISTIC)
    _curves(axes[4], rows, ("grad_norm",), "gradient norm (before clipping)")
    axes[4].set_yscale("log")
    _curves(axes[5], rows, ("lr",), "learning rate")
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _curves(
    axes: object, rows: Sequence[Mapping[str, float]], names: Sequence[str], title: str, collapsed: float | None = None
) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    for name in names:
        steps = [row["step"] for row in rows if name in row]
        axes.plot(steps, [row[name] for row in rows if name in row], label=name, linewidth=1.2)
    if collapsed is not None:
        axes.axhline(collapsed, color="tab:red", linestyle=":", linewidth=1, label="collapsed")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("step", fontsize=8)
    if len(names) > 1 or collapsed is not None:
        axes.legend(fontsize=7)
