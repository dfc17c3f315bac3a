"""Two benchmarks laid side by side: the same pairs, and which differences are more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vjepa_mpc.bench_files import Run
from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.intervals import bootstrap_interval, holm, sign_test, signed_rank_test


@dataclass(frozen=True)
class Comparison:
    """Policy `a` of the first run against `b` of the second, on `pairs` that both played, in one world.

    `held_a` and `held_b`: share of those held; `only_a` and `only_b`: pairs that one held more often than the other
    (with one seed: held, and the other did not). `farther`: how much farther [m] b ended than a, on average, with
    its 95 % bootstrap interval. The p-values are McNemar's exact one and Wilcoxon's signed-rank; `held_holm` and
    `distance_holm` are Holm's, over all rows of the comparison.
    """

    task: str
    factor: str
    level: float
    a: str
    b: str
    pairs: int
    held_a: float
    held_b: float
    only_a: int
    only_b: int
    held_p: float
    farther: float
    farther_low: float
    farther_high: float
    distance_p: float
    held_holm: float = 1.0
    distance_holm: float = 1.0


def compare(
    first: Run, second: Run, *, policy_a: str | None = None, policy_b: str | None = None, seed: int = 0
) -> list[Comparison]:
    """Compare what both runs played, pair by pair.

    Named policies are laid against each other; else each run's planners: those of equal name, or one against one.
    `InputError` where manifests or versions of a task differ, or nothing is left to compare.
    """
    _check_same(first, second)
    found = []
    cells = dict.fromkeys((row["task"], row["factor"], row["level"]) for row in first.rows)
    for cell in cells:
        mine, others = _of(first, cell, policy_a), _of(second, cell, policy_b)
        for one, other in _matched(mine, others, policy_a is not None or policy_b is not None):
            compared = _compared(first, one, second, other, np.random.default_rng(seed))
            if compared is not None:
                found.append(compared)
    if not found:
        raise InputError(_nothing(first, second, policy_a, policy_b))
    return _raised(found)


def _check_same(first: Run, second: Run) -> None:
    """Numbers of other pairs are never laid side by side."""
    theirs = {row["task"]: row for row in second.rows}
    for row in first.rows:
        other = theirs.get(row["task"], row)
        for name in ("task_version", "sha256"):
            if row[name] != other[name]:
                raise InputError(
                    f"{row['task']} was played with {name} {row[name]} ({row['manifest']}) in {first.folder} and "
                    f"{other[name]} ({other['manifest']}) in {second.folder}: not the same pairs; play one of them "
                    "again with the other's --manifest."
                )


def _of(run: Run, cell: tuple[str, str, float], policy: str | None) -> list[Mapping[str, Any]]:
    """A run's rows of a cell: the planners', or those of one policy."""
    rows = [row for row in run.rows if (row["task"], row["factor"], row["level"]) == cell]
    return [row for row in rows if (row["kind"] == "planner" if policy is None else row["policy"] == policy)]


def _matched(
    mine: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], named: bool
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    if named or (len(mine) == 1 and len(others) == 1):
        return [(one, other) for one in mine for other in others]
    return [(one, other) for one in mine for other in others if one["policy"] == other["policy"]]


def _by_pair(run: Run, row: Mapping[str, Any]) -> dict[int, tuple[float, float]]:
    """How often a pair was held, and how far from the goal it ended, on average over the seeds."""
    found: dict[int, list[tuple[float, float]]] = {}
    for episodes in run.episodes(row).values():
        for one in episodes:
            found.setdefault(one.index, []).append((float(one.held), one.distances[-1]))
    return {index: (float(np.mean([h for h, _ in some])), float(np.mean([d for _, d in some])))
            for index, some in found.items()}  # fmt: skip


def _compared(
    first: Run, one: Mapping[str, Any], second: Run, other: Mapping[str, Any], generator: np.random.Generator
) -> Comparison | None:
    ours, theirs = _by_pair(first, one), _by_pair(second, other)
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return None
    a, b = np.array([ours[index] for index in common]), np.array([theirs[index] for index in common])
    farther = np.round(b[:, 1] - a[:, 1], 9)  # equal distances must not differ by the last bit of a mean
    only_a, only_b = int((a[:, 0] > b[:, 0]).sum()), int((b[:, 0] > a[:, 0]).sum())
    return Comparison(
        one["task"], one["factor"], one["level"], one["policy"], other["policy"], len(common),
        float(a[:, 0].mean()), float(b[:, 0].mean()), only_a, only_b, sign_test(only_a, only_b),
        float(farther.mean()), *bootstrap_interval(farther, generator), signed_rank_test(farther),
    )  # fmt: skip


def _raised(found: Sequence[Comparison]) -> list[Comparison]:
    """Both p-values of every row are one family."""
    raised = holm([one.held_p for one in found] + [one.distance_p for one in found])
    return [
        replace(one, held_holm=held, distance_holm=distance)
        for one, held, distance in zip(found, raised[: len(found)], raised[len(found) :], strict=True)
    ]


def _nothing(first: Run, second: Run, policy_a: str | None, policy_b: str | None) -> str:
    """Why there is nothing to compare, and what could be."""
    for run, policy in ((first, policy_a), (second, policy_b)):
        names = list(dict.fromkeys(row["policy"] for row in run.rows))
        if policy is not None and policy not in names:
            return str(unknown_name(f"policy in {run.folder}", policy, names))
    tasks = {run.folder: sorted({row["task"] for row in run.rows}) for run in (first, second)}
    planners = [sorted({row["policy"] for row in run.rows if row["kind"] == "planner"}) for run in (first, second)]
    return (
        f"Nothing was played in both: {_listed(first.folder, tasks, planners[0])}; "
        f"{_listed(second.folder, tasks, planners[1])}. Name two policies with --policy-a and --policy-b."
    )


def _listed(folder: Path, tasks: Mapping[Path, Sequence[str]], planners: Sequence[str]) -> str:
    return f"{folder} has {', '.join(tasks[folder])} by {', '.join(planners) or 'no planner'}"
