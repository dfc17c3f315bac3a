"""DeepMind Control Suite's two-joint reacher under position-delta actions, and the task of reaching with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.base import Camera, RobotSpec
from vjepa_mpc.robots.rendering import import_mujoco
from vjepa_mpc.robots.stage import dress
from vjepa_mpc.robots.task import Script, Task
from vjepa_mpc.robots.world import MujocoWorld

CONTROL_PERIOD_S = 0.2
WRIST_LIMIT_RAD = math.radians(160.0)
CAMERA = "top"
_TIMESTEP_S = 0.01
_STIFFNESS = (6.0, 2.5)  # N m / rad, shoulder and wrist
_DAMPING = (0.2, 0.05)  # N m s / rad: both joints near critical, so that they settle within a period
_VIEW_HALF_WIDTH_M = 0.27  # the arm reaches 0.24 m, the fingertip's radius is 0.01 m
_CAMERA_HEIGHT_M = 0.75
_FLOOR_HALF_WIDTH_M = 0.3
_STOP_GIVES_RAD = 1e-5  # measured: 5e-6
_JOINT_DAMPING = 0.01  # N m s / rad, dm_control's own


def reacher_spec(camera_size: int = 64, delta_limit: float = 0.3) -> RobotSpec:
    """What `Reacher` is, without building one (no MuJoCo needed). Angles in rad, period in s."""
    return RobotSpec(
        name="reacher",
        action_names=("shoulder_delta", "wrist_delta"),
        action_low=(-delta_limit, -delta_limit),
        action_high=(delta_limit, delta_limit),
        action_units=("rad", "rad"),
        state_names=("shoulder", "wrist"),
        state_low=(-math.pi, -WRIST_LIMIT_RAD),
        state_high=(math.pi, WRIST_LIMIT_RAD),
        state_units=("rad", "rad"),
        state_periodic=(True, False),
        control_period_s=CONTROL_PERIOD_S,
        cameras={CAMERA: Camera(height=camera_size, width=camera_size)},
        state_model="joints",
    )


class Reacher(MujocoWorld):
    """A planar arm of two links (0.12 m each) seen from above; every action turns its joints a little.

    Action [shoulder_delta, wrist_delta] in rad per control step of 0.2 s, each within `delta_limit`: the
    joints' position targets become measured angle + delta, clipped to the wrist's limit of 160 degrees. A
    stiff position servo settles within the step. The state is the measured (shoulder, wrist) in rad,
    the shoulder wrapped to [-pi, pi). dm_control's geometry and masses are kept, its target is not drawn.
    """

    obstacles = False

    def __init__(
        self, camera_size: int = 64, seed: int = 0, backend: str = "auto", delta_limit: float = 0.3
    ) -> None:
        if not 0.0 < delta_limit <= 0.3:
            raise InputError(
                f"delta_limit {delta_limit} rad is outside (0, 0.3]; the servo settles only within it."
            )
        super().__init__(
            reacher_spec(camera_size, delta_limit),
            build_model(),
            {"camera_size": camera_size, "seed": seed, "delta_limit": delta_limit},
            backend,
        )
        self._fingertip = self._model.geom("finger").id
        self._put(np.zeros(2))
        self._passed = self._data.qpos[None].copy()

    def _check(self, state: Float[np.ndarray, "w"]) -> Float[np.ndarray, "w"]:
        """What `true_state` says can be placed: the wrist at its limit where the servo leaves it a little beyond."""
        angles = np.array(state, dtype=np.float64)
        if angles.shape == (2,) and abs(angles[1]) < WRIST_LIMIT_RAD + _STOP_GIVES_RAD:
            angles[1] = min(max(angles[1], -WRIST_LIMIT_RAD), WRIST_LIMIT_RAD)
        return self._spec.check_state(angles)

    def _rest(self, state: Float[np.ndarray, "w"]) -> None:
        self._data.qpos[:] = state
        self._data.ctrl[:] = state

    def sample_state(self, generator: np.random.Generator) -> Float[np.ndarray, "w"]:
        """Joint angles [rad], uniform over both joints' ranges."""
        return generator.uniform(self._spec.state_low, self._spec.state_high)

    def true_state(self) -> Float[np.ndarray, "w"]:
        """The joint angles [rad]; the wrist's may be past its limit by what the servo leaves."""
        shoulder, wrist = self._data.qpos
        return np.array([_wrapped(shoulder), wrist])

    def _measure(self) -> Float[np.ndarray, "s"]:
        return self._angles()

    def _angles(self) -> Float[np.ndarray, "2"]:
        """Measured (shoulder, wrist): the shoulder wrapped, the wrist's sensor ending at its limit."""
        shoulder, wrist = self._data.qpos
        return np.array([_wrapped(shoulder), min(max(wrist, -WRIST_LIMIT_RAD), WRIST_LIMIT_RAD)])

    def _move(self, wanted: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """Turn the joints by `wanted` [rad]; less where the wrist would pass its limit."""
        before = self._data.qpos.copy()
        target = before + wanted
        target[1] = min(max(target[1], -WRIST_LIMIT_RAD), WRIST_LIMIT_RAD)
        self._data.ctrl[:] = target
        self._passed = np.empty((self._substeps, 2))
        for step in range(self._substeps):
            self._mujoco.mj_step(self._model, self._data)
            self._passed[step] = self._data.qpos
        return target - before

    def way(self) -> Float[np.ndarray, "n 2"]:
        """The true joint angles [rad] at every physics step of the last action."""
        way = self._passed.copy()
        way[:, 0] = (way[:, 0] + math.pi) % (2.0 * math.pi) - math.pi
        return way

    def stop(self) -> None:
        """Brake, and hold the present pose."""
        self._data.ctrl[:] = self._data.qpos
        self._data.qvel[:] = 0.0

    def end_effector(self) -> Float[np.ndarray, "3"]:
        """The fingertip's position in the world frame, m."""
        return self._data.geom_xpos[self._fingertip].copy()


def _wrapped(angle: float) -> float:
    """`angle` [rad] in [-pi, pi)."""
    return (angle + math.pi) % (2.0 * math.pi) - math.pi


@dataclass(frozen=True)
class ReachTask(Task):
    """Bring the reacher's fingertip to where it is in the goal picture; either elbow will do.

    Distances are the fingertip's to the goal's fingertip, in m.
    """

    name: ClassVar[str] = "reach"
    version: ClassVar[int] = 1
    robot: ClassVar[str] = "reacher"
    summary: ClassVar[str] = "a two-joint arm brings its fingertip to a place"
    mixture: ClassVar[Mapping[str, float]] = {"smooth": 0.40, "reach": 0.40, "full_speed": 0.12, "hold": 0.08}
    success_radius_m: float = 0.03
    min_start_distance_m: float = 0.05
    step_budget: int = 25
    held_steps: int = 3

    @property
    def spec(self) -> RobotSpec:
        return reacher_spec()

    def sample_pair(
        self, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
        """Start and goal joint angles [rad], uniform; pairs under `min_start_distance_m` are redrawn."""
        spec = self.spec
        while True:
            start, goal = generator.uniform(spec.state_low, spec.state_high, (2, 2))
            if self.distance(start, goal) >= self.min_start_distance_m:
                return start, goal

    def fingertip(self, state: Float[np.ndarray, "2"]) -> Float[np.ndarray, "3"]:
        """Where the fingertip is at joint angles `state` [rad]: world frame, m (two links of 0.12 m)."""
        shoulder, both = float(state[0]), float(state[0] + state[1])
        return np.array(
            [0.12 * (math.cos(shoulder) + math.cos(both)), 0.12 * (math.sin(shoulder) + math.sin(both)), 0.01]
        )

    def place(self, states: Any) -> Any:
        """The fingertip on the floor's plane, m."""
        import torch

        shoulder, both = states[..., 0], states[..., 0] + states[..., 1]
        return 0.12 * torch.stack((shoulder.cos() + both.cos(), shoulder.sin() + both.sin()), dim=-1)

    def distance(self, state: Float[np.ndarray, "2"], goal: Float[np.ndarray, "2"]) -> float:
        return float(np.linalg.norm(self.fingertip(state) - self.fingertip(goal)))

    def script(self, goal: Float[np.ndarray, "2"]) -> Script:
        return partial(self.scripted_action, goal=goal)

    def scripted_action(
        self, state: Float[np.ndarray, "2"], goal: Float[np.ndarray, "2"]
    ) -> Float[np.ndarray, "2"]:
        """Straight to the goal's joint angles, the shoulder the shorter way round."""
        spec = self.spec
        delta = np.asarray(goal, dtype=np.float64) - state
        delta[0] = _wrapped(float(delta[0]))
        return np.clip(delta, spec.action_low, spec.action_high)


def fingertips(states: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
    """Where the fingertip is at joint angles [rad]: on the floor's plane, m."""
    shoulder, both = states[..., 0], states[..., 0] + states[..., 1]
    return 0.12 * np.stack((np.cos(shoulder) + np.cos(both), np.sin(shoulder) + np.sin(both)), axis=-1)


def build_model() -> Any:
    """The `mujoco.MjModel`: dm_control's reacher (suite/reacher.xml) in numbers, with position servos and one close
    camera from above, without its target, its contacts and its sky."""
    mujoco = import_mujoco()
    spec = mujoco.MjSpec()
    spec.option.timestep = _TIMESTEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.disableflags = mujoco.mjtDisableBit.mjDSBL_CONTACT
    spec.compiler.degree = False
    dress(spec, floor_half_width_m=_FLOOR_HALF_WIDTH_M)
    _add_border(mujoco, spec)
    _add_arm(mujoco, spec)
    for name, stiffness, damping in zip(("shoulder", "wrist"), _STIFFNESS, _DAMPING, strict=True):
        servo = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        servo.set_to_position(kp=stiffness, kv=damping)
    field_of_view = 2.0 * math.degrees(math.atan(_VIEW_HALF_WIDTH_M / _CAMERA_HEIGHT_M))
    spec.worldbody.add_camera(name=CAMERA, pos=[0.0, 0.0, _CAMERA_HEIGHT_M], fovy=field_of_view)
    return spec.compile()


def _add_border(mujoco: Any, spec: Any) -> None:
    """Four upright planes at the floor's edges, facing the middle; the close camera does not see them."""
    for name, (x, y) in {"wall_x": (-1, 0), "wall_y": (0, -1), "wall_neg_x": (1, 0), "wall_neg_y": (0, 1)}.items():
        facing = np.empty(4)
        mujoco.mju_quatZ2Vec(facing, np.array([-x, -y, 0.0]))
        spec.worldbody.add_geom(
            name=name, type=mujoco.mjtGeom.mjGEOM_PLANE, material="decoration", quat=facing,
            pos=[x * _FLOOR_HALF_WIDTH_M, y * _FLOOR_HALF_WIDTH_M, 0.02],
            size=[0.02, 0.3, 0.02] if x else [0.3, 0.02, 0.02],
        )  # fmt: skip


def _add_arm(mujoco: Any, spec: Any) -> None:
    """Two links of 0.12 m (the outer one's capsule is 0.1 m long) and a ball for a fingertip, turning about z."""
    spec.worldbody.add_geom(
        name="root", type=mujoco.mjtGeom.mjGEOM_CYLINDER, fromto=[0, 0, 0, 0, 0, 0.02], size=[0.011, 0, 0],
        material="decoration",
    )  # fmt: skip
    arm = spec.worldbody.add_body(name="arm", pos=[0.0, 0.0, 0.01])
    hand = arm.add_body(name="hand", pos=[0.12, 0.0, 0.0])
    finger = hand.add_body(name="finger", pos=[0.12, 0.0, 0.0])
    for body, name, length in ((arm, "arm", 0.12), (hand, "hand", 0.1)):
        body.add_geom(
            name=name, type=mujoco.mjtGeom.mjGEOM_CAPSULE, fromto=[0, 0, 0, length, 0, 0], size=[0.01, 0, 0],
            material="self",
        )  # fmt: skip
    finger.add_geom(name="finger", type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.01, 0, 0], material="effector")
    hinge = {"type": mujoco.mjtJoint.mjJNT_HINGE, "axis": [0, 0, 1], "damping": _JOINT_DAMPING}
    arm.add_joint(name="shoulder", **hinge)
    hand.add_joint(
        name="wrist", limited=mujoco.mjtLimited.mjLIMITED_TRUE, range=[-WRIST_LIMIT_RAD, WRIST_LIMIT_RAD], **hinge
    )
