"""A controller that never waits for its planner: at every tick it sends the next action of the last plan.

Planning goes on in a thread of its own, from one view at a time. Before the first plan is there the robot holds its
pose. A plan that arrives late is begun where it has got to by then: the actions sent in the meantime are taken off it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from vjepa_mpc.controller import Controller, ControllerState, Decision, View
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.loop import StepRecord, Watcher, drive, record_of
from vjepa_mpc.robots.base import Observation, Robot


@runtime_checkable
class Pending(Protocol):
    """A plan under way (`concurrent.futures.Future` is one)."""

    def done(self) -> bool: ...

    def result(self) -> Any: ...


Submit = Callable[[Callable[[], tuple[Decision, ControllerState]]], Pending]


@dataclass(frozen=True)
class Tick:
    """What is sent at one tick. `executed`: "planned" for the first action of a plan, "carried" for a later one of
    the last plan, "held" while there is none. `age`: control steps since the view it was planned from (None: held)."""

    action: Float[np.ndarray, "a"]
    executed: str
    age: int | None
    view: View
    decision: Decision | None
    held_by: tuple[str, ...]
    reached: bool


class FixedRate:
    """One episode's ticks. `submit` runs a plan somewhere else (`ThreadPoolExecutor(1).submit`, say)."""

    def __init__(self, controller: Controller, submit: Submit) -> None:
        self.controller, self._submit = controller, submit
        self.state = ControllerState()
        self._pending: Pending | None = None
        self._since: list[Float[np.ndarray, "a"]] = []  # sent since the view that the pending plan is made from
        self._decision: Decision | None = None
        self._age = 0

    def tick(self, observation: Observation) -> Tick:
        """The action to send now. Raises what a plan raised. Hand what was applied to `applied`."""
        controller = self.controller
        view, self.state = controller.see(observation, self.state)
        fresh = self._collect()
        if self._pending is None:
            state, self._since = self.state, []
            self._pending = self._submit(lambda: controller.decide(view, state))
            fresh = self._collect() or fresh
        reached = self.state.reached_for >= controller.settings.hold_steps
        wanted, executed = controller.limited(controller.hold, self.state), "held"
        if self._decision is not None and self.state.plan is not None:
            wanted, plan = controller.next_action(
                self.state.plan, view, self._decision.terms["goal"], self.state
            )
            executed, self.state = "planned" if fresh else "carried", replace(self.state, plan=plan)
        action, held_by, self.state = controller.governed(wanted, view, self.state)
        broken = () if self._decision is None else self._decision.plan.held_by[0]
        age = None if executed == "held" else self._age
        return Tick(action, executed, age, view, self._decision, (*broken, *held_by), reached)

    def answer(self, observation: Observation) -> StepRecord:
        """`tick` as recorders see it: the plan's figures are those of the last one."""
        tick = self.tick(observation)
        fresh = tick.decision if tick.executed == "planned" else None
        return record_of(
            observation, self.controller, tick.view, tick.decision, tick.action, reached=tick.reached,
            held_by=tick.held_by, evaluations=fresh.plan.evaluations if fresh else 0, executed=tick.executed,
            plan_age=tick.age,
        )  # fmt: skip

    def applied(self, action: Float[np.ndarray, "a"]) -> None:
        """Note what the robot truly did."""
        self.state = self.controller.applied(action, self.state)
        self._since.append(action)
        self._age += 1

    def _collect(self) -> bool:
        """Take a finished plan over, without what was done since its view. Whether there was one."""
        if self._pending is None or not self._pending.done():
            return False
        self._decision, planned = self._pending.result()
        found = replace(self.state, plan=planned.plan, others=planned.others)
        for action in self._since:
            found = self.controller.carried(action, found)
        self.state, self._age, self._pending = found, len(self._since), None
        return True


class Metronome:
    """Ticks a period apart. One that is missed by more than a period is not made up for."""

    def __init__(
        self,
        period_s: float,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not 0 < period_s < math.inf:
            raise InputError(f"The control period must be positive, got {period_s} s; give a rate above 0.")
        self.period_s, self._clock, self._sleep = period_s, clock, sleep
        self._due: float | None = None

    def wait(self) -> float:
        """Sleep until the next tick; return by how many seconds it is late."""
        now = self._clock()
        if self._due is None:
            self._due = now
        if now < self._due:
            self._sleep(self._due - now)
            now = self._clock()
        late = max(0.0, now - self._due)
        self._due = self._due + self.period_s if late < self.period_s else now + self.period_s
        return late


def run_at_fixed_rate(
    controller: Controller,
    robot: Robot,
    *,
    period_s: float,
    max_steps: int,
    watchers: Sequence[Watcher] = (),
    distance: Callable[[], float] | None = None,
    stop_when_reached: bool = True,
    metronome: Metronome | None = None,
) -> list[StepRecord]:
    """As `run_episode`, but an action goes out every `period_s`, whether or not its plan is done.

    The robot is stopped at the end, on Ctrl-C and on any error, before the plan under way is waited for.
    """
    metronome = metronome or Metronome(period_s)
    with ThreadPoolExecutor(1, thread_name_prefix="plan") as pool:
        return drive(
            FixedRate(controller, pool.submit), robot, max_steps=max_steps, watchers=watchers, distance=distance,
            stop_when_reached=stop_when_reached, wait=metronome.wait,
        )  # fmt: skip
