"""Closed-loop success on a frozen manifest, with its floors, ceiling and intervals.

An episode always uses its whole step budget: the simulator's truth judges it afterwards and never stops it.
Its result is a function of (pair, seed, policy) alone, whatever the number of workers.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8

from vjepa_mpc.controller import Controller, ControllerState, ControlSettings
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import write_text
from vjepa_mpc.episodes import Diary, EpisodeResult, Picture, Scene
from vjepa_mpc.executor import Executor, Pool, portable
from vjepa_mpc.fixed_rate import FixedRate, Metronome
from vjepa_mpc.governors import Guards
from vjepa_mpc.intervals import upper_bound, wilson_interval
from vjepa_mpc.lockstep import play_together
from vjepa_mpc.planners.base import Planner
from vjepa_mpc.robots.base import Observation, RobotSpec, SimulatedRobot
from vjepa_mpc.robots.task import Task
from vjepa_mpc.robots.tasks import Manifest, Pair
from vjepa_mpc.robots.world import MujocoWorld
from vjepa_mpc.scenes import Failure, Scenes, ScenesElsewhere, SceneSetup, ScenesHere
from vjepa_mpc.world_model import WorldModel


@runtime_checkable
class Policy(Protocol):
    """Chooses actions towards a goal. Told the goal's state only for privileged ceilings."""

    name: str

    def begin(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None: ...

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]: ...

    def note(self, applied: Float[np.ndarray, "a"]) -> Mapping[str, float]:
        """Told the action truly applied; answers with figures of the step."""
        ...


class PlannedPolicy:
    """A world model and a planner in closed loop."""

    def __init__(
        self,
        model: WorldModel,
        planner: Planner,
        settings: ControlSettings,
        name: str = "planner",
        guards: Guards | None = None,
    ) -> None:
        self.model, self.planner, self.settings, self.name, self.guards = model, planner, settings, name, guards
        self._state = ControllerState()
        self._figures: dict[str, float] = {}

    def begin(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None:
        self._controller = self.controller(goal, seed)
        self._state = ControllerState()

    def controller(self, goal: UInt8[np.ndarray, "height width 3"], seed: int) -> Controller:
        """Whoever decides towards a goal picture."""
        generator = torch.Generator(self.model.device).manual_seed(seed)
        return Controller(self.model, self.planner, goal, self.settings, generator, self.guards)

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        decision, self._state = self._controller.step(observation, self._state)
        self._figures = decision.figures()
        return decision.action

    def note(self, applied: Float[np.ndarray, "a"]) -> Mapping[str, float]:
        self._state = self._controller.applied(applied, self._state)
        return self._figures


class FixedRatePolicy(PlannedPolicy):
    """The same at a fixed rate: an action every `period_s` of wall time, whether or not a plan is done. What it
    does depends on the machine."""

    def __init__(
        self,
        model: WorldModel,
        planner: Planner,
        settings: ControlSettings,
        period_s: float,
        name: str = "planner",
        guards: Guards | None = None,
    ) -> None:
        super().__init__(model, planner, settings, name, guards)
        self.period_s = period_s
        self._pool: ThreadPoolExecutor | None = None

    def begin(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None:
        super().begin(goal, goal_state, seed)
        if self._pool is not None:
            self._pool.shutdown()  # the last episode's plan is not wanted any more, but it holds the generator
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._loop, self._metronome = FixedRate(self._controller, self._pool.submit), Metronome(self.period_s)

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        self._metronome.wait()
        tick = self._loop.tick(observation)
        spent = tick.decision.plan.evaluations if tick.decision is not None and tick.executed == "planned" else 0
        self._figures = {
            "latent_cost": tick.view.latent_cost,
            "evaluations": spent,
            "reached": float(tick.reached),
        }
        return tick.action

    def note(self, applied: Float[np.ndarray, "a"]) -> Mapping[str, float]:
        self._loop.applied(applied)
        return self._figures


class RandomPolicy:
    """Uniform actions inside the bounds: a floor."""

    name = "random"

    def __init__(self, spec: RobotSpec) -> None:
        self.spec = spec

    def begin(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None:
        self._rng = np.random.default_rng(seed)

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        return self._rng.uniform(self.spec.action_low, self.spec.action_high)

    def note(self, applied: Float[np.ndarray, "a"]) -> Mapping[str, float]:
        return {}


class NoOpPolicy(RandomPolicy):
    """Never moves: a floor."""

    name = "no-op"

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        return np.zeros(len(self.spec.action_names))


@runtime_checkable
class Privileged(Protocol):
    """A policy that is shown the simulator itself, before its first episode: a ceiling or a floor, no more."""

    def watch(self, robot: SimulatedRobot) -> None: ...


class ScriptedPolicy(RandomPolicy):
    """Knows the goal's state and the world's: the ceiling."""

    name = "scripted"

    def __init__(self, task: Task) -> None:
        super().__init__(task.spec)
        self.task = task

    def watch(self, robot: SimulatedRobot) -> None:
        self._robot = robot

    def begin(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None:
        self._script = self.task.script(goal_state)

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        return self._script(self._robot.true_state())


class GreedyPixelPolicy(RandomPolicy):
    """Tries actions in the simulator itself and takes the one whose next picture is most like the goal's: a floor.

    It has a perfect model and looks one step ahead by the mean absolute difference of pixels: what it does
    not reach needs a better distance than pixels, or more foresight than one step. It tries `candidates` - 1
    random actions, a quarter of them of full size, and none.
    """

    name = "greedy-pixel"

    def __init__(self, spec: RobotSpec, candidates: int = 16) -> None:
        super().__init__(spec)
        self.candidates = candidates

    def watch(self, robot: SimulatedRobot) -> None:
        if not isinstance(robot, MujocoWorld):
            raise InputError(f"{robot.spec.name} cannot be set back, which the greedy-pixel floor needs.")
        self._robot = robot

    def begin(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None:
        super().begin(goal, goal_state, seed)
        self._goal = goal.astype(np.int16)

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        low, high = np.array(self.spec.action_low), np.array(self.spec.action_high)
        tried = self._rng.uniform(low, high, (self.candidates, len(low)))
        tried[: self.candidates // 4] = np.where(tried[: self.candidates // 4] < (low + high) / 2, low, high)
        tried[-1] = 0.0
        now = self._robot.snapshot()
        differences = []
        for action in tried:
            self._robot.apply(action)
            (picture,) = self._robot.observe().images.values()
            differences.append(np.abs(picture - self._goal).mean())
            self._robot.restore(now)
        return tried[int(np.argmin(differences))]


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
        diary.turn(policy.begin)
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


def read_log(log: Path | None) -> dict[int, EpisodeResult]:
    """Episodes of an earlier run. Lines that a crash cut short are removed from the file, lest the next one
    be written onto them."""
    done: dict[int, EpisodeResult] = {}
    if log is None or not log.is_file():
        return done
    text = log.read_text(encoding="utf-8", errors="replace")
    whole = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
            frozen: dict[str, Any] = {}
            for key, value in row.items():
                frozen[key] = tuple(value) if isinstance(value, list) else value
            result = EpisodeResult(**frozen)
        except (ValueError, TypeError, AttributeError):
            continue
        done[result.index] = result
        whole.append(line + "\n")
    if "".join(whole) != text:
        write_text(log, "".join(whole))
    return done


def summarise(results: Sequence[EpisodeResult], task: Task | None = None) -> dict[str, Any]:
    """Success at first hit and held with Wilson intervals, final distance, latency, evaluations a step.

    With the `task` also steps to success, and how many decisions took longer than its control period.
    """
    n = len(results)
    times = sorted(value for result in results for value in result.milliseconds)
    steps = sum(len(result.distances) for result in results)
    summary: dict[str, Any] = {"episodes": n}
    for name in ("hit", "held"):
        count = sum(getattr(result, name) for result in results)
        low, high = wilson_interval(count, n)
        summary[name] = {"count": count, "rate": count / n, "wilson_low": low, "wilson_high": high}
    judged = [result for result in results if result.model_reached is not None]
    summary |= {
        "final_distance_median_m": statistics.median(result.distances[-1] for result in results),
        "milliseconds_median": statistics.median(times),
        "milliseconds_p95": times[min(len(times) - 1, int(0.95 * len(times)))],
        "evaluations_per_step": sum(result.evaluations for result in results) / steps,
        "model_says_reached": {
            "count": len(judged),
            "of_which_held": sum(result.held for result in judged),
        },
    }
    if any(result.together > 1 for result in results):  # a decision is everyone's: so long each has waited for it
        shares = [value / result.together for result in results for value in result.milliseconds]
        summary["milliseconds_each_median"] = statistics.median(shares)
    entered = sum(result.intrusion > 0 for result in results)
    summary["violations"] = {
        "count": entered, "rate": entered / n, "upper_95": upper_bound(entered, n),
        "deepest_m": max(result.intrusion for result in results),
    }  # fmt: skip
    if task is not None:
        late = sum(value > 1e3 * task.spec.control_period_s for value in times)
        reached = [steps_to_success(result, task) for result in results]
        summary |= {
            "steps_to_hit_median": _median([hit for hit, _ in reached]),
            "steps_to_hold_median": _median([hold for _, hold in reached]),
            "deadline_misses": {"count": late, "rate": late / len(times), "period_s": task.spec.control_period_s},
        }
    return summary


def steps_to_success(result: EpisodeResult, task: Task) -> tuple[int | None, int | None]:
    """After how many steps an episode first was within the task's radius, and, where it held, from when on it stayed
    there; None where it never was, or did not hold."""
    inside = [distance <= task.success_radius_m for distance in result.distances]
    first = inside.index(True) + 1 if True in inside else None
    if not result.held:
        return first, None
    left = max((step for step, within in enumerate(inside) if not within), default=-1)
    return first, left + 2


def _median(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else None
