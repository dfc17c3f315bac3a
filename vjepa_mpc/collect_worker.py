"""What runs in a collecting process: one simulator, kept for its life. Imports no Zarr, and torch only for an actor."""

from __future__ import annotations

import multiprocessing
import os
import threading
from dataclasses import dataclass

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.episode import Episode
from vjepa_mpc.exploration import Apprentice, EpisodeSettings, simulate_episode
from vjepa_mpc.robots.base import RobotSpec, SimulatedRobot


@dataclass
class _Worker:
    settings: EpisodeSettings
    robot: SimulatedRobot | None = None
    apprentice: Apprentice | None = None


_workers: list[_Worker] = []  # this process's one worker: a process pool has no other place to keep it


def prepare_worker(settings: EpisodeSettings) -> None:
    """Called once as a worker process starts."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    # One process a core already: Mesa's and BLAS's own threads would only get in each other's way.
    for name in ("LP_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    _workers[:] = [_Worker(settings)]


def describe_robot() -> tuple[RobotSpec, str]:
    """The robot's spec and its renderer's identity. An actor that does not fit it is refused here, before there is a
    store."""
    robot = _robot()
    _apprentice()
    return robot.spec, robot.renderer_identity


def work(index: int) -> Episode:
    """Simulate episode `index`."""
    return simulate_episode(_robot(), _workers[0].settings, index, _apprentice())


def _robot() -> SimulatedRobot:
    """This process's robot, built on first use: errors in building it then reach the parent by name."""
    worker = _workers[0]
    if worker.robot is None:
        worker.robot = _made(worker.settings)
    return worker.robot


def _apprentice() -> Apprentice | None:
    """Who drives in this process, if anybody does, with a world of its own for goal pictures."""
    worker = _workers[0]
    if worker.apprentice is None and worker.settings.actor is not None:
        from vjepa_mpc.apprentice import load_driver

        studio = _made(worker.settings)
        try:
            how = worker.settings.actor_steps, worker.settings.actor_drawn
            worker.apprentice = load_driver(worker.settings.actor, studio, *how)
        except InputError:
            studio.close()
            raise
    return worker.apprentice


def _made(settings: EpisodeSettings) -> SimulatedRobot:
    from vjepa_mpc.robots.factory import make_robot

    size = settings.camera_size
    robot = make_robot(settings.robot, **({} if size is None else {"camera_size": size}))
    if not isinstance(robot, SimulatedRobot):
        raise InputError(f"{settings.robot} is no simulated robot: it cannot be placed and repainted.")
    return robot


def _leave_with_parent() -> None:
    """A killed parent cannot stop its workers: they leave by themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
