"""Kinova's Jaco arm, moved by displacements of its hand, and the task of reaching with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.base import Camera, RobotSpec
from vjepa_mpc.robots.differential_ik import SiteKinematics
from vjepa_mpc.robots.rendering import dm_control_folder, import_mujoco
from vjepa_mpc.robots.stage import dress
from vjepa_mpc.robots.task import Script, Task
from vjepa_mpc.robots.world import MujocoWorld

CONTROL_PERIOD_S = 0.2
CAMERA = "front"
STEP_M = 0.03
LOW_M, HIGH_M = (-0.2, -0.55, 0.06), (0.2, -0.3, 0.32)
"""The box in which the point between the fingertips moves; x, y, z in the base's frame, z up."""
JOINTS = tuple(f"joint_{number}" for number in range(1, 7))
PINCH = "hand_pinchsite"
HOME_RAD = (4.557, 3.584, 1.279, 6.024, 0.976, 5.869)
"""The hand in the middle of the box, pointing down: inverse kinematics of a placed arm starts here."""
DOWN: Float[np.ndarray, "3 3"] = np.diag([1.0, -1.0, -1.0])
SPEED_RAD_S: Float[np.ndarray, "6"] = np.radians([36.0] * 3 + [48.0] * 3)  # Kinova's own limits
_TIMESTEP_S = 0.005
_RATE = 80.0  # 1/s, of the servos
_ARMATURE = (4.0, 4.0, 4.0, 2.0, 2.0, 2.0)  # kg m^2, as in dm_control's model, which the servos are made for
_CAMERA_M, _LOOKED_AT_M = (0.8, -1.05, 0.75), (0.0, -0.25, 0.27)


def jaco_spec(camera_size: int = 64) -> RobotSpec:
    """The hand's place under displacements of it, m, in the base's frame."""
    return RobotSpec(
        name="jaco-reach",
        action_names=("x_delta", "y_delta", "z_delta"),
        action_low=(-STEP_M,) * 3,
        action_high=(STEP_M,) * 3,
        action_units=("m",) * 3,
        state_names=("x", "y", "z"),
        state_low=LOW_M,
        state_high=HIGH_M,
        state_units=("m",) * 3,
        state_periodic=(False,) * 3,
        control_period_s=CONTROL_PERIOD_S,
        cameras={CAMERA: Camera(camera_size, camera_size)},
        state_model="joints",
    )


class Jaco(MujocoWorld):
    """dm_control's model of Kinova's Jaco (6 joints, three-fingered hand held open), seen from the front.

    Action [x_delta, y_delta, z_delta] in m per control step of 0.2 s: the target is the measured place of the
    point between the fingertips plus the action, kept in the box; damped least squares find the joints for it,
    with the hand pointing down throughout, within their limits and speeds. Near a singularity, or where a
    joint would turn too fast, the step gets shorter, and `apply` says by how much. Gravity is compensated and
    contacts are off, as Kinova's own controller does the one and the box rules out most of the other.
    """

    obstacles = False

    def __init__(self, camera_size: int = 64, seed: int = 0, backend: str = "auto") -> None:
        super().__init__(
            jaco_spec(camera_size), _build(), {"camera_size": camera_size, "seed": seed}, backend
        )
        self._kinematics = SiteKinematics(self._model, PINCH, JOINTS)
        self._put((np.array(LOW_M) + HIGH_M) / 2)

    def _check(self, state: Float[np.ndarray, "w"]) -> Float[np.ndarray, "w"]:
        return self._spec.check_state(state)

    def _rest(self, state: Float[np.ndarray, "w"]) -> None:
        angles = self._kinematics.solve(np.array(HOME_RAD), state, DOWN, iterations=100)
        if np.abs(self._kinematics.error(angles, state, DOWN)).max() > 1e-4:
            raise InputError(f"The arm cannot put its hand at {state.tolist()} m, pointing down.")
        self._data.qpos[:] = angles
        self._data.ctrl[:] = angles

    def sample_state(self, generator: np.random.Generator) -> Float[np.ndarray, "w"]:
        """A place in the box, uniform."""
        return generator.uniform(LOW_M, HIGH_M)

    def true_state(self) -> Float[np.ndarray, "w"]:
        return np.clip(self.end_effector(), LOW_M, HIGH_M)

    def _measure(self) -> Float[np.ndarray, "s"]:
        return self.true_state()

    def _move(self, wanted: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        before, start = self._data.qpos.copy(), self.end_effector()
        target = np.clip(start + wanted, LOW_M, HIGH_M)
        turn = self._kinematics.solve(before, target, DOWN) - before
        turn *= min(1.0, float((SPEED_RAD_S * CONTROL_PERIOD_S / np.maximum(np.abs(turn), 1e-9)).min()))
        self._glide(before, before + turn, jumps=10)
        return self._kinematics.pose(before + turn)[0] - start

    def stop(self) -> None:
        self._data.ctrl[:] = self._data.qpos
        self._data.qvel[:] = 0.0

    def end_effector(self) -> Float[np.ndarray, "3"]:
        """The point between the fingertips, m."""
        return self._data.site(PINCH).xpos.copy()


def _build() -> Any:
    mujoco = import_mujoco()
    folder = dm_control_folder() / "third_party" / "kinova"
    spec = mujoco.MjSpec.from_file(str(folder / "jaco_arm.xml"))
    hand = mujoco.MjSpec.from_file(str(folder / "jaco_hand.xml"))
    for joint in list(hand.joints):  # the fingers stay open
        hand.delete(joint)
    spec.attach(hand, prefix="hand_", site=spec.site("wristsite"))
    spec.option.timestep = _TIMESTEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    for geom in spec.geoms:
        geom.contype = geom.conaffinity = 0
        geom.material = "effector" if "ring" in geom.name or "finger" in geom.name else "self"
    for body in spec.bodies[1:]:
        body.gravcomp = 1.0
    for name, armature in zip(JOINTS, _ARMATURE, strict=True):
        servo = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        servo.set_to_position(kp=armature * _RATE**2, kv=2.0 * armature * _RATE)
    dress(spec, floor_half_width_m=0.6)
    spec.worldbody.add_camera(name=CAMERA, pos=_CAMERA_M, quat=_looking(_CAMERA_M, _LOOKED_AT_M), fovy=46.0)
    return spec.compile()


def _looking(eye: tuple[float, ...], at: tuple[float, ...]) -> Float[np.ndarray, "4"]:
    """The quaternion of a camera at `eye` that looks at `at`, with the world's z upwards in its picture."""
    back = np.subtract(eye, at) / math.dist(eye, at)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    quaternion = np.empty(4)
    import_mujoco().mju_mat2Quat(quaternion, np.column_stack([right, np.cross(back, right), back]).ravel())
    return quaternion


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
