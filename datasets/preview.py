"""One picture of what an import would make: a few frames of a few episodes, and their states and actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vjepa_mpc.core.files import atomic_path
from vjepa_mpc.datasets.importing import ImportPlan

_SHOWN = 5  # frames of an episode in a row


def draw_preview(plan: ImportPlan, target: Path) -> None:
    """Write the preview as a PNG: a row of frames for every camera of every sample, then the numbers of the
    first sample against time. Drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cameras = list(plan.spec.cameras)
    rows = len(plan.samples) * len(cameras)
    figure = Figure(figsize=(2.2 * _SHOWN, 1.7 * rows + 4.5), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.7 * rows, 4.5))
    top, bottom = halves
    axes = top.subplots(rows, _SHOWN, squeeze=False)
    for number, sample in enumerate(plan.samples):
        for place, camera in enumerate(cameras):
            frames = sample.images[camera]
            chosen = np.linspace(0, len(frames) - 1, _SHOWN).round().astype(int)
            for axis, index in zip(axes[number * len(cameras) + place], chosen, strict=True):
                axis.imshow(frames[index])
                axis.set_axis_off()
            axes[number * len(cameras) + place][0].set_title(
                f"episode {sample.name}, camera {camera}", loc="left", fontsize=8
            )
    first = plan.samples[0]
    for axis, what, names, units, times, values in zip(
        bottom.subplots(2, 1, sharex=True),
        ("state", "action"),
        (plan.spec.state_names, plan.spec.action_names),
        (plan.spec.state_units, plan.spec.action_units),
        (first.times, first.times[:-1]),
        (first.states, first.actions),
        strict=True,
    ):
        for column, (name, unit) in enumerate(zip(names, units, strict=True)):
            axis.plot(times - first.times[0], values[:, column], label=name if unit == "1" else f"{name} ({unit})")
        axis.set_ylabel(what)
        axis.legend(fontsize=6, ncols=2, loc="upper right")
    axis.set_xlabel(f"seconds of episode {first.name}")
    with atomic_path(target) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
