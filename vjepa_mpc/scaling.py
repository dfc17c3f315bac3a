"""What many workers gain and where the rest goes: shares of a measured run, and a model that predicts larger ones.

The model (`predict`) plays a run on paper. One parent hands episodes to N workers, each as it becomes free. An item
costs the parent `serial_s`, one item after the other; it begins `latency_s` later; it takes as long as one of the
measured episodes, drawn from a seeded generator, divided by `sharing`, the share of its own speed that a worker keeps
beside others. Before the first, every worker starts up: `start_s` for all of them at once, and `start_serial_s` of the
parent for each. What comes out is limited by the slowest of three: workers (N / episode), parent (1 / serial_s), and
the last episodes, for which most workers wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vjepa_mpc.core.errors import InputError

TWO_WORKERS, RAY_OVERHEAD, LONG_ENOUGH_S = 1.7, 0.05, 1.0


@dataclass(frozen=True)
class Span:
    """When (s, of one clock) which worker was at an item of so many episodes."""

    worker: int
    begin: float
    end: float
    episodes: int = 1

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclass(frozen=True)
class Shares:
    """Where the time of all workers went between `began` and `ended`; the four add up to 1. `before`: until a worker's
    first item; `between`: from one item to the next; `after`: from its last to the end of the run."""

    busy: float
    before: float
    between: float
    after: float


def shares(spans: Sequence[Span], workers: int, began: float, ended: float) -> Shares:
    """The shares of a run. Workers that never had an item have waited from the beginning to the end (`after`)."""
    whole = workers * (ended - began)
    by_worker: dict[int, list[Span]] = {}
    for span in sorted(spans, key=lambda one: one.begin):
        by_worker.setdefault(span.worker, []).append(span)
    if len(by_worker) > workers or whole <= 0:
        raise InputError(f"{len(by_worker)} workers in a run of {workers}: a worker was replaced; measure again.")
    before = sum(own[0].begin - began for own in by_worker.values())
    between = sum(
        later.begin - earlier.end
        for own in by_worker.values() for earlier, later in pairwise(own)
    )  # fmt: skip
    after = sum(ended - own[-1].end for own in by_worker.values()) + (workers - len(by_worker)) * (ended - began)
    busy = sum(span.seconds for span in spans)
    return Shares(busy / whole, before / whole, between / whole, after / whole)


@dataclass(frozen=True)
class Parts:
    """What a prediction is made from, all measured: see the module's text. `episode_s`: measured seconds of episodes on
    a worker by itself; `beside`: how many workers were measured beside each other for the rest."""

    episode_s: tuple[float, ...]
    sharing: float
    serial_s: float
    latency_s: float
    start_s: float
    start_serial_s: float
    bytes_an_episode: float = 0.0
    beside: int = 2

    @property
    def mean_s(self) -> float:
        """Seconds of an episode beside others."""
        return sum(self.episode_s) / len(self.episode_s) / self.sharing

    @property
    def most_workers(self) -> float:
        """Workers that the parent could keep busy: beyond it they wait for each other's items to be handed out."""
        return float("inf") if self.serial_s <= 0 else (self.mean_s + self.latency_s) / self.serial_s + 1


@dataclass(frozen=True)
class Prediction:
    """A run on paper. `speedup` over one worker by itself that nobody coordinates, without start-up; `whole_speedup`
    with it. Lost shares of the workers' time while episodes are played: to the machine they share (`sharing`), to the
    parent and the way to it (`waiting`), and at the end (`idle`); with `useful` they add up to 1."""

    workers: int
    episodes: int
    start_s: float
    play_s: float
    speedup: float
    whole_speedup: float
    useful: float
    sharing: float
    waiting: float
    idle: float
    bytes_a_second: float

    @property
    def efficiency(self) -> float:
        return self.speedup / self.workers


def predict(parts: Parts, workers: int, episodes: int, seed: int = 0) -> Prediction:
    """Play `episodes` episodes with `workers` workers on paper."""
    if workers < 1 or episodes < 1 or not parts.episode_s or not parts.sharing > 0:
        raise InputError("A prediction needs at least a worker, an episode, and one that was measured.")
    generator = np.random.default_rng(seed)
    alone = generator.choice(np.asarray(parts.episode_s), episodes)
    free = [(0.0, worker) for worker in range(workers)]
    parent = waiting = busy = 0.0
    ends = [0.0] * workers
    for seconds in alone / parts.sharing:
        since, worker = heapq.heappop(free)
        parent = max(parent, since) + parts.serial_s
        begin = parent + parts.latency_s
        ends[worker] = begin + float(seconds)
        waiting += begin - since
        busy += float(seconds)
        heapq.heappush(free, (ends[worker], worker))
    play = max(ends)
    whole, useful = workers * play, float(alone.sum())
    start = parts.start_s + workers * parts.start_serial_s
    return Prediction(
        workers, episodes, start, play, useful / play, useful / (play + start), useful / whole,
        (busy - useful) / whole, waiting / whole, sum(play - end for end in ends) / whole,
        parts.bytes_an_episode * episodes / play,
    )  # fmt: skip


def assumptions(parts: Parts, cores: int) -> list[str]:
    """What the predictions take for granted, in sentences, with the measured values."""
    fast, slow = min(parts.episode_s), max(parts.episode_s)
    return [
        f"Every worker has a core like this machine's, and keeps {100 * parts.sharing:.0f} % of its speed beside "
        f"others, as {parts.beside} did here on {cores} cores.",
        f"Episodes take what {len(parts.episode_s)} measured ones took a worker alone ({fast:.2f} to {slow:.2f} s), "
        "drawn at random.",
        f"An item costs the parent {1e3 * parts.serial_s:.2f} ms and begins {1e3 * parts.latency_s:.2f} ms later, "
        f"however many workers there are: it could keep {parts.most_workers:,.0f} of them busy.",
        f"Workers start at once, in {parts.start_s:.1f} s, and cost the parent {1e3 * parts.start_serial_s:.0f} ms "
        "each.",
        f"An episode's {parts.bytes_an_episode / 1e3:.1f} kB of items and results find a network that carries them; "
        "no worker dies.",
    ]


@dataclass(frozen=True)
class Bar:
    """What is asked, against what was measured; `held` None: cannot be judged from this run, `text` says why."""

    text: str
    value: float | None
    held: bool | None


def two_workers_bar(speedup: float | None, cores: int) -> Bar:
    """Two workers at least 1.7 times one, on two cores."""
    if speedup is None or cores < 2:
        return Bar("two workers / one: not measured (needs --workers 1 and 2, and two cores)", None, None)
    return Bar(f"two workers / one, at least {TWO_WORKERS}", speedup, speedup >= TWO_WORKERS)


def ray_bar(overhead: float | None, episode_s: float) -> Bar:
    """Ray takes at most 5 % longer than local workers, on episodes of a second or more."""
    if overhead is None:
        return Bar("Ray against local: not measured (needs --ray)", None, None)
    if episode_s < LONG_ENOUGH_S:
        return Bar(f"Ray against local: not judged on episodes of {episode_s:.2f} s (under a second)", overhead, None)
    return Bar(f"Ray against local, at most {RAY_OVERHEAD:g} more", overhead, overhead <= RAY_OVERHEAD)
