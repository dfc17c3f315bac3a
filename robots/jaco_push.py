"""Kinova's Jaco arm pushes a brick about with a peg in its hand: contact, in a real arm's interface."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.base import RobotSpec, StateSpec
from vjepa_mpc.robots.jaco_arm import FLOOR_M, PINCH, STEP_M, JacoArm, arm_missing, arm_model, hand_spec
from vjepa_mpc.robots.push_script import PushScript, PushShape
from vjepa_mpc.robots.push_task import PushTask, add_floating, from_the_block, wrapped
from vjepa_mpc.robots.rendering import import_mujoco
from vjepa_mpc.robots.task import Script
from vjepa_mpc.robots.visibility import gap

LOW_M, HIGH_M = (-0.15, -0.6, 0.03), (0.15, -0.3, 0.15)
"""The box in which the peg's tip moves; x, y, z in the base's frame, z up."""
PEG_M = 0.012
BRICK: Float[np.ndarray, "1 2 2"] = np.array([[[0.0, 0.0], [0.05, 0.03]]])
"""The brick in its own frame: centre and half widths, m."""
TURNING_RADIUS_M = 0.035
"""A pure torque of this lever's force turns the brick as fast, at this distance, as the force moves it."""
_MIDDLE: Float[np.ndarray, "2"] = np.array([0.0, -0.45])
_REACH_M = 0.15
_HEIGHT_M = 0.05
_THERE_M = 0.002
_BRICK_KG, _DAMPING = 0.1, 8.0  # N s / m: the brick floats as on oil and stops within 50 ms
_SPREAD_M = 0.06  # of the brick's place about the middle

WORLD = StateSpec(
    owner="jaco-push",
    names=("x", "y", "z", "brick_x", "brick_y", "brick_angle"),
    low=(*LOW_M, -0.25, -0.7, -math.pi),
    high=(*HIGH_M, 0.25, -0.2, math.pi),
    units=("m",) * 5 + ("rad",),
)


def jaco_push_spec(camera_size: int = 64) -> RobotSpec:
    """The peg's place under displacements of it, m; what it pushes is not in its own state."""
    return hand_spec("jaco-push", (LOW_M, HIGH_M), camera_size)


class JacoPush(JacoArm):
    """The arm with an upright peg (radius 12 mm) in its open hand, and a brick of 100 x 60 x 50 mm on the floor.

    Actions are those of `JacoArm`. The peg alone touches the brick, which slides and turns on the floor, damped in
    all directions alike, so that it moves only while it is pushed; a peg above 62 mm passes over it.
    """

    obstacles = True  # what is painted as decoration is the thing to be moved

    def __init__(self, camera_size: int = 64, seed: int = 0, backend: str = "auto") -> None:
        settings = {"camera_size": camera_size, "seed": seed}
        super().__init__(jaco_push_spec(camera_size), _build(), settings, backend)
        self._brick = self._model.joint("brick_x").qposadr[0] + np.arange(3)
        self._put(np.array([0.0, -0.58, 0.05, 0.0, -0.45, 0.0]))

    def _check(self, state: Float[np.ndarray, "w"]) -> Float[np.ndarray, "w"]:
        checked = WORLD.check(state)
        # The tip is a ball: over the brick's edge it may be nearer from the side than it may below.
        if math.hypot(gap(from_the_block(checked), BRICK), max(checked[2] - _HEIGHT_M, 0.0)) < PEG_M - 0.002:
            raise InputError(f"A peg at {checked[:3].tolist()} m would stand in the brick; put it elsewhere.")
        return checked

    def _rest(self, state: Float[np.ndarray, "w"]) -> None:
        self._rest_hand(state[:3])
        self._data.qpos[self._brick] = state[3:]

    def sample_state(self, generator: np.random.Generator) -> Float[np.ndarray, "w"]:
        """The brick within 60 mm of the middle along each axis at any angle, the peg anywhere clear of it."""
        return sample(generator)

    def true_state(self) -> Float[np.ndarray, "w"]:
        """The peg's and the brick's place [m] and the brick's angle [rad, in -pi to pi]."""
        x, y, angle = self._data.qpos[self._brick]
        state = np.array([*self._place_of_hand(), x, y, wrapped(angle)])
        return np.clip(state, WORLD.low, WORLD.high)

    def _measure(self) -> Float[np.ndarray, "s"]:
        return self._place_of_hand()

    def _move(self, wanted: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        return self._move_hand(wanted)


def sample(generator: np.random.Generator) -> Float[np.ndarray, "6"]:
    """A random state at rest; the peg stands in the lower half of its box."""
    brick = np.array([*(_MIDDLE + generator.uniform(-_SPREAD_M, _SPREAD_M, 2)), generator.uniform(-math.pi, math.pi)])
    while True:
        state = np.concatenate([generator.uniform(LOW_M, (*HIGH_M[:2], 0.09)), brick])
        if gap(from_the_block(state), BRICK) > PEG_M + 0.008:
            return state


def _build() -> Any:
    mujoco = import_mujoco()
    spec = arm_model(looked_at=FLOOR_M)
    site = spec.site(PINCH)
    palm = site.pos + np.array([0.0, 0.0, 0.1])  # the hand's own z points from the fingers to the wrist
    site.parent.add_geom(
        name="peg", type=mujoco.mjtGeom.mjGEOM_CAPSULE, fromto=[*site.pos, *palm], size=[PEG_M, 0.0, 0.0], mass=0.02,
        material="effector", contype=1, conaffinity=0, condim=3, friction=[0.3, 0.0, 0.0],
    )  # fmt: skip
    brick = spec.worldbody.add_body(name="brick", pos=[0.0, 0.0, _HEIGHT_M / 2])
    add_floating(brick, "brick", _DAMPING, TURNING_RADIUS_M)
    brick.add_geom(
        name="brick", type=mujoco.mjtGeom.mjGEOM_BOX, size=[*BRICK[0, 1], _HEIGHT_M / 2], mass=_BRICK_KG,
        material="decoration", contype=0, conaffinity=1, condim=3, friction=[0.3, 0.0, 0.0],
        solref=[0.01, 1.0],
    )  # fmt: skip
    return spec.compile()


@dataclass(frozen=True)
class JacoPushTask(PushTask):
    """Push the brick to where it is in the goal picture, turned as it is there; the hand may be anywhere."""

    name: ClassVar[str] = "jaco-push"
    robot: ClassVar[str] = "jaco-push"
    summary: ClassVar[str] = "Kinova's Jaco arm pushes a brick to a place and an angle"
    same_after_rad: ClassVar[float] = math.pi

    @property
    def spec(self) -> RobotSpec:
        return jaco_push_spec()

    @property
    def missing(self) -> str | None:
        return arm_missing()

    @property
    def world(self) -> StateSpec:
        return WORLD

    def sample(self, generator: np.random.Generator) -> Float[np.ndarray, "6"]:
        return sample(generator)

    def script(self, goal: Float[np.ndarray, "6"]) -> Script:
        return self._push(goal, rest=None)

    def demonstration(self, goal: Float[np.ndarray, "6"]) -> Script:
        """Afterwards the peg goes to its own place in the goal picture."""
        return self._push(goal, rest=np.asarray(goal, dtype=np.float64)[:3])

    def _push(self, goal: Float[np.ndarray, "6"], rest: Float[np.ndarray, "3"] | None) -> Script:
        shape = PushShape(BRICK, TURNING_RADIUS_M, self.lever_m, PEG_M, STEP_M, _REACH_M)
        place = np.asarray(goal, dtype=np.float64)[3:]
        wanted = np.array([*(place[:2] - _MIDDLE), place[2]])
        push = PushScript(wanted, shape, None if rest is None else rest[:2] - _MIDDLE)
        return _on_the_floor(push, float(place[2]), None if rest is None else float(rest[2]))


def _on_the_floor(push: PushScript, goal_angle: float, rest_m: float | None) -> Script:
    """A planar push, seen from the middle of the floor, as displacements of a peg that is kept low until it is where it
    stays, at the height `rest_m`."""

    def act(state: Float[np.ndarray, "6"]) -> Float[np.ndarray, "3"]:
        angle = goal_angle - wrapped(goal_angle - float(state[5]), math.pi)
        planar = push(np.array([*(state[:2] - _MIDDLE), *(state[3:5] - _MIDDLE), angle]))
        there = rest_m is not None and push.resting and float(np.abs(planar).max()) < _THERE_M
        height = rest_m if there else 0.6 * LOW_M[2] + 0.4 * _HEIGHT_M
        return np.clip(np.array([*planar, height - state[2]]), -STEP_M, STEP_M)

    return act
