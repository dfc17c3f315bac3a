"""Kinova's Jaco arm picks a cube up and puts it down elsewhere, led by a sequence of sub-goal pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.base import Camera, RobotSpec, StateSpec
from vjepa_mpc.robots.jaco_arm import (
    CAMERA,
    CONTROL_PERIOD_S,
    FINGERS,
    FLOOR_M,
    JOINTS,
    PINCH,
    STEP_M,
    JacoArm,
    arm_missing,
    arm_model,
)
from vjepa_mpc.robots.rendering import import_mujoco
from vjepa_mpc.robots.task import Script, SubGoal, Task

CUBE_M = 0.025
"""Half the cube's edge, m."""
LOW_M, HIGH_M = (-0.15, -0.55, CUBE_M), (0.15, -0.33, 0.18)
"""The box in which the point between the fingertips moves; x, y, z in the base's frame, z up."""
GRASP_M = 0.02
"""Closing fingers take the cube when its middle is within this of the point between them, along each axis."""
CLOSED = 0.6
"""The gripper holds from here on; 0 is open, 1 is closed."""
GRIPPER_STEP = 0.5
OPEN_RAD, CLOSED_RAD = 0.2, 1.1
LIFT_M = 0.14
_CUBE_KG, _FINGER_KP = 0.1, 40.0

WORLD = StateSpec(
    owner="jaco-place",
    names=("x", "y", "z", "gripper", "cube_x", "cube_y", "cube_z"),
    low=(*LOW_M, 0.0, -0.2, -0.6, 0.02),
    high=(*HIGH_M, 1.0, 0.2, -0.28, 0.2),
    units=("m", "m", "m", "", "m", "m", "m"),
)


def jaco_place_spec(camera_size: int = 64) -> RobotSpec:
    """The hand's place, m, and its gripper in [0, 1] (0 open) under displacements of them."""
    return RobotSpec(
        name="jaco-place",
        action_names=("x_delta", "y_delta", "z_delta", "gripper_delta"),
        action_low=(-STEP_M,) * 3 + (-GRIPPER_STEP,),
        action_high=(STEP_M,) * 3 + (GRIPPER_STEP,),
        action_units=("m", "m", "m", ""),
        state_names=("x", "y", "z", "gripper"),
        state_low=(*LOW_M, 0.0),
        state_high=(*HIGH_M, 1.0),
        state_units=("m", "m", "m", ""),
        state_periodic=(False,) * 4,
        control_period_s=CONTROL_PERIOD_S,
        cameras={CAMERA: Camera(camera_size, camera_size)},
        state_model="joints",
    )


class JacoPlace(JacoArm):
    """The arm with fingers that open and close, and a cube of 50 mm on the floor.

    Action [x_delta, y_delta, z_delta] in m as in `JacoArm`, and gripper_delta. A grasp is rigid, not by friction: a
    gripper that closes past `CLOSED` with the cube's middle within `GRASP_M` of the point between its fingertips
    holds it there until it opens; then the cube falls to the floor. The cube does not turn, and the hand passes
    through it otherwise. Whether it takes the cube is decided before the hand moves on.
    """

    obstacles = True  # what is painted as decoration is the thing to be moved

    def __init__(self, camera_size: int = 64, seed: int = 0, backend: str = "auto") -> None:
        settings = {"camera_size": camera_size, "seed": seed}
        super().__init__(jaco_place_spec(camera_size), _build(), settings, backend)
        self._fingers = np.array([int(self._model.joint(name).qposadr[0]) for name in FINGERS])
        self._cube = int(self._model.joint("cube_x").qposadr[0]) + np.arange(3)
        self._put(np.array([0.0, -0.45, 0.15, 0.0, 0.0, -0.45, CUBE_M]))

    def _check(self, state: Float[np.ndarray, "w"]) -> Float[np.ndarray, "w"]:
        checked = WORLD.check(state)
        if checked[6] > CUBE_M + 2e-3 and not is_held(checked):
            raise InputError(f"The cube at {checked[4:].tolist()} m is in the air and no hand holds it; put it down.")
        return checked

    def _rest(self, state: Float[np.ndarray, "w"]) -> None:
        self._rest_hand(state[:3])
        angle = OPEN_RAD + state[3] * (CLOSED_RAD - OPEN_RAD)
        self._data.qpos[self._fingers] = self._data.ctrl[len(JOINTS) :] = angle
        self._data.qpos[self._cube] = state[4:]
        self._data.eq_active[:] = is_held(state)

    def sample_state(self, generator: np.random.Generator) -> Float[np.ndarray, "w"]:
        """The hand anywhere in its box; the cube in its closed gripper, or on the floor beside an open one."""
        place = generator.uniform(LOW_M, HIGH_M)
        if generator.random() < 0.4:
            return held(place)
        return on_floor(place, floor_place(generator))

    def true_state(self) -> Float[np.ndarray, "w"]:
        """The hand's place [m], its gripper [0 to 1] and the cube's place [m]."""
        state = np.array([*self._place_of_hand(), self._gripper(), *self._data.qpos[self._cube]])
        return np.clip(state, WORLD.low, WORLD.high)

    def touching(self) -> bool:
        """Whether the hand has the cube; it passes through it otherwise."""
        return bool(self._data.eq_active[0])

    def _gripper(self) -> float:
        angle = float(self._data.qpos[self._fingers].mean())
        return min(max((angle - OPEN_RAD) / (CLOSED_RAD - OPEN_RAD), 0.0), 1.0)

    def _measure(self) -> Float[np.ndarray, "s"]:
        return self.true_state()[:4]

    def _move(self, wanted: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        before = self._gripper()
        after = min(max(before + float(wanted[3]), 0.0), 1.0)
        if after < CLOSED:
            self._data.eq_active[:] = False
        elif not self._data.eq_active[0]:
            apart = self._data.qpos[self._cube] - self.end_effector()
            self._data.eq_active[:] = bool(np.abs(apart).max() <= GRASP_M)
        fingers = np.full(len(FINGERS), OPEN_RAD + after * (CLOSED_RAD - OPEN_RAD))
        return np.array([*self._move_hand(wanted[:3], fingers), after - before])


def is_held(state: Float[np.ndarray, "7"]) -> bool:
    """Whether a gripper so closed has the cube between its fingers."""
    return bool(state[3] >= CLOSED - 0.02 and np.abs(state[4:] - state[:3]).max() <= 2e-3)


def held(place: Float[np.ndarray, "3"]) -> Float[np.ndarray, "7"]:
    """The state with the cube in the closed hand at `place` [m]."""
    return np.array([*place, 1.0, *place])


def on_floor(place: Float[np.ndarray, "3"], cube: Float[np.ndarray, "2"]) -> Float[np.ndarray, "7"]:
    """The state with the open hand at `place` and the cube on the floor at `cube`, m."""
    return np.array([*place, 0.0, *cube, CUBE_M])


def floor_place(generator: np.random.Generator) -> Float[np.ndarray, "2"]:
    """A place on the floor [m] at which the hand can take the cube, uniform."""
    return generator.uniform((-0.12, -0.53), (0.12, -0.36))


def _build() -> Any:
    mujoco = import_mujoco()
    spec = arm_model(fingers=True, looked_at=FLOOR_M)
    for name in FINGERS:
        servo = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        servo.set_to_position(kp=_FINGER_KP, kv=1.2)  # critically damped
        joint = spec.joint(name)
        joint.frictionloss, joint.armature = 0.0, 0.01
        joint.damping = [0.1, 0.0, 0.0]
    cube = spec.worldbody.add_body(name="cube", pos=[0.0, 0.0, 0.0])
    for name, axis in (("cube_x", [1, 0, 0]), ("cube_y", [0, 1, 0]), ("cube_z", [0, 0, 1])):
        kind, damping = mujoco.mjtJoint.mjJNT_SLIDE, 0.0 if name == "cube_z" else 4.0
        cube.add_joint(name=name, type=kind, axis=axis, damping=[damping, 0.0, 0.0])
    floor = spec.joint("cube_z")  # the floor, as the end of the cube's way down
    floor.limited, floor.range = mujoco.mjtLimited.mjLIMITED_TRUE, [CUBE_M, 1.0]
    floor.solref_limit = [0.01, 1.0]
    cube.add_geom(
        name="cube", type=mujoco.mjtGeom.mjGEOM_BOX, size=[CUBE_M] * 3, mass=_CUBE_KG, material="decoration",
        contype=0, conaffinity=0,
    )  # fmt: skip
    cube.add_site(name="cube", rgba=[0.0] * 4)
    grasp = spec.add_equality(name="grasp", type=mujoco.mjtEq.mjEQ_CONNECT, objtype=mujoco.mjtObj.mjOBJ_SITE)
    grasp.name1, grasp.name2, grasp.active, grasp.solref = "cube", PINCH, False, [0.01, 1.0]
    return spec.compile()


@dataclass(frozen=True)
class JacoPlaceTask(Task):
    """Take the cube and put it where it is in the goal picture, by way of three pictures, as V-JEPA 2-AC is asked to.

    The sub-goals, each with its share of the steps: the closed hand has the cube; it is lifted over its new place;
    it lies there, the hand open above. The distance is the cube's to its place in the goal, m.
    """

    name: ClassVar[str] = "jaco-place"
    robot: ClassVar[str] = "jaco-place"
    summary: ClassVar[str] = "Kinova's Jaco arm picks a cube up and puts it down, led by three sub-goal pictures"
    mixture: ClassVar[Mapping[str, float]] = {"smooth": 0.25, "script": 0.60, "full_speed": 0.10, "hold": 0.05}
    success_radius_m: float = 0.03
    min_start_distance_m: float = 0.08
    step_budget: int = 55
    held_steps: int = 3

    @property
    def spec(self) -> RobotSpec:
        return jaco_place_spec()

    @property
    def missing(self) -> str | None:
        return arm_missing()

    @property
    def world(self) -> StateSpec:
        return WORLD

    def sample_pair(
        self, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, "7"], Float[np.ndarray, "7"]]:
        """An open hand anywhere and a cube on the floor; at the goal the hand is open above the cube."""
        while True:
            start = on_floor(generator.uniform(LOW_M, HIGH_M), floor_place(generator))
            put = floor_place(generator)
            goal = on_floor(np.array([*put, LIFT_M]), put)
            if self.distance(start, goal) >= self.min_start_distance_m:
                return start, goal

    def sub_goals(self, start: Float[np.ndarray, "7"], goal: Float[np.ndarray, "7"]) -> tuple[SubGoal, ...]:
        """Grasped until step 20, lifted and over its place until step 38, put down until the end."""
        taken, put = np.asarray(start)[4:], np.asarray(goal)[4:]
        over = np.array([*put[:2], LIFT_M])
        return SubGoal(held(taken), 20), SubGoal(held(over), 38), SubGoal(np.asarray(goal), self.step_budget)

    def distance(self, state: Float[np.ndarray, "7"], goal: Float[np.ndarray, "7"]) -> float:
        return float(np.linalg.norm(np.asarray(state)[4:] - np.asarray(goal)[4:]))

    def script(self, goal: Float[np.ndarray, "7"]) -> Script:
        """Towards one sub-goal; to a goal far from the cube by taking it, lifting it and carrying it there."""
        return _Carry(np.asarray(goal, dtype=np.float64))


class _Carry:
    """Takes the cube if it is not where the goal has it, carries it there, and takes the hand to its own place."""

    def __init__(self, goal: Float[np.ndarray, "7"]) -> None:
        self._goal = goal

    def __call__(self, state: Float[np.ndarray, "7"]) -> Float[np.ndarray, "4"]:
        hand, cube, goal = state[:3], state[4:], self._goal
        has, there = is_held(state), bool(np.linalg.norm(cube - goal[4:]) < 0.015)
        if there and has == is_held(goal):
            return self._towards(hand, goal[:3], 1.0 if has else -1.0)
        if has:
            return self._carry(hand, goal)
        above = np.array([*cube[:2], max(hand[2], cube[2] + 0.07)])
        if np.abs(hand[:2] - cube[:2]).max() > 0.01:
            return self._towards(hand, above, -1.0)
        near = bool(np.abs(hand - self._reach(cube)).max() < 0.008)
        return self._towards(hand, self._reach(cube), 1.0 if near else -1.0)

    def _carry(self, hand: Float[np.ndarray, "3"], goal: Float[np.ndarray, "7"]) -> Float[np.ndarray, "4"]:
        target = self._reach(goal[4:])
        apart = float(np.abs(hand[:2] - target[:2]).max())
        if apart > 0.01:  # up first, then across
            across = target[:2] if hand[2] > 0.08 else hand[:2]
            return self._towards(hand, np.array([*across, max(LIFT_M, target[2])]), 1.0)
        down = bool(np.abs(hand - target).max() < 0.008)
        return self._towards(hand, target, -1.0 if down and not is_held(goal) else 1.0)

    def _reach(self, cube: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
        return np.clip(cube, LOW_M, HIGH_M)

    def _towards(
        self, hand: Float[np.ndarray, "3"], place: Float[np.ndarray, "3"], grip: float
    ) -> Float[np.ndarray, "4"]:
        return np.array([*np.clip(place - hand, -STEP_M, STEP_M), grip * GRIPPER_STEP])

