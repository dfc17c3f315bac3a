"""The loop around a controller: look, ask, send, note. Recorders watch it from outside.

`run_episode` waits for every plan; `vjepa_mpc.fixed_rate` sends an action at every tick. Both are `drive` with a pilot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from vjepa_mpc.controller import Controller, ControllerState, Decision, View
from vjepa_mpc.robots.base import Observation, Robot


@dataclass(frozen=True)
class StepRecord:
    """One control step as recorders see it. `latent_cost`: distance of the present view to the goal;
    `planned_cost`: of the imagined future; `action`: truly applied; `distance`: task units, simulator only;
    `held_by`: constraints that the plan breaks and governors that slowed or stopped it. At a fixed rate
    (`vjepa_mpc.fixed_rate`) also what was `executed` (everywhere
    "interrupted": Ctrl-C came while it was sent), how many steps ago it was planned, how late the tick was."""

    step: int
    image: UInt8[np.ndarray, "height width 3"]
    proprioception: Float[np.ndarray, "s"]
    latent_cost: float
    planned_cost: float
    terms: Mapping[str, float]
    wanted: Float[np.ndarray, "a"]
    action: Float[np.ndarray, "a"]
    milliseconds: float
    evaluations: int
    distance: float | None = None
    reached: bool = False
    held_by: tuple[str, ...] = ()
    executed: str = "planned"
    plan_age: int | None = 0
    late_ms: float = 0.0


@runtime_checkable
class Watcher(Protocol):
    """A recorder of the loop (`vjepa_mpc.recorders.Recorder` is one)."""

    def step(self, record: StepRecord) -> None: ...


@runtime_checkable
class Pilot(Protocol):
    """Whoever answers observations within one episode."""

    def answer(self, observation: Observation) -> StepRecord:
        """The record of this view as far as it is known before anything is sent: `wanted` is to be sent now."""
        ...

    def applied(self, action: Float[np.ndarray, "a"]) -> None:
        """Note what the robot truly did."""
        ...


def record_of(
    observation: Observation,
    controller: Controller,
    view: View | Decision,
    planned: Decision | None,
    wanted: Float[np.ndarray, "a"],
    *,
    reached: bool,
    held_by: tuple[str, ...],
    evaluations: int,
    executed: str = "planned",
    plan_age: int | None = 0,
) -> StepRecord:
    """What a pilot knows of a step: the distance of the `view`, the figures of the plan that was `planned` (the last
    one; None: there is none yet). What `drive` will know is left at nothing."""
    return StepRecord(
        step=0,
        image=observation.images[controller.model.config.camera],
        proprioception=observation.proprioception,
        latent_cost=view.latent_cost,
        planned_cost=math.inf if planned is None else float(planned.plan.cost[0]),
        terms={} if planned is None else planned.terms,
        wanted=wanted,
        action=np.zeros_like(wanted),
        milliseconds=0.0,
        evaluations=evaluations,
        reached=reached,
        held_by=held_by,
        executed=executed,
        plan_age=plan_age,
    )


def drive(
    pilot: Pilot,
    robot: Robot,
    *,
    max_steps: int,
    watchers: Sequence[Watcher] = (),
    distance: Callable[[], float] | None = None,
    stop_when_reached: bool = True,
    wait: Callable[[], float] = lambda: 0.0,
) -> list[StepRecord]:
    """Drive `robot` until the pilot judges the goal reached and held, or for `max_steps` actions.

    `wait` is called before each look and returns by how many seconds it is late. The robot is stopped at the end, on
    Ctrl-C and on any error. An action that Ctrl-C cut short is recorded as it was wanted, as `executed` "interrupted":
    the robot may have done a part of it. `distance` is asked for the records only. The last record is of the final
    view, without an action.
    """
    records: list[StepRecord] = []
    untold: StepRecord | None = None
    try:
        for step in range(max_steps + 1):
            late_s = wait()
            started = time.perf_counter()
            known = pilot.answer(robot.observe())
            last = step == max_steps or (known.reached and stop_when_reached) or "watchdog" in known.held_by
            milliseconds = 1e3 * (time.perf_counter() - started)
            away = distance() if distance is not None else None
            known = replace(known, step=step, milliseconds=milliseconds, distance=away, late_ms=1e3 * late_s)
            if not last:  # what is on its way belongs to what was done, whatever comes in between
                untold = replace(known, action=known.wanted, executed="interrupted")
            action = known.action if last else robot.apply(known.wanted)
            pilot.applied(action)
            records.append(replace(known, action=action))
            untold = None
            _tell(watchers, records[-1])
            if last:
                break
    except KeyboardInterrupt:
        robot.stop()
        if untold is not None:
            _tell(watchers, untold)
        raise
    except BaseException:
        robot.stop()
        raise
    robot.stop()
    return records


def _tell(watchers: Sequence[Watcher], record: StepRecord) -> None:
    for watcher in watchers:
        watcher.step(record)


class Stepwise:
    """A pilot that plans anew from every view, and waits for the plan."""

    def __init__(self, controller: Controller) -> None:
        self.controller, self.state = controller, ControllerState()

    def answer(self, observation: Observation) -> StepRecord:
        found, self.state = self.controller.step(observation, self.state)
        return record_of(
            observation, self.controller, found, found, found.action, reached=found.reached, held_by=found.held_by,
            evaluations=found.plan.evaluations,
        )  # fmt: skip

    def applied(self, action: Float[np.ndarray, "a"]) -> None:
        self.state = self.controller.applied(action, self.state)


def run_episode(
    controller: Controller,
    robot: Robot,
    *,
    max_steps: int,
    watchers: Sequence[Watcher] = (),
    distance: Callable[[], float] | None = None,
    stop_when_reached: bool = True,
) -> list[StepRecord]:
    """`drive` with a controller whose every plan is waited for."""
    return drive(
        Stepwise(controller), robot, max_steps=max_steps, watchers=watchers, distance=distance,
        stop_when_reached=stop_when_reached,
    )  # fmt: skip
