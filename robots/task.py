"""What a robot is asked to do: the contract of a task, which a new one fulfils by filling in six things."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.robots.base import RobotSpec, SimulatedRobot, StateSpec

Script = Callable[[np.ndarray], np.ndarray]
"""World state [w] to action [a]. Called once a control step; it may remember what it is about."""
SHOWN = 0.02
"""Of a value's range: what hardly any picture tells from the goal."""


@dataclass(frozen=True)
class Disc:
    """A region of the world's floor that the end effector must stay out of, m."""

    centre: tuple[float, float]
    radius: float


@dataclass(frozen=True)
class SubGoal:
    """A state of the world to go by, and the step of the episode until which it is the goal."""

    state: Float[np.ndarray, "w"]
    until: int


@dataclass(frozen=True)
class PushedObject:
    """What a task moves about on a plane: where its x, y [m] and angle [rad, counter-clockwise] are among the values of
    the world's state (`pose`), where x and y of the robot are in its own state (`place`), and those of its displacement
    among its actions (`push`), all along the same axes. Turned by `same_after_rad` it looks the same."""

    pose: tuple[int, int, int]
    place: tuple[int, int] = (0, 1)
    push: tuple[int, int] = (0, 1)
    same_after_rad: float = 2.0 * math.pi


class Task(ABC):
    """Bring the world to where the goal picture shows it, judged on the world's true state.

    Success is judged on `distance`, in m: `hit` when it was within `success_radius_m` after any step, `held`
    when it was so after each of the last `held_steps` of `step_budget` steps. A task with several demands
    (position and angle) takes the worst of them, each expressed in m (an angle times a lever).

    `robot` is the name of the world it is played in, as `make_robot` takes it; the shipped manifests are
    called `<robot>-<split>`. A change of anything that a manifest's numbers depend on is a new `version`.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    robot: ClassVar[str]
    summary: ClassVar[str]
    """One line for `vjepa-mpc tasks`."""
    mixture: ClassVar[Mapping[str, float]] = {"smooth": 0.35, "script": 0.45, "full_speed": 0.12, "hold": 0.08}
    """The share of each behaviour in collected data (`vjepa_mpc/exploration.py` says what they are)."""
    quasi_static: ClassVar[bool] = True
    """Whether everything is at rest between steps, so that one picture tells all."""
    exactness: ClassVar[float] = 0.02
    """How far the measured motion of a step may be from the action that `apply` returned where nothing is in the way,
    as a share of that action's limit."""
    success_radius_m: float
    step_budget: int
    held_steps: int = 3

    @property
    @abstractmethod
    def spec(self) -> RobotSpec:
        """The robot's spec, without building one."""

    @property
    def world(self) -> StateSpec:
        """What the world's state consists of; the robot's own state where nothing else moves."""
        return self.spec.proprioception

    @property
    def forbidden(self) -> tuple[Disc, ...]:
        """Where the end effector must never be; nothing, as a rule."""
        return ()

    @property
    def pushed(self) -> PushedObject | None:
        """The object that is moved on a plane, for actors that act as seen from it; None where there is no such."""
        return None

    def place(self, states: Any) -> Any:
        """Where the robot's end effector is, m, at robot states: torch tensors [..., s] to [..., d], differentiable.
        `InputError` where a task does not say: guardrails for places cannot be had there."""
        raise InputError(f"{self.name} does not say where its end effector is; leave out guardrails for places.")

    def intrusion(self, state: Float[np.ndarray, "w"]) -> float:
        """How deep (m) the end effector is inside a forbidden region in this world state; 0 outside."""
        if not self.forbidden:
            return 0.0
        import torch

        place = self.place(torch.as_tensor(np.asarray(state, dtype=np.float64)))[:2].numpy()
        return max(0.0, *(disc.radius - float(np.linalg.norm(place - disc.centre)) for disc in self.forbidden))

    @property
    def missing(self) -> str | None:
        """Why its world cannot be built here, with the way to mend that; None where nothing is missing."""
        return None

    @abstractmethod
    def sample_pair(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Start and goal, two world states [w] in which the world can rest, well apart."""

    @abstractmethod
    def distance(self, state: Float[np.ndarray, "w"], goal: Float[np.ndarray, "w"]) -> float:
        """How far `state` is from `goal`, m."""

    @abstractmethod
    def script(self, goal: Float[np.ndarray, "w"]) -> Script:
        """The privileged ceiling: told the world's true state at every step, goes to `goal`."""

    def demonstration(self, goal: Float[np.ndarray, "w"]) -> Script:
        """The script as `collect` shows it: it makes the goal picture true in all that it shows, also where the task
        does not ask for it. The script itself, as a rule."""
        return self.script(goal)

    def shown(self, state: Float[np.ndarray, "w"], goal: Float[np.ndarray, "w"]) -> bool:
        """Whether `state` looks as `goal` does: each value within `SHOWN` of its range, on the short way round."""
        spec = self.spec
        wraps = np.array(spec.state_periodic) if self.world.names == spec.state_names else np.zeros(len(goal), bool)
        size = np.array(self.world.high) - np.array(self.world.low)
        away = np.abs(np.asarray(state) - np.asarray(goal))
        return bool((np.where(wraps, np.minimum(away, size - away), away) <= SHOWN * size).all())

    def sub_goals(self, start: Float[np.ndarray, "w"], goal: Float[np.ndarray, "w"]) -> tuple[SubGoal, ...]:
        """What is shown as the goal, and until when: the goal alone, unless the task leads to it by way of others.

        The last is the goal itself until `step_budget`. A function of the pair, so that a manifest's hash (with the
        task's version) stands for them too. The switch is by the step, as in V-JEPA 2-AC's pick-and-place
        (Assran et al. 2025, arXiv:2506.09985, section 4): no truth of the simulator is needed for it.
        """
        return (SubGoal(np.asarray(goal), self.step_budget),)

    def hit(self, distances: Sequence[float]) -> bool:
        """Whether any of the distances [m] after each step lies within the success radius."""
        self._all_numbers(distances)
        return any(distance <= self.success_radius_m for distance in distances)

    def held(self, distances: Sequence[float]) -> bool:
        """Whether the budget was used and its last `held_steps` distances [m] lie within the radius."""
        self._all_numbers(distances)
        last = distances[self.step_budget - self.held_steps : self.step_budget]
        return len(last) == self.held_steps and all(distance <= self.success_radius_m for distance in last)


    def _all_numbers(self, distances: Sequence[float]) -> None:
        for step, distance in enumerate(distances, 1):
            if not math.isfinite(distance):
                raise NotFiniteError(f"{self.name} judges step {step} to be {distance} m from the goal.", distances)


@runtime_checkable
class Traced(Protocol):
    """A simulated robot that tells the true states [n, w] it went through during the last action."""

    def way(self) -> Float[np.ndarray, "n w"]: ...


def intrusion(robot: SimulatedRobot, task: Task) -> float:
    """How deep [m] the end effector was in a forbidden region during the last action."""
    if not task.forbidden:
        return 0.0
    states = robot.way() if isinstance(robot, Traced) else [robot.true_state()]
    return max(task.intrusion(state) for state in states)


def led_script(task: Task, start: Float[np.ndarray, "w"], goal: Float[np.ndarray, "w"]) -> Script:
    """The task's script through its sub-goals, one after the other: for one episode."""
    goals = list(task.sub_goals(start, goal))
    script, step = task.script(goals[0].state), 0

    def act(state: Float[np.ndarray, "w"]) -> Float[np.ndarray, "a"]:
        nonlocal script, step
        if step == goals[0].until and len(goals) > 1:
            del goals[0]
            script = task.script(goals[0].state)
        step += 1
        return script(state)

    return act
