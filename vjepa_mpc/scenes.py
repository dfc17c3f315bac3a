"""Scenes by number, in this process or in others: physics and rendering beside the world model, on other cores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import cloudpickle

from vjepa_mpc.core.errors import InputError, WorkerDiedError
from vjepa_mpc.episodes import Scene
from vjepa_mpc.executor import DEATHS_IN_A_ROW, Death, Processes, portable, unpack
from vjepa_mpc.robots.base import SimulatedRobot
from vjepa_mpc.robots.task import Task

Order = Callable[[Scene], Any]
"""What is asked of a scene, as `operator.methodcaller("act", action)`: it may have to travel."""


@dataclass(frozen=True)
class SceneSetup:
    """Builds the scenes of a series of episodes where they are to be. `levels`: factors of variation."""

    robot: Callable[[], SimulatedRobot]
    task: Task
    levels: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Failure:
    """Instead of an answer: what was raised. The scene is built anew before its next order."""

    error: Exception


@runtime_checkable
class Scenes(Protocol):
    """Scenes, one at each of the numbers that orders are given for."""

    def each(self, series: int, orders: Mapping[int, Order]) -> dict[int, Any]:
        """Carry out the orders for scenes of series number `series`; answers, or `Failure`s, by the same numbers.

        `InputError` is raised: it is the caller's mistake.
        """
        ...

    def close(self) -> None: ...


class ScenesHere:
    """Scenes in this process, one after the other. One that a later series can use keeps its robot."""

    def __init__(self, setups: Sequence[SceneSetup]) -> None:
        self.setups = setups
        self._open: dict[int, tuple[int, Scene]] = {}

    def each(self, series: int, orders: Mapping[int, Order]) -> dict[int, Any]:
        """See `Scenes.each`."""
        return {slot: self._answer(series, slot, order) for slot, order in orders.items()}

    def _answer(self, series: int, slot: int, order: Order) -> Any:
        try:
            return order(self._scene(series, slot))
        except InputError:
            raise
        except Exception as error:
            self._drop(slot)  # whatever state it was left in, the next episode does not begin with it
            return Failure(error)

    def _scene(self, series: int, slot: int) -> Scene:
        now = self.setups[series]
        if slot in self._open and self._open[slot][0] != series:
            number, scene = self._open[slot]
            before = self.setups[number]
            if before.robot is now.robot and bool(before.levels) == bool(now.levels):
                self._open[slot] = series, Scene(scene.robot, now.task, now.levels)
            else:
                self._drop(slot)
        if slot not in self._open:
            self._open[slot] = series, Scene(now.robot(), now.task, now.levels)
        return self._open[slot][1]

    def _drop(self, slot: int) -> None:
        if slot in self._open:
            self._open.pop(slot)[1].close()

    def close(self) -> None:
        for slot in list(self._open):
            self._drop(slot)


class ScenesElsewhere:
    """Scenes in `workers` processes of one thread each: number i is always in process i modulo `workers`.

    A process that dies takes its own scenes' episodes with it, and no others; another takes its place.
    """

    def __init__(self, setups: Sequence[SceneSetup], workers: int) -> None:
        self._processes = Processes(workers, cloudpickle.dumps(partial(ScenesHere, tuple(setups))), threads=1)
        self._work = cloudpickle.dumps(_carry_out)
        self._deaths = 0

    def each(self, series: int, orders: Mapping[int, Order]) -> dict[int, Any]:
        """See `Scenes.each`. Raises `WorkerDiedError` where process after process dies."""
        shares: dict[int, dict[int, Order]] = {}
        for slot, order in orders.items():
            shares.setdefault(slot % self._processes.count, {})[slot] = order
        for worker, share in shares.items():
            self._processes.send(worker, self._work, cloudpickle.dumps((series, share)))
        answers: dict[int, Any] = {}
        raised: list[Exception] = []
        for _ in shares:  # all of them, whatever one says: the next orders must not meet these answers
            worker, answer = self._processes.receive()
            try:
                if isinstance(answer, Death):
                    answers |= dict.fromkeys(shares[worker], self._died(answer))
                else:
                    self._deaths = 0
                    answers |= unpack(answer)
            except Exception as error:
                raised.append(error)
        if raised:
            raise raised[0]
        return {slot: answers[slot] for slot in orders}

    def _died(self, death: Death) -> Failure:
        self._deaths += 1
        error = WorkerDiedError(f"The process of its physics died ({death.reason}).")
        if self._deaths > DEATHS_IN_A_ROW:
            raise error
        return Failure(error)

    def close(self) -> None:
        self._processes.stop(at_once=False)


def _carry_out(scenes: ScenesHere, item: tuple[int, dict[int, Order]]) -> dict[int, Any]:
    """A process's share; what was raised must be able to travel."""
    answers = scenes.each(*item)
    return {
        slot: Failure(portable(answer.error)) if isinstance(answer, Failure) else answer
        for slot, answer in answers.items()
    }
