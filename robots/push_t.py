"""A T-shaped block pushed about by a ball: contact, and a goal with position and angle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.base import RobotSpec, StateSpec
from vjepa_mpc.robots.point import RADIUS_M, REACH_M, STEP_M, point_spec
from vjepa_mpc.robots.push_script import PushScript, PushShape
from vjepa_mpc.robots.push_task import PushTask, add_floating, from_the_block, wrapped
from vjepa_mpc.robots.rendering import import_mujoco
from vjepa_mpc.robots.stage import HALF_WIDTH_M, add_slider, new_stage
from vjepa_mpc.robots.task import Script
from vjepa_mpc.robots.visibility import free, gap
from vjepa_mpc.robots.world import MujocoWorld

BLOCK: Float[np.ndarray, "2 2 2"] = np.array(
    [[[0.0, 0.0257], [0.06, 0.015]], [[0.0, -0.0343], [0.015, 0.045]]]
)
"""The T in its own frame, whose origin is its centre of mass: centres and half widths of bar and stem, m."""
TURNING_RADIUS_M = 0.04
"""A pure torque of this lever's force turns the block as fast, at this distance, as the force moves it."""
_HEIGHT_M = 0.03
_TIMESTEP_S = 0.002
_PUSHER_KG, _PUSHER_N, _RATE = 0.1, 8.0, 120.0
_BLOCK_KG, _DAMPING = 0.03, 4.0  # N s / m: the block floats as on oil and stops within 30 ms
_RAMP = 10


def push_t_spec(camera_size: int = 64) -> RobotSpec:
    """The pusher under displacements of its place, m; what it pushes is not in its own state."""
    return point_spec("push-t", camera_size)


WORLD = StateSpec(
    owner="push-t",
    names=("x", "y", "block_x", "block_y", "block_angle"),
    low=(-REACH_M, -REACH_M, -HALF_WIDTH_M, -HALF_WIDTH_M, -math.pi),
    high=(REACH_M, REACH_M, HALF_WIDTH_M, HALF_WIDTH_M, math.pi),
    units=("m", "m", "m", "m", "rad"),
)


class PushT(MujocoWorld):
    """A ball (radius 15 mm) and a T-shaped block (120 mm wide and long) on the board, seen from above.

    Action [x_delta, y_delta] in m per control step of 0.2 s, as in the point worlds. The block is damped in
    all directions alike, so that it moves only while it is pushed.
    """

    def __init__(self, camera_size: int = 64, seed: int = 0, backend: str = "auto") -> None:
        super().__init__(
            push_t_spec(camera_size), _build(), {"camera_size": camera_size, "seed": seed}, backend
        )
        self._put(np.array([0.0, -0.2, 0.0, 0.0, 0.0]))

    def _check(self, state: Float[np.ndarray, "w"]) -> Float[np.ndarray, "w"]:
        checked = WORLD.check(state)
        if gap(from_the_block(checked), BLOCK) < RADIUS_M - 0.002:
            raise InputError(
                f"The pusher at {checked[:2].tolist()} m would stand in the block; put it elsewhere."
            )
        return checked

    def _rest(self, state: Float[np.ndarray, "w"]) -> None:
        self._data.qpos[:] = state
        self._data.ctrl[:] = state[:2]

    def sample_state(self, generator: np.random.Generator) -> Float[np.ndarray, "w"]:
        """The block within 0.13 m of the middle along each axis at any angle, the pusher anywhere beside it."""
        return _sample(generator)

    def true_state(self) -> Float[np.ndarray, "w"]:
        """Pusher's and block's place [m] and the block's angle [rad, in -pi to pi]."""
        x, y, block_x, block_y, angle = self._data.qpos
        return np.clip(np.array([x, y, block_x, block_y, wrapped(angle)]), WORLD.low, WORLD.high)

    def _measure(self) -> Float[np.ndarray, "s"]:
        return self.true_state()[:2]

    def _move(self, wanted: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        before = self._data.qpos[:2].copy()
        target = np.clip(before + wanted, -REACH_M, REACH_M)
        self._glide(before, target, _RAMP)
        return target - before

    def stop(self) -> None:
        self._data.ctrl[:] = self._data.qpos[:2]
        self._data.qvel[:] = 0.0

    def end_effector(self) -> Float[np.ndarray, "3"]:
        """The pusher's centre, m."""
        return np.array([*self._data.qpos[:2], RADIUS_M])


def _sample(generator: np.random.Generator) -> Float[np.ndarray, "5"]:
    block = generator.uniform((-0.13, -0.13, -math.pi), (0.13, 0.13, math.pi))
    while True:
        state = np.concatenate([generator.uniform(-REACH_M, REACH_M, 2), block])
        if _clear(state, RADIUS_M + 0.005):
            return state


def _clear(state: Float[np.ndarray, "5"], margin: float) -> bool:
    return free(from_the_block(state), BLOCK, margin)


def _build() -> Any:
    mujoco = import_mujoco()
    spec = new_stage(_TIMESTEP_S)
    add_slider(spec, "pusher", RADIUS_M, _PUSHER_KG, _PUSHER_N, _RATE)
    block = spec.worldbody.add_body(name="block", pos=[0.0, 0.0, _HEIGHT_M / 2])
    add_floating(block, "block", _DAMPING, TURNING_RADIUS_M)
    areas = BLOCK[:, 1].prod(axis=1)
    for name, (center, half), area in zip(("bar", "stem"), BLOCK, areas, strict=True):
        block.add_geom(
            name=name, type=mujoco.mjtGeom.mjGEOM_BOX, pos=[*center, 0.0], size=[*half, _HEIGHT_M / 2],
            mass=_BLOCK_KG * area / areas.sum(), material="effector", condim=3, friction=[0.3, 0.0, 0.0],
        )  # fmt: skip
    return spec.compile()


@dataclass(frozen=True)
class PushTTask(PushTask):
    """Push the T to where it is in the goal picture, turned as it is there; the ball may be anywhere."""

    name: ClassVar[str] = "push-t"
    robot: ClassVar[str] = "push-t"
    summary: ClassVar[str] = "a ball pushes a T-shaped block to a place and an angle"

    @property
    def spec(self) -> RobotSpec:
        return push_t_spec()

    @property
    def world(self) -> StateSpec:
        return WORLD

    def sample(self, generator: np.random.Generator) -> Float[np.ndarray, "5"]:
        return _sample(generator)

    def script(self, goal: Float[np.ndarray, "5"]) -> Script:
        return self._push(goal, rest=None)

    def demonstration(self, goal: Float[np.ndarray, "5"]) -> Script:
        """Afterwards the ball goes to its own place in the goal picture."""
        return self._push(goal, rest=np.asarray(goal, dtype=np.float64)[:2])

    def _push(self, goal: Float[np.ndarray, "5"], rest: Float[np.ndarray, "2"] | None) -> PushScript:
        shape = PushShape(BLOCK, TURNING_RADIUS_M, self.lever_m, RADIUS_M, STEP_M, REACH_M)
        return PushScript(np.asarray(goal, dtype=np.float64)[2:], shape, rest)
