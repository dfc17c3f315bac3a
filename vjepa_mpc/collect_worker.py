"""What runs in a collecting process: one simulator, kept for its life. Imports neither torch nor Zarr."""

from __future__ import annotations

import multiprocessing
import os
import threading
from dataclasses import dataclass

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.episode import Episode
from vjepa_mpc.exploration import EpisodeSettings, simulate_episode
from vjepa_mpc.robots.base import RobotSpec, SimulatedRobot


@dataclass
class _Worker:
    settings: EpisodeSettings
    robot: SimulatedRobot | None = None


_workers: list[_Worker] = []  # this process's one worker: a process pool has no other place to keep it


def prepare_worker(settings: EpisodeSettings) -> None:
    """Called once as a worker process starts."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    # One process a core already: Mesa's and BLAS's own threads would only get in each other's way.
    for name in ("LP_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    _workers[:] = [_Worker(settings)]


def describe_robot() -> tuple[RobotSpec, str]:
    """The robot's spec and its renderer's identity."""
    robot = _robot()
    return robot.spec, robot.renderer_identity


def work(index: int) -> Episode:
    """Simulate episode `index`."""
    return simulate_episode(_robot(), _workers[0].settings, index)


def _robot() -> SimulatedRobot:
    """This process's robot, built on first use: errors in building it then reach the parent by name."""
    from vjepa_mpc.robots.factory import make_robot

    worker = _workers[0]
    if worker.robot is None:
        size = worker.settings.camera_size
        sizes = {} if size is None else {"camera_size": size}
        robot = make_robot(worker.settings.robot, **sizes)
        if not isinstance(robot, SimulatedRobot):
            raise InputError(f"{worker.settings.robot} is no simulated robot: it cannot be placed and repainted.")
        worker.robot = robot
    return worker.robot


def _leave_with_parent() -> None:
    """A killed parent cannot stop its workers: they leave by themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
