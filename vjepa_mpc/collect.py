"""Collect simulated trajectories with several processes into one store.

Workers simulate and render; the parent alone writes, strictly in episode order. Episode i depends on
(settings, i) only, so the store comes out the same for any number of workers, and after any interruption.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from vjepa_mpc import __version__
from vjepa_mpc.collect_worker import describe_robot, prepare_worker, work
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.settings import commit
from vjepa_mpc.datasets.episode import Episode, StoreSpec
from vjepa_mpc.datasets.store import ZarrStore, ZarrWriter
from vjepa_mpc.exploration import SEGMENT_STEPS, EpisodeSettings, mixture_of
from vjepa_mpc.robots.base import RobotSpec

_IN_FLIGHT = 4  # episodes a worker may be ahead: bounds the memory, keeps the workers busy
_TOGETHER = 16  # episodes published with one flush, when so many are waiting


@dataclass(frozen=True)
class CollectSettings:
    """What to collect: until `out` holds `episodes` episodes of `episode`, with `workers` processes."""

    out: Path
    episodes: int = 1000
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    episode: EpisodeSettings = field(default_factory=EpisodeSettings)

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.workers < 1:
            raise InputError(f"episodes and workers must be at least 1, got {self.episodes} and {self.workers}.")

    def recipe(self) -> dict[str, Any]:
        """What the store's content depends on, besides the program version, as plain JSON values."""
        mixture = mixture_of(self.episode)
        kinds = [*mixture, *(["demonstration"] if "actor" in mixture else [])]
        segments = {name: list(SEGMENT_STEPS[name]) for name in kinds}
        settings = asdict(self.episode)
        del settings["actor"]  # a folder may be moved
        if self.episode.actor is None:
            del settings["actor_steps"]
        named = ("task", "factors", "behaviours", "actor_weights", "actor_drawn")
        episode = {name: value for name, value in settings.items() if name not in named or value}
        return {**episode, "mixture": dict(mixture), "segment_steps": segments}


@dataclass(frozen=True)
class CollectReport:
    """What happened: `episodes` and `frames` now in the store, `added` episodes, and how fast.

    `frames_per_s` counts from the first episode's arrival (starting the workers is left out).
    """

    out: Path
    episodes: int
    frames: int
    added: int
    seconds: float
    frames_per_s: float
    interrupted: bool


def collect(settings: CollectSettings, progress: Callable[[int, int], None] | None = None) -> CollectReport:
    """Fill `settings.out` up to the wanted number of episodes; what is there already is kept and continued.

    `progress` is called with the episodes in the store and those wanted. Ctrl-C stops after the episodes
    being written (`interrupted` in the report). `InputError`: the store was made with other settings
    (the differences are listed), is being written by another process, or cannot be written.
    """
    started = time.perf_counter()
    writer: ZarrWriter | None = None
    if settings.out.exists() and not (settings.out.is_dir() and not any(settings.out.iterdir())):
        writer = ZarrStore.append_to(settings.out)
    try:
        if writer is not None:
            _check_same("recipe", writer.spec.provenance.get("recipe", {}), settings.recipe(), settings.out)
        if writer is not None and len(writer) >= settings.episodes:
            return _report(settings, writer, 0, started, started, interrupted=False)
        with _workers(settings) as pool, _deferred_interrupt() as interrupted:
            spec, renderer = _submit(pool, describe_robot).result()
            wanted = _store_spec(spec, renderer, settings)
            if writer is None:
                writer = ZarrStore.create(settings.out, wanted)
            else:
                _check_same("robot", _comparable(writer.spec), _comparable(wanted), settings.out)
            return _run(pool, settings, writer, progress, interrupted, started)
    except BrokenProcessPool as error:
        raise InputError(
            f"A collecting process died (out of memory?); what {settings.out} holds is kept, "
            "run again with fewer --workers."
        ) from error
    finally:
        if writer is not None:
            writer.close()


def _run(
    pool: ProcessPoolExecutor,
    settings: CollectSettings,
    writer: ZarrWriter,
    progress: Callable[[int, int], None] | None,
    interrupted: threading.Event,
    started: float,
) -> CollectReport:
    """Keep the workers busy and write what they return, in order."""
    before = following = len(writer)
    waiting: deque[Future[Episode]] = deque()
    first = time.perf_counter()
    if progress is not None:
        progress(before, settings.episodes)
    while len(writer) < settings.episodes and not interrupted.is_set():
        while following < settings.episodes and len(waiting) < _IN_FLIGHT * settings.workers:
            waiting.append(_submit(pool, work, following))
            following += 1
        try:
            ready = [waiting[0].result(timeout=0.2)]
        except FutureTimeout:
            continue
        waiting.popleft()
        while waiting and waiting[0].done() and len(ready) < _TOGETHER:
            ready.append(waiting.popleft().result())
        writer.extend(ready)
        if progress is not None:
            progress(len(writer), settings.episodes)
    return _report(settings, writer, len(writer) - before, started, first, interrupted.is_set())


def _report(
    settings: CollectSettings, writer: ZarrWriter, added: int, started: float, first: float, interrupted: bool
) -> CollectReport:
    now = time.perf_counter()
    rate = added * settings.episode.frames / (now - first) if added else 0.0
    frames = int(writer.lengths().sum())
    return CollectReport(settings.out, len(writer), frames, added, now - started, rate, interrupted)


@contextlib.contextmanager
def _workers(settings: CollectSettings) -> Iterator[ProcessPoolExecutor]:
    """Fresh (not forked) processes, each with its own simulator; gone afterwards, whatever happened."""
    context = multiprocessing.get_context("spawn")
    count = min(settings.workers, settings.episodes)
    pool = ProcessPoolExecutor(count, context, initializer=prepare_worker, initargs=(settings.episode,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function: Callable[..., Any], *values: Any) -> Future[Any]:
    """Submit with SIGINT blocked: a process started here inherits that, so Ctrl-C reaches the parent only."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(function, *values)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that no write is cut in two; a second interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)


def _store_spec(robot: RobotSpec, renderer: str, settings: CollectSettings) -> StoreSpec:
    """The store of this robot's episodes: one episode, one chunk."""
    return StoreSpec(
        robot=robot.name,
        cameras={name: (camera.height, camera.width) for name, camera in robot.cameras.items()},
        state_names=robot.state_names,
        state_units=robot.state_units,
        state_low=robot.state_low,
        state_high=robot.state_high,
        state_periodic=robot.state_periodic,
        action_names=robot.action_names,
        action_units=robot.action_units,
        action_low=robot.action_low,
        action_high=robot.action_high,
        control_period_s=robot.control_period_s,
        state_model=robot.state_model,
        renderer=renderer,
        provenance={
            "command": "vjepa-mpc collect",
            "version": __version__,
            "commit": commit(),
            "recipe": settings.recipe(),
        },
        chunk_frames=settings.episode.frames,
    )


def _comparable(spec: StoreSpec) -> dict[str, Any]:
    return replace(spec, provenance={}).to_json()


def _check_same(what: str, there: Any, asked: Any, out: Path) -> None:
    """`InputError` listing where the two differ."""
    keys = sorted(there.keys() | asked.keys())
    differences = [
        f"{key} {there.get(key)!r} there, {asked.get(key)!r} asked"
        for key in keys
        if _plain(there.get(key)) != _plain(asked.get(key))
    ]
    if differences:
        raise InputError(
            f"{out} was collected with another {what} ({'; '.join(differences)}); "
            "use the same settings, or another --out."
        )


def _plain(value: Any) -> Any:
    """Tuples and lists compare equal after a round trip through JSON."""
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
