"""The closed-loop benchmark: cells of a table, each a series of episodes that `evaluation` plays.

A cell is one policy on one task, in one variation, under one seed. Its episodes are kept in a file named by a hash of
all that they depend on, so that a run is resumed, extended or repeated in part without ever mixing two of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vjepa_mpc.episodes import EpisodeResult
from vjepa_mpc.evaluation import (
    Arenas,
    ArenaSetup,
    ArenasSetup,
    FailedEpisode,
    Film,
    Group,
    Series,
    evaluate_all,
)
from vjepa_mpc.executor import Executor
from vjepa_mpc.flops import Flops
from vjepa_mpc.policies import PlannedPolicy
from vjepa_mpc.results import read_log, summarise
from vjepa_mpc.robots.dynamics import FACTORS
from vjepa_mpc.robots.tasks import Manifest

Kind = Literal["planner", "actor", "floor", "ceiling"]
ALL = "all"
"""Every factor of variation at once, each at the level."""
EPISODES, FILMS = "episodes", "films"
KEPT_FILMS = 2  # successes and failures of a cell, of each
FILM_HEIGHT = 160  # pixels, about


@dataclass(frozen=True)
class Suite:
    """What is played where nothing else is said: the manifests' split, pairs of each, and the variations of it."""

    split: str
    pairs: int
    factors: tuple[str, ...]
    levels: tuple[float, ...]
    varied_pairs: int = 20


SUITES = {
    "small": Suite("dev", 12, (ALL,), (0.5,), 6),
    "full": Suite("test", 100, FACTORS, (0.5, 1.0)),
}


@dataclass(frozen=True)
class Cell:
    """One policy on one task, under the setup's seed and levels. `task`: as it was asked for; `played`: what the
    episodes depend on besides; `factor` and `level`: the variation's name ("" for the plain world); `batch`: episodes
    that are decided together."""

    task: str
    policy: str
    kind: Kind
    setup: ArenaSetup
    manifest: Manifest
    pairs: int
    factor: str = ""
    level: float = 0.0
    played: Mapping[str, Any] = field(default_factory=dict)
    flops: Flops | None = None
    batch: int = 1

    @property
    def key(self) -> str:
        """A name for files: what is played, and the start of a hash of all that its episodes depend on."""
        task = self.setup.task
        identity = {
            "task": [task.name, task.version, task.robot], "manifest": self.manifest.sha256, "seed": self.setup.seed,
            "levels": dict(self.setup.levels or {}), "policy": self.policy, "played": self.played,
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        variation = f" {self.factor} {self.level:g}" if self.factor else ""
        words = f"{self.task} {self.policy.rpartition('/')[2]}{variation}"
        plain = "".join(letter if letter.isalnum() else "-" for letter in words)
        return f"{plain.strip('-')[:80]}-{digest[:12]}"

    def series(self, folder: Path) -> Series:
        """Its episodes, kept in `folder`; pictures only of what is worth being looked at."""
        log = folder / EPISODES / f"{self.key}.jsonl"
        return Series(self.manifest, self.setup, self.pairs, log, film=self.kind != "floor", batch=self.batch)

    def finished(self, folder: Path) -> list[EpisodeResult]:
        """Those of its episodes that are in `folder`, in order."""
        done = read_log(folder / EPISODES / f"{self.key}.jsonl")
        return [done[index] for index in sorted(done) if index < self.pairs]


def levels_of(factor: str, level: float) -> dict[str, float]:
    """A variation's factors; nothing for the plain world ("")."""
    return dict.fromkeys(FACTORS, level) if factor == ALL else {factor: level} if factor else {}


Told = Callable[[int, EpisodeResult], object]


def play(
    cells: Sequence[Cell],
    executor: Executor,
    folder: Path,
    told: Told | None = None,
    *,
    tries: int = 2,
    physics: int = 0,
) -> list[FailedEpisode]:
    """Play what is missing of the cells into `folder`; `told(number of the cell, result)` as episodes come.

    An episode that fails, or whose worker dies, is tried `tries` times; those that gave no result are returned.
    """
    (folder / EPISODES).mkdir(parents=True, exist_ok=True)
    failed: list[FailedEpisode] = []

    def on_result(number: int, result: EpisodeResult, film: Film | None) -> None:
        if film is not None:
            _keep_film(cells[number], result, film, folder)
        if told is not None:
            told(number, result)

    some = [cell.series(folder) for cell in cells]
    evaluate_all(some, executor, on_result=on_result, tries=tries, failed=failed, physics=physics)
    return failed


def failures(cells: Sequence[Cell], failed: Sequence[FailedEpisode]) -> list[dict[str, Any]]:
    """Failed episodes by name, for the record."""
    return [
        {
            "task": cells[one.series].task, "policy": cells[one.series].policy, "factor": cells[one.series].factor,
            "level": cells[one.series].level, "seed": cells[one.series].setup.seed, "pair": one.index,
            "reason": one.reason, "tries": one.tries,
        }
        for one in failed
    ]  # fmt: skip


def _keep_film(cell: Cell, result: EpisodeResult, film: Film, folder: Path) -> None:
    """Write the first few successes and failures, the goal beside every view."""
    from vjepa_mpc.recorders import write_video

    end = "held" if result.held else "lost"
    if len(list((folder / FILMS).glob(f"{cell.key}-*-{end}.mp4"))) >= KEPT_FILMS:
        return
    larger = max(1, FILM_HEIGHT // film.shape[1])  # in hard pixels
    film = film.repeat(larger, axis=1).repeat(larger, axis=2)
    gap = np.full((film.shape[1], 4, 3), 255, np.uint8)
    frames = [np.concatenate([film[0], gap, view], axis=1) for view in film[1:]]
    rate = 1 / cell.setup.task.spec.control_period_s
    write_video(folder / FILMS / f"{cell.key}-{result.index:04d}-{end}.mp4", frames, rate)


def films_of(cell_key: str, folder: Path) -> list[tuple[int, bool, Path]]:
    """The kept films of a cell: pair, whether it held, file."""
    found = []
    for path in sorted((folder / FILMS).glob(f"{cell_key}-????-*.mp4")):
        index, end = path.stem.rsplit("-", 2)[1:]
        found.append((int(index), end == "held", path))
    return found


def draw_plans(cells: Sequence[Cell], folder: Path) -> list[str]:
    """Draw the first plan (`vjepa_mpc.imagined`) of one success and one failure among the films of every planner's cell
    in the plain world, where that is not done yet; what cannot be drawn is told in sentences."""
    from vjepa_mpc.imagined import draw, first_plan

    lost: list[str] = []
    for cell in cells:
        if cell.kind != "planner" or cell.factor:
            continue
        filmed = {held: index for index, held, _ in reversed(films_of(cell.key, folder))}
        missing = [index for index in sorted(filmed.values()) if not _plan_file(cell.key, index, folder).exists()]
        if not missing:
            continue
        try:
            with closing(cell.setup()) as arena:
                assert isinstance(arena.policy, PlannedPolicy)
                for index in missing:
                    item = (index, cell.manifest.pairs[index])
                    plan = first_plan(arena.policy, arena.robot, arena.task, item, arena.seed)
                    draw(plan, _plan_file(cell.key, index, folder))
        except Exception as error:  # the run's results stand without its pictures
            lost.append(f"No plan of {cell.task}: {cell.policy} is drawn: {error}")
    return lost


def _plan_file(cell_key: str, index: int, folder: Path) -> Path:
    return folder / FILMS / f"{cell_key}-{index:04d}-plan.png"


def plans_of(cell_key: str, folder: Path) -> list[tuple[int, Path]]:
    """The drawn plans of a cell: pair, file."""
    found = sorted((folder / FILMS).glob(f"{cell_key}-????-plan.png"))
    return [(int(path.stem.rsplit("-", 2)[1]), path) for path in found]


@dataclass(frozen=True)
class Price:
    """What is left to play: `seconds` of one worker, by cell and for an episode of each."""

    episodes: int
    left: int
    each: tuple[float, ...]
    seconds: float
    step_ms: Mapping[str, float]


def price(cells: Sequence[Cell], folder: Path, workers: int = 1, physics: int = 0) -> Price:
    """Measure a few steps of every policy on every task, here, in the plain world, and add up what is missing; every
    one of the `workers` builds each cell's world once."""
    measured: dict[tuple[str, str], tuple[float, float, float]] = {}
    each, total, left_episodes, seconds = [], 0, 0, 0.0
    for cell in cells:
        pairs = len(cell.manifest.pairs[: cell.pairs])
        left = pairs - len(cell.finished(folder))
        total, left_episodes = total + pairs, left_episodes + left
        name = (cell.task, cell.policy)
        if left and name not in measured:
            measured[name] = _cost(cell, physics)
        build_s, begin_s, step_s = measured.get(name, (0.0, 0.0, 0.0))
        each.append(begin_s + step_s * cell.setup.task.step_budget)
        seconds += left * each[-1] + bool(left) * workers * build_s
    steps = {f"{task}: {policy}": round(1e3 * step, 2) for (task, policy), (_, _, step) in measured.items()}
    return Price(total, left_episodes, tuple(each), seconds, steps)


def _cost(cell: Cell, physics: int) -> tuple[float, float, float]:
    """Seconds to build what plays it and do a first step, which warms up; of an episode's beginning; and of each of its
    steps: shares of the batch's, where episodes are decided together."""
    pairs = tuple(enumerate(cell.manifest.pairs[: cell.pairs]))[: cell.batch]
    times = []
    with closing(Arenas(ArenasSetup((cell.setup,), (cell.batch,), physics))) as arenas:
        for steps in (1, 1, 3):
            started = time.perf_counter()
            arenas.play(Group(0, pairs), steps)
            times.append(time.perf_counter() - started)
    step = max((times[2] - times[1]) / 2, 1e-4)
    return times[0], max(times[1] - step, 0.0) / len(pairs), step / len(pairs)


def rows(cells: Sequence[Cell], folder: Path) -> list[dict[str, Any]]:
    """The table: a row for every policy, task and variation that has been played, its seeds taken together."""
    grouped: dict[tuple[str, str, str, float], list[Cell]] = {}
    for cell in cells:
        grouped.setdefault((cell.task, cell.policy, cell.factor, cell.level), []).append(cell)
    table = []
    for (task, policy, factor, level), group in grouped.items():
        by_seed = {cell.setup.seed: cell.finished(folder) for cell in group}
        results = [result for one in by_seed.values() for result in one]
        if not results:
            continue
        first = group[0]
        row: dict[str, Any] = {
            "task": task, "policy": policy, "kind": first.kind, "factor": factor, "level": level,
            "manifest": first.manifest.split, "sha256": first.manifest.sha256,
            "task_version": first.manifest.task_version,
            "wanted": sum(len(cell.series(folder).items()) for cell in group),
            **summarise(results, first.setup.task),
            "held_by_seed": {str(seed): sum(result.held for result in one) for seed, one in by_seed.items()},
            "cells": {str(cell.setup.seed): cell.key for cell in group},
        }  # fmt: skip
        row["evaluations"] = sum(result.evaluations for result in results)
        if first.flops is not None:
            row["flops"] = {**asdict(first.flops), "step": first.flops.step(row["evaluations_per_step"])}
        table.append(row | {"played": dict(first.played)})
    return table


def hardware() -> dict[str, Any]:
    """The machine that a table was made on: its processor, cores and GPU."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = lines[0] if lines else name
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": name, "cores": os.cpu_count(), "gpu": gpu}
