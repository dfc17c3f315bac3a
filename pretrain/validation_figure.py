"""The picture of a validation: error over the horizon, and the ranks of the logged actions."""

from __future__ import annotations

from pathlib import Path

from vjepa_mpc.core.files import atomic_path
from vjepa_mpc.pretrain.validation import Validation


def save_figure(found: Validation, path: Path) -> None:
    """Write the PNG, atomically."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = range(1, found.horizon + 1)
    for name, figures in found.groups.items():
        (line,) = left.plot(steps, figures.error, marker="o", label=f"{name} ({figures.clips} clips)")
        left.plot(steps, figures.copy, marker="o", linestyle=":", color=line.get_color())
    left.set(xlabel=f"model steps of {found.stride} control steps", ylabel="latent distance to what came")
    left.set_title("prediction (dotted: copying the last frame)", fontsize=9)
    left.set_xticks(list(steps))
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
    right.hist(found.ranks, bins=20, range=(0, 1))
    right.set(xlabel="share of random actions that look better", ylabel="clips")
    right.set_title("rank of the logged actions (0: best, 0.5: chance)", fontsize=9)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
