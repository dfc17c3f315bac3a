"""Scaling, measured: the same episodes by 1, 2, 4 ... workers, by as many processes that nothing coordinates, and in
batches.

For each number of workers all ways are opened, warmed, and then measured in turn, so that what else the machine does
meets all of them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import cloudpickle

from vjepa_mpc.core.errors import WorkerDiedError
from vjepa_mpc.evaluation import Arenas, ArenaSetup, ArenasSetup, Group, Played
from vjepa_mpc.executor import Death, LocalExecutor, Pool, Processes, RayExecutor, unpack
from vjepa_mpc.robots.tasks import Pair
from vjepa_mpc.scaling import Parts, Shares, Span, shares
from vjepa_mpc.scenes import Failure

APART, LOCAL, RAY = "apart", "local", "ray"
"""Processes that nobody coordinates: what the machine allows; workers of this program, local and on Ray."""


@dataclass(frozen=True)
class Run:
    """One measurement: the parent's clock from first item to last answer, its processor time, and every item's span.
    `start_s` and `start_parent_s`: of starting the workers and a first step in each."""

    way: str
    workers: int
    began: float
    ended: float
    spans: tuple[Span, ...]
    parent_s: float
    start_s: float
    start_parent_s: float

    @property
    def wall_s(self) -> float:
        return self.ended - self.began

    @property
    def episodes(self) -> int:
        return sum(span.episodes for span in self.spans)

    @property
    def rate(self) -> float:
        """Episodes a second: of processes apart the sum of each one's own, since none waits for another."""
        if self.way != APART:
            return self.episodes / self.wall_s
        by_worker: dict[int, list[Span]] = {}
        for span in self.spans:
            by_worker.setdefault(span.worker, []).append(span)
        return sum(
            sum(one.episodes for one in own) / (own[-1].end - own[0].begin) for own in by_worker.values()
        )

    def shares(self) -> Shares:
        return shares(self.spans, self.workers, self.began, self.ended)


def timed(arenas: Arenas, group: Group, steps: int | None = None) -> tuple[Span, list[Played]]:
    """Play a group, and say when. The answer is what a worker of a benchmark would send."""
    begin = time.monotonic()  # one clock for all processes of a machine
    played = arenas.play(group, steps)
    return Span(os.getpid(), begin, time.monotonic(), len(group.pairs)), played


def _share(arenas: Arenas, groups: Sequence[Group], steps: int | None) -> list[Span]:
    return [timed(arenas, group, steps)[0] for group in groups]


Measure = Callable[[Sequence[Group], int | None], tuple[float, float, list[Span], float]]
"""Plays so many steps of groups; when it began and ended, the spans, and the parent's processor time."""


def _by_pool(pool: Pool) -> Measure:
    def measure(groups: Sequence[Group], steps: int | None) -> tuple[float, float, list[Span], float]:
        spans, began, cpu = [], time.monotonic(), time.process_time()
        for outcome in pool.outcomes(partial(timed, steps=steps), groups):
            if outcome.result is None:
                raise outcome.error or WorkerDiedError("A worker gave no answer.")
            spans.append(outcome.result[0])
        return began, time.monotonic(), spans, time.process_time() - cpu

    return measure


def _by_processes(processes: Processes) -> Measure:
    def measure(groups: Sequence[Group], steps: int | None) -> tuple[float, float, list[Span], float]:
        work = cloudpickle.dumps(partial(_share, steps=steps))
        began, cpu = time.monotonic(), time.process_time()
        for worker in range(processes.count):
            processes.send(worker, work, cloudpickle.dumps(groups[worker :: processes.count]))
        spans: list[Span] = []
        for _ in range(processes.count):
            _, answer = processes.receive()
            if isinstance(answer, Death):
                raise WorkerDiedError(f"A process died while it was measured ({answer.reason}).")
            spans += unpack(answer)
        return began, time.monotonic(), spans, time.process_time() - cpu

    return measure


def measure_workers(
    setup: ArenaSetup,
    pairs: Sequence[tuple[int, Pair]],
    workers: int,
    *,
    ray: bool = False,
    repeats: int = 1,
    steps: int | None = None,
    told: Callable[[str], object] = lambda words: None,
) -> list[Run]:
    """All ways with so many workers of one thread each, in turn, `repeats` times (back and forth, lest a drift of the
    machine's speed favour one). `steps` breaks episodes off."""
    arenas = ArenasSetup((setup,), (1,))
    groups = [Group(0, (pair,)) for pair in pairs]
    runs: list[Run] = []
    with ExitStack() as stack:
        ways: list[tuple[str, Measure, float, float]] = []
        for way in (APART, LOCAL, *((RAY,) if ray else ())):
            told(f"{workers} x {way}: starting")
            began, cpu = time.monotonic(), time.process_time()
            measure = _opened(stack, way, workers, arenas)
            # As many items as there are workers: one each, which builds its world and does a first step.
            _, ready, _, _ = measure([groups[0]] * workers, 1)
            ways.append((way, measure, ready - began, time.process_time() - cpu))
        for repeat in range(repeats):
            for way, measure, start_s, start_parent_s in ways[:: 1 if repeat % 2 == 0 else -1]:
                told(f"{workers} x {way}: measuring, {repeat + 1} of {repeats}")
                since, until, spans, parent = measure(groups, steps)
                runs.append(Run(way, workers, since, until, tuple(spans), parent, start_s, start_parent_s))
    return runs


def _opened(stack: ExitStack, way: str, workers: int, arenas: ArenasSetup) -> Measure:
    if way == APART:
        processes = Processes(workers, cloudpickle.dumps(arenas), threads=1)
        stack.callback(processes.stop, at_once=True)
        return _by_processes(processes)
    executor = LocalExecutor(workers) if way == LOCAL else RayExecutor(workers)
    return _by_pool(stack.enter_context(executor.open(arenas)))


def traffic(setup: ArenaSetup, pair: tuple[int, Pair], steps: int | None) -> dict[str, float]:
    """What travels: bytes of the setup (once a worker, on Ray once), of an item and of its answer, and milliseconds to
    pickle and unpickle the two."""
    arenas, group = ArenasSetup((setup,), (1,)), Group(0, (pair,))
    with closing(Arenas(arenas)) as here:
        answer = timed(here, group, steps)
    item, reply = cloudpickle.dumps(group), cloudpickle.dumps((True, answer))
    began = time.perf_counter()
    for _ in range(20):
        cloudpickle.loads(cloudpickle.dumps(group))
        cloudpickle.loads(cloudpickle.dumps((True, answer)))
    milliseconds = 1e3 * (time.perf_counter() - began) / 20
    return {
        "setup_bytes": len(cloudpickle.dumps(arenas)), "item_bytes": len(item), "answer_bytes": len(reply),
        "pickling_ms": milliseconds,
    }  # fmt: skip


@dataclass(frozen=True)
class BatchRun:
    """Episodes that were decided together: episodes a second, milliseconds of a decision of all, how many episodes end
    as they do one at a time, and the largest difference of their distances [m]."""

    batch: int
    physics: int
    rate: float
    decision_ms: float
    same: int
    episodes: int
    apart_m: float


def measure_batches(
    setup: ArenaSetup,
    pairs: Sequence[tuple[int, Pair]],
    batches: Sequence[int],
    *,
    physics: int = 0,
    repeats: int = 1,
    steps: int | None = None,
    told: Callable[[str], object] = lambda words: None,
) -> list[BatchRun]:
    """One at a time and in batches of these sizes, in this process, in turn; the first is one at a time."""
    sizes = [1, *(size for size in batches if size > 1)]
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    results: dict[int, dict[int, Any]] = {}
    with ExitStack() as stack:
        made: dict[int, Arenas] = {}
        for size in sizes:
            told(f"batch of {size}: starting")
            arenas = Arenas(ArenasSetup((setup,), (size,), physics if size > 1 else 0))
            made[size] = stack.enter_context(closing(arenas))
            arenas.play(Group(0, tuple(pairs[:size])), 1)
        for repeat in range(repeats):
            for size in sizes[:: 1 if repeat % 2 == 0 else -1]:
                told(f"batch of {size}: measuring, {repeat + 1} of {repeats}")
                began = time.perf_counter()
                played = [
                    one
                    for first in range(0, len(pairs), size)
                    for one in made[size].play(Group(0, tuple(pairs[first : first + size])), steps)
                ]
                seconds[size].append(time.perf_counter() - began)
                for _, result, _ in played:
                    if isinstance(result, Failure):
                        raise result.error
                results[size] = {index: result for index, result, _ in played}
    return [_batch_run(size, physics, seconds[size], results[size], results[1]) for size in sizes]


def _batch_run(
    size: int, physics: int, seconds: Sequence[float], found: dict[int, Any], alone: dict[int, Any]
) -> BatchRun:
    same = [(found[i].hit, found[i].held) == (alone[i].hit, alone[i].held) for i in alone]
    apart = max(
        abs(a - b) for i in alone for a, b in zip(found[i].distances, alone[i].distances, strict=True)
    )
    times = [value for one in found.values() for value in one.milliseconds]
    rate = len(found) / statistics.median(seconds)
    return BatchRun(size, physics if size > 1 else 0, rate, statistics.median(times), sum(same), len(same), apart)


def parts_of(runs: Sequence[Run], way: str, cores: int, bytes_an_episode: float) -> Parts | None:
    """What a prediction for a way takes from the runs; None where it was not measured with two workers or more.

    Episodes: of the one process apart, or where that was not measured of the least there were. The machine's sharing
    and the parent's costs: of the largest number of workers within the cores, or else of the least.
    """
    counts = sorted({run.workers for run in runs if run.way == way and run.workers > 1})
    if not counts:
        return None
    most = max([count for count in counts if count <= cores], default=counts[0])
    least = min(run.workers for run in runs)
    alone = [run for run in runs if run.way == APART and run.workers == least]
    beside = [run for run in runs if run.way == APART and run.workers == most]
    own = [run for run in runs if run.way == way and run.workers == most]
    one_rate = statistics.median(run.rate for run in alone) / least
    sharing = min(1.0, statistics.median(run.rate for run in beside) / most / one_rate)
    items = len(own[0].spans)
    serial = statistics.median(run.parent_s for run in own) / items
    between = [run.shares() for run in own]
    gaps = statistics.median(
        (one.between + one.before) * run.workers * run.wall_s / items for one, run in zip(between, own, strict=True)
    )
    start_parent = own[0].start_parent_s / most
    return Parts(
        tuple(span.seconds / span.episodes for run in alone for span in run.spans), sharing, serial,
        max(0.0, gaps - serial), max(0.0, own[0].start_s - own[0].start_parent_s), start_parent, bytes_an_episode, most,
    )  # fmt: skip


def table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for every way and number of workers, its repeats' medians: speed-up over this program's one worker (for
    processes apart, and where there is none, over one process apart), and where the workers' time went."""
    base = {
        way: statistics.median(run.rate for run in some)
        for way in (APART, LOCAL) if (some := [run for run in runs if run.way == way and run.workers == 1])
    }  # fmt: skip
    rows = []
    for workers, way in dict.fromkeys((run.workers, run.way) for run in runs):
        some = [run for run in runs if (run.workers, run.way) == (workers, way)]
        rate = statistics.median(run.rate for run in some)
        one = base.get(APART if way == APART else LOCAL, base.get(APART))
        allowed = statistics.median(run.rate for run in runs if (run.workers, run.way) == (workers, APART))
        parts = [asdict(run.shares()) for run in some]
        rows.append(
            {
                "workers": workers, "way": way, "episodes_a_second": rate,
                "speedup": None if one is None else rate / one,
                "of_what_the_machine_allows": rate / allowed,
                "seconds": statistics.median(run.wall_s for run in some),
                "start_s": some[0].start_s, "parent_ms_an_item": None if workers == 1 and way == LOCAL else
                1e3 * statistics.median(run.parent_s for run in some) / len(some[0].spans),
                **{name: statistics.median(one[name] for one in parts) for name in parts[0]},
            }
        )  # fmt: skip
    return rows


def ray_overhead(runs: Sequence[Run]) -> float | None:
    """How much longer Ray takes than local workers, as a share, over all numbers of workers: the median of what the
    same round's two took. One local worker is this process itself."""
    found = []
    for workers in {run.workers for run in runs}:
        local, spread = ([run for run in runs if (run.workers, run.way) == (workers, way)] for way in (LOCAL, RAY))
        found += [there.wall_s / here.wall_s - 1 for here, there in zip(local, spread, strict=False)]
    return statistics.median(found) if found else None
