"""What a robot is asked to do: the contract of a task, which a new one fulfils by filling in six things."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.robots.base import RobotSpec, StateSpec

Script = Callable[[np.ndarray], np.ndarray]
"""World state [w] to action [a]. Called once a control step; it may remember what it is about."""


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

    @abstractmethod
    def sample_pair(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Start and goal, two world states [w] in which the world can rest, well apart."""

    @abstractmethod
    def distance(self, state: Float[np.ndarray, "w"], goal: Float[np.ndarray, "w"]) -> float:
        """How far `state` is from `goal`, m."""

    @abstractmethod
    def script(self, goal: Float[np.ndarray, "w"]) -> Script:
        """The privileged ceiling: told the world's true state at every step, goes to `goal`."""

    def hit(self, distances: Sequence[float]) -> bool:
        """Whether any of the distances [m] after each step lies within the success radius."""
        return any(distance <= self.success_radius_m for distance in distances)

    def held(self, distances: Sequence[float]) -> bool:
        """Whether the budget was used and its last `held_steps` distances [m] lie within the radius."""
        last = distances[self.step_budget - self.held_steps : self.step_budget]
        return len(last) == self.held_steps and all(distance <= self.success_radius_m for distance in last)
