"""dm_control's two-joint reacher under position-delta actions."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.appearance import DISTRACTOR_MAX_M, DISTRACTORS, Painter
from vjepa_mpc.robots.base import Camera, Observation, RobotSpec
from vjepa_mpc.robots.rendering import MujocoRenderer, import_mujoco

CONTROL_PERIOD_S = 0.2
WRIST_LIMIT_RAD = math.radians(160.0)
CAMERA = "top"
_TIMESTEP_S = 0.01
_STIFFNESS = (6.0, 2.5)  # N m / rad, shoulder and wrist
_DAMPING = (0.2, 0.05)  # N m s / rad: both joints near critical, so that they settle within a period
_VIEW_HALF_WIDTH_M = 0.27  # the arm reaches 0.24 m, the fingertip's radius is 0.01 m
_CAMERA_HEIGHT_M = 0.75


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


class Reacher:
    """A planar arm of two links (0.12 m each) seen from above; every action turns its joints a little.

    Action [shoulder_delta, wrist_delta] in rad per control step of 0.2 s, each within `delta_limit`: the
    joints' position targets become measured angle + delta, clipped to the wrist's limit of 160 degrees. A
    stiff position servo settles within the step. The state is the measured (shoulder, wrist) in rad,
    the shoulder wrapped to [-pi, pi). dm_control's geometry and masses are kept, its target is not drawn.
    """

    def __init__(
        self, camera_size: int = 64, seed: int = 0, backend: str = "auto", delta_limit: float = 0.3
    ) -> None:
        if not 0.0 < delta_limit <= 0.3:
            raise InputError(
                f"delta_limit {delta_limit} rad is outside (0, 0.3]; the servo settles only within it."
            )
        self._mujoco = import_mujoco()
        self._spec = reacher_spec(camera_size, delta_limit)
        self._settings = {"camera_size": camera_size, "seed": seed, "delta_limit": delta_limit}
        self._model = build_model()
        self._data = self._mujoco.MjData(self._model)
        self._substeps = round(CONTROL_PERIOD_S / _TIMESTEP_S)
        self._fingertip = self._model.geom("finger").id
        self._painter = Painter(self._model)
        self._renderer = MujocoRenderer(self._model, camera_size, camera_size, backend)
        self._generator = np.random.default_rng(seed)
        self._rest(np.zeros(2))

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def renderer_identity(self) -> str:
        return self._renderer.identity

    def settings(self) -> Mapping[str, Any]:
        """The constructor's arguments, with the back end that was chosen."""
        return {**self._settings, "backend": self._renderer.backend}

    def reset(self, seed: int | None = None) -> Observation:
        """Rest in a random pose, uniform over both joints' ranges; `seed` starts the generator anew."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        return self.place(self._generator.uniform(self._spec.state_low, self._spec.state_high))

    def place(self, state: Float[np.ndarray, "s"]) -> Observation:
        self._rest(self._spec.check_state(state))
        return self.observe()

    def _rest(self, angles: Float[np.ndarray, "2"]) -> None:
        self._mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:] = angles
        self._data.ctrl[:] = angles
        self._mujoco.mj_forward(self._model, self._data)

    def observe(self) -> Observation:
        """The picture and the measured angles of the same instant."""
        return Observation(
            images={CAMERA: self._renderer.render(self._data, CAMERA)},
            proprioception=self._angles().astype(np.float32),
            time_s=float(self._data.time),
        )

    def _angles(self) -> Float[np.ndarray, "2"]:
        """Measured (shoulder, wrist): the shoulder wrapped, the wrist's sensor ending at its limit."""
        shoulder, wrist = self._data.qpos
        wrapped = (shoulder + math.pi) % (2.0 * math.pi) - math.pi
        return np.array([wrapped, min(max(wrist, -WRIST_LIMIT_RAD), WRIST_LIMIT_RAD)])

    def apply(self, action: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """Turn the joints by `action` [rad] during one control period; return the deltas truly commanded.

        They differ from `action` where it exceeds the action bounds or the wrist would pass its limit. A
        wrong size or a non-finite value raises `InputError`, and the arm holds its pose.
        """
        try:
            wanted = self._spec.check_action(action)
        except (InputError, TypeError, ValueError):
            self.stop()
            raise
        before = self._data.qpos.copy()
        target = before + np.clip(wanted, self._spec.action_low, self._spec.action_high)
        target[1] = min(max(target[1], -WRIST_LIMIT_RAD), WRIST_LIMIT_RAD)
        self._data.ctrl[:] = target
        self._mujoco.mj_step(self._model, self._data, self._substeps)
        # mj_step leaves body poses one substep behind the joint angles: picture and state must agree.
        self._mujoco.mj_forward(self._model, self._data)
        return target - before

    def stop(self) -> None:
        """Brake, and hold the present pose."""
        self._data.ctrl[:] = self._data.qpos
        self._data.qvel[:] = 0.0

    def end_effector(self) -> Float[np.ndarray, "3"]:
        """The fingertip's position in the world frame, m."""
        return self._data.geom_xpos[self._fingertip].copy()

    def set_appearance(self, seed: int | None, level: float = 1.0) -> None:
        """Redraw the world in the appearance of `seed` (see `sample_appearance`); None is the plain one."""
        self._renderer.upload_textures(self._painter.paint_seed(seed, level))
        # Positions of lights, camera and shapes on the floor are part of the kinematics.
        self._mujoco.mj_forward(self._model, self._data)

    def close(self) -> None:
        """Free the renderer. Safe to call again."""
        self._renderer.close()

    def __enter__(self) -> Reacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def build_model() -> Any:
    """The `mujoco.MjModel` of dm_control's reacher with position servos and one close camera from above."""
    mujoco = import_mujoco()
    spec = mujoco.MjSpec.from_file(str(_dm_control_suite() / "reacher.xml"))
    spec.option.timestep = _TIMESTEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    for actuator, stiffness, damping in zip(spec.actuators, _STIFFNESS, _DAMPING, strict=True):
        actuator.set_to_position(kp=stiffness, kv=damping)
        actuator.gear = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        actuator.ctrllimited = mujoco.mjtLimited.mjLIMITED_FALSE
    spec.delete(spec.geom("target"))
    spec.delete(spec.texture("skybox"))  # never in view, and 11 MB to upload
    field_of_view = 2.0 * math.degrees(math.atan(_VIEW_HALF_WIDTH_M / _CAMERA_HEIGHT_M))
    spec.worldbody.add_camera(name=CAMERA, pos=[0.0, 0.0, _CAMERA_HEIGHT_M], fovy=field_of_view)
    _add_distractors(mujoco, spec)
    return spec.compile()


def _add_distractors(mujoco: Any, spec: Any) -> None:
    """Discs and boxes, invisible and without contact until an appearance moves and colours them.

    A body each: MuJoCo fixes at compilation what it needs to move a body's only geom, but not the world's.
    They are compiled at their greatest size, as ray casting keeps the compiled bounding box.
    """
    shapes = (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_BOX)
    for index, name in enumerate(DISTRACTORS):
        spec.worldbody.add_body(name=name).add_geom(
            name=name, type=shapes[index % 2], size=[DISTRACTOR_MAX_M] * 3, rgba=[0.0, 0.0, 0.0, 0.0],
            contype=0, conaffinity=0, mass=0.0,
        )  # fmt: skip


def _dm_control_suite() -> Path:
    """dm_control's folder of MJCF files, found without importing dm_control (which takes seconds)."""
    found = importlib.util.find_spec("dm_control")
    if found is None or not found.submodule_search_locations:
        raise InputError("The reacher's description comes with dm_control: pip install 'dm_control>=1.0.50'.")
    return Path(next(iter(found.submodule_search_locations))) / "suite"
