"""The picture of `vjepa-mpc bench planners`: median best cost against evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vjepa_mpc.core.files import atomic_path

if TYPE_CHECKING:
    from vjepa_mpc.planner_bench import Course


def save_courses(courses: Sequence[Course], budget: int, path: Path) -> None:
    """One panel a set of problems; lines are medians over its problems, for each planner."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(course.problems for course in courses))
    planners = list(dict.fromkeys(course.planner for course in courses))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(5 * columns, 3.8 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        for course in (course for course in courses if course.problems == name):
            style = f"C{planners.index(course.planner) % 10}"
            line = "-" if planners.index(course.planner) < 10 else "--"
            medians = [float(np.median(row)) for row in course.best]
            axis.plot(course.evaluations, medians, line, color=style, label=course.planner, linewidth=1.4)
        axis.set(title=name, xlabel="evaluations a problem", ylabel="median best cost", xscale="log", yscale="log")
        axis.axvline(budget, color="0.8", linewidth=0.8)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, fontsize=8)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
