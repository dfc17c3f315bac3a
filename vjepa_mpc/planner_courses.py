"""What a planner did on frozen problems: cost reached by evaluations and by time, kept as files, and compared."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import read_json, write_json
from vjepa_mpc.core.settings import from_plain, provenance

PUBLISHED, DEFAULT = "cem-800x10", "default"
PUBLISHED_EVALUATIONS = 8000
QUARTER = PUBLISHED_EVALUATIONS // 4
PEER = "swm-"
"""Begins the names of stable-worldmodel's solvers; what follows up to the next dash is the algorithm."""


@dataclass(frozen=True)
class Course:
    """How one planner did on a set of problems: after so many `evaluations` a problem the best costs, [points][b],
    and the wall time a problem until then; processor seconds in all and of these outside the cost function, and
    iterations. Where no candidate was allowed yet the best cost is +inf."""

    planner: str
    problems: str
    evaluations: tuple[int, ...]
    best: tuple[tuple[float, ...], ...] = field(repr=False)
    wall: tuple[float, ...] = field(repr=False)
    seconds: float = 0.0
    own_seconds: float = 0.0
    iterations: int = 0

    def median_at(self, evaluations: int) -> float:
        """The median over problems of the best cost after at most so many evaluations (+inf before the first)."""
        return _median(self.at(evaluations))

    @property
    def told(self) -> tuple[float, ...]:
        """What the search itself ended with, before its answers were judged: what other searches were told compares
        with that."""
        return self.best[-2:][0]

    def at(self, evaluations: int) -> tuple[float, ...]:
        """The best costs after at most so many evaluations (+inf before the first)."""
        known = [row for spent, row in zip(self.evaluations, self.best, strict=True) if spent <= evaluations]
        return known[-1] if known else (math.inf,) * len(self.best[0])

    def evaluations_to(self, cost: float) -> int | None:
        """Evaluations until the median is no more than `cost`; None if it never is."""
        for spent, row in zip(self.evaluations, self.best, strict=True):
            if _median(row) <= cost:
                return spent
        return None

    @property
    def medians(self) -> list[float]:
        """The median over problems at every point."""
        return [_median(row) for row in self.best]


def _median(row: Sequence[float]) -> float:
    with np.errstate(invalid="ignore"):  # of two infinite ones in the middle
        middle = float(np.median(row))
    return math.inf if math.isnan(middle) else middle


def kept_file(folder: Path, kind: str, what: Mapping[str, Any]) -> Path:
    """Where a measurement of this kind lies: `what` is all that it depends on, `planner` and `problems` among it."""
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:10]
    plain = "".join(letter if letter.isalnum() else "-" for letter in f"{what['problems']} {what['planner']}")
    return folder / kind / f"{plain}-{key}.json"


def kept_part(path: Path, name: str) -> dict[str, Any]:
    """What a measurement's file holds under this name. `InputError` for a file that was altered."""
    content = read_json(path)
    part = content.get(name) if isinstance(content, dict) else None
    if not isinstance(part, dict):
        raise InputError(f"{path} is not valid: it holds no {name}; delete it to measure that again.")
    return dict(part)


def course_file(folder: Path, what: Mapping[str, Any]) -> Path:
    """Where the course of a measurement lies."""
    return kept_file(folder, "courses", what)


def save_course(folder: Path, what: Mapping[str, Any], course: Course) -> None:
    """Keep a course, with what it was measured on and by which commit."""
    plain = asdict(course)
    plain["best"] = [[_known(cost) for cost in row] for row in course.best]
    write_json(course_file(folder, what), {"what": dict(what), "course": plain, "provenance": provenance()})


def load_course(folder: Path, what: Mapping[str, Any]) -> Course | None:
    """The course of an earlier run, None where there is none. `InputError` for a file that was altered."""
    path = course_file(folder, what)
    if not path.is_file():
        return None
    plain = kept_part(path, "course")
    plain["best"] = [[math.inf if cost is None else cost for cost in row] for row in plain["best"]]
    return from_plain(Course, plain, path)


def _known(cost: float) -> float | None:
    return cost if math.isfinite(cost) else None  # JSON has no infinity


def summary(courses: Sequence[Course], budget: int) -> list[dict[str, Any]]:
    """One row a planner and set of problems: medians at a quarter, half and all of the budget, wall seconds a problem,
    and the evaluations that reach what the published setting ends at, if it was measured."""
    goals = {course.problems: _median(course.told) for course in courses if course.planner == PUBLISHED}
    rows = []
    for course in courses:
        goal = goals.get(course.problems)
        rows.append(
            {
                "problems": course.problems,
                "planner": course.planner,
                "count": len(course.best[0]),
                "median_quarter": _known(course.median_at(budget // 4)),
                "median_half": _known(course.median_at(budget // 2)),
                "median": _known(course.median_at(10**9 if course.planner == PUBLISHED else budget)),
                "evaluations": course.evaluations[-1],
                "evaluations_to_published": None if goal is None else course.evaluations_to(goal),
                "wall_s_a_problem": course.wall[-1],
                "seconds": course.seconds,
                "own_ms_an_iteration": 1e3 * course.own_seconds / max(1, course.iterations),
            }
        )
    return rows


@dataclass(frozen=True)
class Bar:
    """One thing that the table should show: what, on which problems, the medians of both sides over `count` problems,
    the median over problems of the `difference`, ours less theirs, and whether that is none or below. Both sides have
    the same problems, and these differ more than what solves them. Ours is the lower one on `lower_on` of them."""

    what: str
    problems: str
    ours: float | None
    theirs: float | None
    difference: float | None
    met: bool
    lower_on: int
    count: int


def bars(courses: Sequence[Course], budget: int) -> list[Bar]:
    """The default planner against the published setting at a quarter of its evaluations, where that is the budget, and
    each algorithm against the peer's of the same name at equal evaluations: of the peer's settings the one that leaves
    ours the least."""
    found = []
    for problems in dict.fromkeys(course.problems for course in courses):
        here = {course.planner: course for course in courses if course.problems == problems}
        if PUBLISHED in here and DEFAULT in here and budget == QUARTER:
            theirs = here[PUBLISHED].at(PUBLISHED_EVALUATIONS + 1)
            found.append(_bar("default at a quarter", problems, here[DEFAULT].at(QUARTER), theirs))
        for name, course in here.items():
            peers = [other.at(budget) for key, other in here.items() if algorithm_of_peer(key) == name]
            against = [_bar(f"{name} against the peer's", problems, course.at(budget), peer) for peer in peers]
            if against:
                found.append(max(against, key=_against))
    return found


def _against(bar: Bar) -> tuple[bool, float]:
    """How much a bar speaks against ours."""
    return not bar.met, -math.inf if bar.difference is None else bar.difference


def _bar(what: str, problems: str, ours: Sequence[float], theirs: Sequence[float]) -> Bar:
    lower = sum(one < other for one, other in zip(ours, theirs, strict=True))
    difference = _median([0.0 if one == other else one - other for one, other in zip(ours, theirs, strict=True)])
    medians = _known(_median(ours)), _known(_median(theirs))
    met = medians[0] is not None and difference <= 0
    return Bar(what, problems, *medians, _known(difference), met, lower, len(ours))


def algorithm_of_peer(name: str) -> str | None:
    """"cem" of "swm-cem-small"; None for a planner of ours."""
    return name.removeprefix(PEER).split("-")[0] if name.startswith(PEER) else None
