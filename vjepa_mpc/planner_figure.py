"""The picture of `vjepa-mpc bench planners`: median best cost against evaluations and wall time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vjepa_mpc.core.files import atomic_path

if TYPE_CHECKING:
    from vjepa_mpc.planner_courses import Course


def save_courses(courses: Sequence[Course], path: Path) -> None:
    """Two panels a set of problems, by evaluations and by wall time; lines are medians over its problems."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(course.problems for course in courses))
    planners = list(dict.fromkeys(course.planner for course in courses))
    figure = Figure(figsize=(4.6 * len(names) + 1, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        for course in (course for course in courses if course.problems == name):
            number = planners.index(course.planner)
            style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3], "linewidth": 1.3}
            for axis, across in zip(axes[:, column], (course.evaluations, course.wall), strict=True):
                axis.plot(across, course.medians, label=course.planner, **style)
        for axis, what in zip(axes[:, column], ("evaluations a problem", "wall time a problem, s"), strict=True):
            axis.set(title=name, xlabel=what, ylabel="median best cost", xscale="log", yscale="log")
    lines: dict[str, Any] = {}
    for axis in axes[0]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            lines[str(label)] = handle
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=7, fontsize=8)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=90)
