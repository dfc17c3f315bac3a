"""Kinova's Jaco arm on its stage, moved by displacements of its hand: what every task with it shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.base import Camera, RobotSpec
from vjepa_mpc.robots.differential_ik import SiteKinematics, shortened
from vjepa_mpc.robots.rendering import dm_control_folder, import_mujoco
from vjepa_mpc.robots.stage import dress, looking
from vjepa_mpc.robots.world import MujocoWorld

CONTROL_PERIOD_S = 0.2
CAMERA = "front"
STEP_M = 0.03
JOINTS = tuple(f"joint_{number}" for number in range(1, 7))
FINGERS = tuple(f"hand_finger_{number}" for number in range(1, 4))
PINCH = "hand_pinchsite"
HOME_RAD = (4.557, 3.584, 1.279, 6.024, 0.976, 5.869)
"""The hand in the middle of the box, pointing down: inverse kinematics of a placed arm starts here."""
DOWN: Float[np.ndarray, "3 3"] = np.diag([1.0, -1.0, -1.0])
SPEED_RAD_S: Float[np.ndarray, "6"] = np.radians([36.0] * 3 + [48.0] * 3)  # Kinova's own limits
_TIMESTEP_S = 0.005
_RATE = 80.0  # 1/s, of the servos
_ARMATURE = (4.0, 4.0, 4.0, 2.0, 2.0, 2.0)  # kg m^2, as in dm_control's model, which the servos are made for
_CAMERA_M = (0.8, -1.05, 0.75)
ARM_M, FLOOR_M = (0.0, -0.25, 0.27), (0.0, -0.36, 0.16)
"""What the camera looks at: the arm, or the floor before it."""

Box = tuple[tuple[float, float, float], tuple[float, float, float]]
"""The least and the greatest x, y, z in m of the point between the fingertips, in the base's frame, z up."""


def hand_spec(name: str, box: Box, camera_size: int = 64) -> RobotSpec:
    """The hand's place in a box under displacements of it, m, in the base's frame."""
    return RobotSpec(
        name=name,
        action_names=("x_delta", "y_delta", "z_delta"),
        action_low=(-STEP_M,) * 3,
        action_high=(STEP_M,) * 3,
        action_units=("m",) * 3,
        state_names=("x", "y", "z"),
        state_low=box[0],
        state_high=box[1],
        state_units=("m",) * 3,
        state_periodic=(False,) * 3,
        control_period_s=CONTROL_PERIOD_S,
        cameras={CAMERA: Camera(camera_size, camera_size)},
        state_model="joints",
    )


class JacoArm(MujocoWorld):
    """dm_control's model of Kinova's Jaco (6 joints, three-fingered hand), seen from the front.

    The hand's first three actions [x_delta, y_delta, z_delta] are in m per control step of 0.2 s: the target is the
    measured place of the point between the fingertips plus the action, kept in the box; damped least squares find
    the joints for it, with the hand pointing down throughout, within their limits and speeds. Near a singularity,
    or where a joint would turn too fast, the step gets shorter, and `apply` says by how much. Gravity is
    compensated for the arm, as Kinova's own controller does.
    """

    obstacles = False

    def __init__(self, spec: RobotSpec, model: Any, settings: Mapping[str, Any], backend: str) -> None:
        super().__init__(spec, model, settings, backend)
        self._kinematics = SiteKinematics(model, PINCH, JOINTS)
        self._low_m, self._high_m = np.array(spec.state_low[:3]), np.array(spec.state_high[:3])
        self._arm = self._kinematics.qpos
        """Where the arm's joints are in qpos; its servos come first in ctrl."""

    def _rest_hand(self, place: Float[np.ndarray, "3"]) -> None:
        """Put the arm where the hand is at `place`, pointing down; `InputError` where it cannot."""
        angles = self._kinematics.solve(np.array(HOME_RAD), place, DOWN, iterations=100)
        if np.abs(self._kinematics.error(angles, place, DOWN)).max() > 1e-4:
            raise InputError(f"The arm cannot put its hand at {place.tolist()} m, pointing down.")
        self._data.qpos[self._arm] = angles
        self._data.ctrl[: len(JOINTS)] = angles

    def _turns(self, wanted: Float[np.ndarray, "3"]) -> Float[np.ndarray, "6"]:
        """The joints' turns [rad] for a displacement of the hand, cut to their speeds."""
        before = self._data.qpos[self._arm]
        target = np.clip(self.end_effector() + wanted, self._low_m, self._high_m)
        turn = self._kinematics.solve(before, target, DOWN) - before
        limit = SPEED_RAD_S * CONTROL_PERIOD_S
        return turn * min(1.0, float((limit / np.maximum(np.abs(turn), 1e-9)).min()))

    def _move_hand(
        self, wanted: Float[np.ndarray, "3"], others: Float[np.ndarray, "k"] | None = None
    ) -> Float[np.ndarray, "3"]:
        """One control step; `others` are the targets of the servos after the arm's. Returns the displacement [m]."""
        before, start = self._data.qpos[self._arm].copy(), self.end_effector()

        def applied(turn: Float[np.ndarray, "6"]) -> Float[np.ndarray, "3"]:
            return self._kinematics.pose(before + turn)[0] - start

        allowed = np.array(self._spec.action_high[:3])
        turn = shortened(self._turns(wanted), lambda turn: float((np.abs(applied(turn)) / allowed).max()))
        held = self._data.ctrl[len(JOINTS) :].copy()
        after = held if others is None else others
        self._glide(np.concatenate([before, held]), np.concatenate([before + turn, after]), jumps=10)
        return applied(turn)

    def _place_of_hand(self) -> Float[np.ndarray, "3"]:
        return np.clip(self.end_effector(), self._low_m, self._high_m)

    def stop(self) -> None:
        """Brake, and hold the present pose."""
        self._data.ctrl[: len(JOINTS)] = self._data.qpos[self._arm]
        self._data.qvel[:] = 0.0

    def end_effector(self) -> Float[np.ndarray, "3"]:
        """The point between the fingertips, m."""
        return self._data.site(PINCH).xpos.copy()


def arm_missing() -> str | None:
    """Why the arm's description cannot be had here, with the way to mend that; None where it can."""
    try:
        dm_control_folder()
    except InputError as error:
        return str(error)
    return None


def arm_model(fingers: bool = False, looked_at: tuple[float, float, float] = ARM_M) -> Any:
    """A `mujoco.MjSpec` of arm, hand, floor and a camera, nothing of which is in contact with anything.

    Without `fingers` these are held open; with them their joints are there, without servos.
    """
    mujoco = import_mujoco()
    folder = dm_control_folder() / "third_party" / "kinova"
    spec = mujoco.MjSpec.from_file(str(folder / "jaco_arm.xml"))
    hand = mujoco.MjSpec.from_file(str(folder / "jaco_hand.xml"))
    for joint in [] if fingers else list(hand.joints):
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
    spec.worldbody.add_camera(name=CAMERA, pos=_CAMERA_M, quat=looking(_CAMERA_M, looked_at), fovy=46.0)
    return spec
