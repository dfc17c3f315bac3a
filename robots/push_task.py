"""What all pushing of a block over a floor has in common: its joints, its place as the pusher sees it, its task.

The world's state ends with the block's x, y [m] and angle [rad], and begins with the pusher's place.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.robots.rendering import import_mujoco
from vjepa_mpc.robots.task import PushedObject, Task


def add_floating(body: Any, name: str, damping: float, turning_radius_m: float) -> None:
    """Joints `<name>_x`, `_y` and `_angle` of a block that floats as on oil: damped [N s / m] in all directions alike,
    and so in turning that a pure torque of a lever `turning_radius_m` turns it as fast there as its force moves it."""
    mujoco = import_mujoco()
    slide, hinge = mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_HINGE
    for suffix, kind, axis, resistance in (
        ("x", slide, [1, 0, 0], damping),
        ("y", slide, [0, 1, 0], damping),
        ("angle", hinge, [0, 0, 1], damping * turning_radius_m**2),
    ):
        body.add_joint(name=f"{name}_{suffix}", type=kind, axis=axis, damping=[resistance, 0.0, 0.0])


def from_the_block(state: Float[np.ndarray, "w"]) -> Float[np.ndarray, "2"]:
    """The pusher's place [m] as seen from the block, on the floor."""
    cosine, sine = math.cos(state[-1]), math.sin(state[-1])
    x, y = state[:2] - state[-3:-1]
    return np.array([cosine * x + sine * y, cosine * y - sine * x])


def wrapped(angle: float, period: float = 2.0 * math.pi) -> float:
    """`angle` [rad] in half a `period` about 0, the lower end included."""
    return (angle + period / 2) % period - period / 2


@dataclass(frozen=True)
class PushTask(Task):
    """Push the block to where it is in the goal picture, turned as it is there; the pusher may be anywhere.

    The distance is the greater of the block's displacement [m] and its turn [rad] times `lever_m`: the success
    radius of 0.03 m is at once 3 cm and 15 degrees. Turned by `same_after_rad` the block is the same.
    """

    same_after_rad: ClassVar[float] = 2.0 * math.pi
    success_radius_m: float = 0.03
    min_start_distance_m: float = 0.06
    lever_m: float = 0.03 / math.radians(15.0)
    step_budget: int = 60
    held_steps: int = 3

    @property
    def pushed(self) -> PushedObject:
        end = len(self.world.names)
        return PushedObject((end - 3, end - 2, end - 1), same_after_rad=self.same_after_rad)

    @abstractmethod
    def sample(self, generator: np.random.Generator) -> Float[np.ndarray, "w"]:
        """A random state at rest, the pusher clear of the block."""

    def sample_pair(
        self, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, "w"], Float[np.ndarray, "w"]]:
        """Two states as `sample` draws them; pairs under `min_start_distance_m` are redrawn."""
        while True:
            start, goal = self.sample(generator), self.sample(generator)
            if self.distance(start, goal) >= self.min_start_distance_m:
                return start, goal

    def shown(self, state: Float[np.ndarray, "w"], goal: Float[np.ndarray, "w"]) -> bool:
        """The block's angle on the short way round, and the same where the block looks the same."""
        turned = np.array(state, dtype=np.float64)
        turned[-1] = goal[-1] + wrapped(float(turned[-1]) - float(goal[-1]), self.same_after_rad)
        return super().shown(turned, goal)

    def distance(self, state: Float[np.ndarray, "w"], goal: Float[np.ndarray, "w"]) -> float:
        moved = float(np.linalg.norm(np.asarray(state)[-3:-1] - np.asarray(goal)[-3:-1]))
        turned = wrapped(float(goal[-1]) - float(state[-1]), self.same_after_rad)
        return max(moved, self.lever_m * abs(turned))
