"""Closed-loop success on a frozen manifest, with its floors, ceiling and intervals.

An episode always uses its whole step budget: the simulator's truth judges it afterwards and never stops it.
Its result is a function of (pair, seed, policy) alone, whatever the number of workers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.episodes import Diary, EpisodeResult, Picture, Scene
from vjepa_mpc.executor import Executor, Pool, portable
from vjepa_mpc.lockstep import play_together
from vjepa_mpc.policies import FixedRatePolicy, PlannedPolicy, Policy, Privileged, Turning
from vjepa_mpc.results import read_log
from vjepa_mpc.robots.base import SimulatedRobot
from vjepa_mpc.robots.task import Task
from vjepa_mpc.robots.tasks import Manifest, Pair
from vjepa_mpc.scenes import Failure, Scenes, ScenesElsewhere, SceneSetup, ScenesHere


class Arena:
    """A worker's state: a robot, a task and a policy, built once."""

    def __init__(
        self, robot: SimulatedRobot, task: Task, policy: Policy, seed: int, levels: Mapping[str, float] | None = None
    ) -> None:
        self.robot, self.task, self.policy, self.seed, self.levels = robot, task, policy, seed, levels
        if isinstance(policy, Privileged):
            policy.watch(robot)

    def close(self) -> None:
        self.robot.close()


@dataclass(frozen=True)
class ArenaSetup:
    """Builds an `Arena` in a worker. `robot` and `policy` are called there, once. `levels`: factors of variation."""

    robot: Callable[[], SimulatedRobot]
    policy: Callable[[], Policy]
    task: Task
    seed: int
    levels: Mapping[str, float] | None = None

    def __call__(self) -> Arena:
        return Arena(self.robot(), self.task, self.policy(), self.seed, self.levels)


def run_pair(
    arena: Arena,
    item: tuple[int, Pair],
    *,
    steps: int | None = None,
    film: list[UInt8[np.ndarray, "height width 3"]] | None = None,
) -> EpisodeResult:
    """Play one start/goal pair to the end of the step budget; a policy begins anew with each of its sub-goals.

    `steps` breaks it off earlier, to measure what it costs; to `film` are added the goal's picture and every view.
    """
    index, pair = item
    scene, policy = Scene(arena.robot, arena.task, arena.levels), arena.policy
    diary = Diary(index, arena.task, arena.seed, scene.begin(index, pair), film)
    for _ in range(arena.task.step_budget if steps is None else steps):
        diary.turn(policy.begin, policy.turn if isinstance(policy, Turning) else None)
        started = time.perf_counter()
        action = policy.act(diary.observation)
        milliseconds = 1e3 * (time.perf_counter() - started)
        moved = scene.act(action)
        diary.note(milliseconds, moved, policy.note(moved.applied))
    scene.stop()
    return diary.result()


FILM_FRAMES, FILM_SIDE = 121, 128  # of an episode, at most; pixels
Film = UInt8[np.ndarray, "t height width 3"]
"""The goal's picture, then views from the start on, evenly spread where there are too many."""


@dataclass(frozen=True)
class Series:
    """Episodes of one policy: the first `pairs` of a manifest (None = all). Those already in `log` (JSON lines) are
    not played again; finished ones are appended to it as they come. With `film` pictures are kept of each. `batch`:
    episodes that are decided together (of a planner's series only; `vjepa_mpc.lockstep`)."""

    manifest: Manifest
    setup: ArenaSetup
    pairs: int | None = None
    log: Path | None = None
    film: bool = False
    batch: int = 1

    def items(self) -> list[tuple[int, Pair]]:
        """The pairs to be played, by number."""
        return list(enumerate(self.manifest.pairs))[: self.pairs]

    def groups(self, number: int, done: Collection[int]) -> list[Group]:
        """What is not `done` yet of this series, which is number `number`, `batch` at a time."""
        left = [(index, pair) for index, pair in self.items() if index not in done]
        return [
            Group(number, tuple(left[first : first + self.batch]), self.film)
            for first in range(0, len(left), self.batch)
        ]


@dataclass(frozen=True)
class Group:
    """Pairs of series number `series` that are played at once: one, or as many as are decided together."""

    series: int
    pairs: tuple[tuple[int, Pair], ...]
    film: bool = False


@dataclass(frozen=True)
class ArenasSetup:
    """Builds the arenas of several series in a worker, when their turn comes. `batches`: how many episodes of each are
    decided together; `physics`: processes beside the worker for those (0: none)."""

    setups: tuple[ArenaSetup, ...]
    batches: tuple[int, ...]
    physics: int = 0

    def __call__(self) -> Arenas:
        return Arenas(self)


Played = tuple[int, EpisodeResult | Failure, Film | None]
"""A pair's number, what its episode came to, and its pictures where asked for."""


class Arenas:
    """A worker's state: what the series it is at needs. Series come one after the other, so one arena is kept; the next
    may have its robot, for a pair places and paints it anew (factors of variation, too, where the next has some)."""

    def __init__(self, setup: ArenasSetup) -> None:
        self.setup = setup
        self._at: tuple[int, Arena] | None = None
        self._policy: tuple[int, PlannedPolicy] | None = None
        self._scenes: Scenes | None = None

    def play(self, group: Group, steps: int | None = None) -> list[Played]:
        """Play a group; `steps` breaks it off earlier. What fails is raised, unless others have come to an end."""
        number = group.series
        if self.setup.batches[number] == 1:
            ((index, pair),) = group.pairs
            film: list[Picture] | None = [] if group.film else None
            try:
                alone = run_pair(self._arena(number), (index, pair), steps=steps, film=film)
            except Exception:
                self._close_arena()  # whatever state it was left in, the next episode does not begin with it
                raise
            return [(index, alone, None if film is None else _shortened(film))]
        arena, policy = self.setup.setups[number], self._decider(number)
        if self._scenes is None:
            some = [SceneSetup(one.robot, one.task, one.levels) for one in self.setup.setups]
            self._scenes = ScenesElsewhere(some, self.setup.physics) if self.setup.physics else ScenesHere(some)
        ended = play_together(
            policy.controller, self._scenes, number, group.pairs, task=arena.task, seed=arena.seed, steps=steps,
            filmed=group.film,
        )  # fmt: skip
        played: list[Played] = []
        for (index, _), (result, seen) in zip(group.pairs, ended, strict=True):
            if isinstance(result, Failure):
                if len(group.pairs) == 1:
                    raise result.error
                played.append((index, Failure(portable(result.error)), None))
            else:
                played.append((index, result, None if seen is None else _shortened(seen)))
        return played

    def _arena(self, number: int) -> Arena:
        if self._at is not None and self._at[0] != number:
            before, now = self.setup.setups[self._at[0]], self.setup.setups[number]
            if before.robot is now.robot and bool(before.levels) == bool(now.levels):
                self._at = number, Arena(self._at[1].robot, now.task, now.policy(), now.seed, now.levels)
            else:
                self._close_arena()
        if self._at is None:
            self._at = number, self.setup.setups[number]()
        return self._at[1]

    def _decider(self, number: int) -> PlannedPolicy:
        if self._policy is None or self._policy[0] != number:
            policy = self.setup.setups[number].policy()
            if not isinstance(policy, PlannedPolicy) or isinstance(policy, FixedRatePolicy):
                raise InputError(f"{policy.name} cannot be decided together with others; leave out the batch.")
            self._policy = number, policy
        return self._policy[1]

    def _close_arena(self) -> None:
        if self._at is not None:
            self._at[1].close()
            self._at = None

    def close(self) -> None:
        self._close_arena()
        if self._scenes is not None:
            self._scenes.close()


def _play(arenas: Arenas, group: Group) -> list[Played]:
    return arenas.play(group)


def _shortened(film: Sequence[UInt8[np.ndarray, "height width 3"]]) -> Film:
    chosen = np.unique(np.linspace(1, len(film) - 1, min(FILM_FRAMES - 1, len(film) - 1)).round().astype(int))
    every = -(-max(film[0].shape[:2]) // FILM_SIDE)
    return np.stack([film[index][::every, ::every] for index in (0, *chosen)])


@dataclass(frozen=True)
class FailedEpisode:
    """Pair `index` of series number `series` that gave no result in so many `tries`, and why the last did not."""

    series: int
    index: int
    reason: str
    tries: int


def evaluate_all(
    series: Sequence[Series],
    executor: Executor,
    *,
    on_result: Callable[[int, EpisodeResult, Film | None], object] | None = None,
    tries: int | None = None,
    failed: list[FailedEpisode] | None = None,
    physics: int = 0,
) -> list[list[EpisodeResult]]:
    """Play several series, one after the other, on the same workers; the results of each.

    `on_result` is called with the series' number, each episode that is played now and, where asked for, its pictures.
    The first episode that fails ends it all; with `tries` it is tried so often, then added to `failed`, and the others
    are played. What is missing of a series is not in its results. `physics`: processes for the robots of series that
    are played in batches, beside each worker (none: in the worker). An episode of a batch that fails is tried again by
    itself, and so are all of a batch whose worker dies.
    """
    done = [read_log(one.log) for one in series]
    groups = [group for number, one in enumerate(series) for group in one.groups(number, done[number])]
    alone: list[Group] = []
    wanted = tries or 1

    def keep(group: Group, played: Sequence[Played]) -> None:
        number, log = group.series, series[group.series].log
        for (_, pair), (index, result, film) in zip(group.pairs, played, strict=True):
            if isinstance(result, Failure):
                alone.append(Group(number, ((index, pair),), group.film))
                continue
            done[number][index] = result
            if log is not None:
                with log.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(asdict(result)) + "\n")
            if on_result is not None:
                on_result(number, result, film)

    def play(pool: Pool, some: Sequence[Group], each: int, before: int) -> None:
        if tries is None:
            order = iter(some)
            pool.map(_play, some, on_result=lambda played: keep(next(order), played))
            return
        for outcome in pool.outcomes(_play, some, each):
            group = some[outcome.index]
            if outcome.result is not None:
                keep(group, outcome.result)
            elif len(group.pairs) > 1 or before + outcome.tries < wanted:
                alone.extend(Group(group.series, (pair,), group.film) for pair in group.pairs)
            elif failed is not None:
                reason = f"{type(outcome.error).__name__}: {outcome.error}"
                failed.append(FailedEpisode(group.series, group.pairs[0][0], reason, before + outcome.tries))

    if groups:
        setup = ArenasSetup(tuple(one.setup for one in series), tuple(one.batch for one in series), physics)
        with executor.open(setup) as pool:
            play(pool, groups, 1 if any(one.batch > 1 for one in series) else wanted, 0)
            if alone:
                play(pool, list(alone), max(1, wanted - 1), 1)
    return [
        [done[number][index] for index, _ in one.items() if index in done[number]] for number, one in enumerate(series)
    ]


def evaluate(
    manifest: Manifest,
    setup: ArenaSetup,
    executor: Executor,
    *,
    pairs: int | None = None,
    log: Path | None = None,
    on_result: Callable[[EpisodeResult], object] | None = None,
    batch: int = 1,
    physics: int = 0,
) -> list[EpisodeResult]:
    """One series, see `Series` and `evaluate_all`."""

    def told(_: int, result: EpisodeResult, __: Film | None) -> None:
        if on_result is not None:
            on_result(result)

    one = Series(manifest, setup, pairs, log, batch=batch)
    return evaluate_all([one], executor, on_result=told, physics=physics)[0]
