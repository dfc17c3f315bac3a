"""Kinova's Jaco arm, moved by displacements of its hand, and the task of reaching with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.robots.base import RobotSpec
from vjepa_mpc.robots.jaco_arm import STEP_M, JacoArm, arm_missing, arm_model, hand_spec
from vjepa_mpc.robots.task import Script, Task

LOW_M, HIGH_M = (-0.2, -0.55, 0.06), (0.2, -0.3, 0.32)
"""The box in which the point between the fingertips moves; x, y, z in the base's frame, z up."""


def jaco_spec(camera_size: int = 64) -> RobotSpec:
    """The hand's place under displacements of it, m, in the base's frame."""
    return hand_spec("jaco-reach", (LOW_M, HIGH_M), camera_size)


class Jaco(JacoArm):
    """The arm alone, its hand held open; contacts are off, and the box rules most of them out."""

    def __init__(self, camera_size: int = 64, seed: int = 0, backend: str = "auto") -> None:
        settings = {"camera_size": camera_size, "seed": seed}
        super().__init__(jaco_spec(camera_size), arm_model().compile(), settings, backend)
        self._put((np.array(LOW_M) + HIGH_M) / 2)

    def _check(self, state: Float[np.ndarray, "w"]) -> Float[np.ndarray, "w"]:
        return self._spec.check_state(state)

    def _rest(self, state: Float[np.ndarray, "w"]) -> None:
        self._rest_hand(state)

    def sample_state(self, generator: np.random.Generator) -> Float[np.ndarray, "w"]:
        """A place in the box, uniform."""
        return generator.uniform(LOW_M, HIGH_M)

    def true_state(self) -> Float[np.ndarray, "w"]:
        return self._place_of_hand()

    def _measure(self) -> Float[np.ndarray, "s"]:
        return self.true_state()

    def _move(self, wanted: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        return self._move_hand(wanted)


@dataclass(frozen=True)
class JacoReachTask(Task):
    """Bring the hand to its place in the goal picture; distances between places of the hand, in m."""

    name: ClassVar[str] = "jaco-reach"
    robot: ClassVar[str] = "jaco-reach"
    summary: ClassVar[str] = "Kinova's Jaco arm brings its hand to a place in space"
    success_radius_m: float = 0.03
    min_start_distance_m: float = 0.08
    step_budget: int = 30
    held_steps: int = 3

    @property
    def spec(self) -> RobotSpec:
        return jaco_spec()

    @property
    def missing(self) -> str | None:
        return arm_missing()

    def sample_pair(
        self, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """Places uniform over the box; pairs under `min_start_distance_m` are redrawn."""
        while True:
            start, goal = generator.uniform(LOW_M, HIGH_M, (2, 3))
            if self.distance(start, goal) >= self.min_start_distance_m:
                return start, goal

    def distance(self, state: Float[np.ndarray, "3"], goal: Float[np.ndarray, "3"]) -> float:
        return float(np.linalg.norm(np.asarray(state) - goal))

    def script(self, goal: Float[np.ndarray, "3"]) -> Script:
        return lambda state: np.clip(np.asarray(goal) - state, -STEP_M, STEP_M)
