"""The board that the planar worlds stand on: floor, light, colours, border and the camera above it.

It looks as dm_control's reacher does (grid, materials, lights and view are alike), so that one encoder sees one
kind of picture and one painter varies them all.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from vjepa_mpc.robots.appearance import add_distractors
from vjepa_mpc.robots.rendering import import_mujoco

CAMERA = "top"
HALF_WIDTH_M = 0.25
"""Half the inner width of the board, from the middle to the border."""
BORDER_M = 0.01
"""Half the border's thickness."""
WALL_HEIGHT_M = 0.03
_VIEW_HALF_WIDTH_M = 0.27
_CAMERA_HEIGHT_M = 0.75


def new_stage(timestep_s: float, border: bool = True) -> Any:
    """A `mujoco.MjSpec` with the board, to which a world adds its bodies; `timestep_s` of the simulation.

    Contacts are as stiff as the time step allows (time constant of two steps) and without friction unless
    a geom says otherwise. With `border`, four walls keep what is inside on the board.
    """
    mujoco = import_mujoco()
    spec = mujoco.MjSpec()
    spec.option.timestep = timestep_s
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.compiler.degree = False
    spec.default.geom.solref = [2.0 * timestep_s, 1.0]
    spec.default.geom.condim = 1
    dress(spec, floor_half_width_m=0.3)
    field_of_view = 2.0 * math.degrees(math.atan(_VIEW_HALF_WIDTH_M / _CAMERA_HEIGHT_M))
    spec.worldbody.add_camera(name=CAMERA, pos=[0.0, 0.0, _CAMERA_HEIGHT_M], fovy=field_of_view)
    if border:
        middle, length = HALF_WIDTH_M + BORDER_M, HALF_WIDTH_M + 2.0 * BORDER_M
        for index, (x, y) in enumerate(((1, 0), (-1, 0), (0, 1), (0, -1))):
            half = (BORDER_M, length) if x else (length, BORDER_M)
            add_wall(spec, f"border_{index}", (middle * x, middle * y), half)
    return spec


def dress(spec: Any, floor_half_width_m: float) -> None:
    """Add to a `mujoco.MjSpec` all that the painter paints: floor (without contact), materials, light, distractors."""
    mujoco = import_mujoco()
    _add_looks(mujoco, spec)
    spec.worldbody.add_light(pos=[0.0, 0.0, 1.0])
    spec.worldbody.add_geom(
        name="ground", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[floor_half_width_m, floor_half_width_m, 10.0],
        material="grid", contype=0, conaffinity=0,
    )  # fmt: skip
    add_distractors(mujoco, spec)


def looking(eye: tuple[float, ...], at: tuple[float, ...]) -> Float[np.ndarray, "4"]:
    """The quaternion of a camera at `eye` that looks at `at`, with the world's z upwards in its picture."""
    back = np.subtract(eye, at) / math.dist(eye, at)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    quaternion = np.empty(4)
    import_mujoco().mju_mat2Quat(quaternion, np.column_stack([right, np.cross(back, right), back]).ravel())
    return quaternion


def add_wall(spec: Any, name: str, center: tuple[float, float], half: tuple[float, float]) -> None:
    """An upright box on the board: centre and half widths in m."""
    spec.worldbody.add_geom(
        name=name, type=import_mujoco().mjtGeom.mjGEOM_BOX, pos=[*center, WALL_HEIGHT_M / 2],
        size=[*half, WALL_HEIGHT_M / 2], material="decoration",
    )  # fmt: skip


def add_slider(spec: Any, name: str, radius_m: float, mass_kg: float, force_n: float, rate: float) -> Any:
    """A ball on the board, driven along x and y by critically damped position servos; returns its body.

    `force_n` limits each servo; `rate` [1/s] is its natural frequency: it settles in about 8 / rate.
    """
    mujoco = import_mujoco()
    body = spec.worldbody.add_body(name=name, pos=[0.0, 0.0, radius_m])
    for axis, direction in (("x", [1, 0, 0]), ("y", [0, 1, 0])):
        body.add_joint(name=f"{name}_{axis}", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=direction)
        servo = spec.add_actuator(
            name=f"{name}_{axis}", target=f"{name}_{axis}", trntype=mujoco.mjtTrn.mjTRN_JOINT,
            forcelimited=mujoco.mjtLimited.mjLIMITED_TRUE, forcerange=[-force_n, force_n],
        )  # fmt: skip
        servo.set_to_position(kp=mass_kg * rate**2, kv=2.0 * mass_kg * rate)
    body.add_geom(
        name=name, type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[radius_m, 0.0, 0.0], mass=mass_kg, material="self"
    )
    return body


def _add_looks(mujoco: Any, spec: Any) -> None:
    """Texture, materials and lights by the names and values that the painter starts from."""
    headlight = spec.visual.headlight
    headlight.ambient, headlight.diffuse, headlight.specular = [0.4] * 3, [0.8] * 3, [0.1] * 3
    spec.visual.map.znear = 0.01
    spec.add_texture(
        name="grid", type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=[0.1, 0.2, 0.3], rgb2=[0.2, 0.3, 0.4], width=300, height=300, nchannel=3,
        mark=mujoco.mjtMark.mjMARK_EDGE, markrgb=[0.2, 0.3, 0.4],
    )  # fmt: skip
    grid = spec.add_material(name="grid", texrepeat=[1.0, 1.0], texuniform=True)
    grid.textures[int(mujoco.mjtTextureRole.mjTEXROLE_RGB)] = "grid"
    colors = {"self": (0.7, 0.5, 0.3), "effector": (0.7, 0.4, 0.2), "decoration": (0.3, 0.5, 0.7)}
    for name, color in colors.items():
        spec.add_material(name=name, rgba=[*color, 1.0])
