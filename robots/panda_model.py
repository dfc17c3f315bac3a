"""The Franka Panda's MJCF (MuJoCo Menagerie's), found at run time, with servos, looks and lighter meshes of our own."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.rendering import import_mujoco
from vjepa_mpc.robots.stage import dress, looking

FOLDER_VARIABLE = "MUJOCO_MENAGERIE"
CAMERA = "left"
JOINTS = tuple(f"joint{number}" for number in range(1, 8))
_FOLDER = "franka_emika_panda"
_TIP_M = (0.0, 0.0, 0.1034)  # the point between the fingertips in the hand's frame, as Franka's own tool frame
_TIMESTEP_S = 0.005
_RATE = 60.0
_ARMATURE = (4.0, 4.0, 4.0, 4.0, 2.0, 2.0, 2.0)
_CAMERA_M, _LOOKED_AT_M = (1.35, 0.85, 0.75), (0.35, 0.0, 0.3)
_CELL_M = 0.005  # about a pixel of a picture of 256
_FEW_FACES = 100


def panda_folder() -> Path:
    """The folder of the arm's MJCF, the first there is: of the Menagerie that the environment variable MUJOCO_MENAGERIE
    names, of the copy that the package genesis-world brings, of the checkout that robot_descriptions fetches.
    `InputError` with the way to get it when there is none."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        for folder in (Path(named) / _FOLDER, Path(named)):
            if (folder / "panda.xml").is_file():
                return folder
        raise InputError(f"{FOLDER_VARIABLE}={named} has no {_FOLDER}/panda.xml; name Menagerie's folder.")
    brought = _brought()
    if brought is not None:
        return brought
    if fetches():
        try:
            described = importlib.import_module("robot_descriptions.panda_mj_description")
            return Path(described.MJCF_PATH).parent
        except Exception as error:  # it clones from the network, and raises whatever comes of that
            raise InputError(
                f"robot_descriptions could not fetch the Panda ({error}); connect once, or set {FOLDER_VARIABLE}."
            ) from error
    raise InputError(
        "The Panda's model is not installed: pip install --no-deps genesis-world, or 'vjepa-mpc[panda]', or set "
        f"{FOLDER_VARIABLE} to a checkout of MuJoCo Menagerie."
    )


def fetches() -> bool:
    """Whether the first use of the model may fetch it from the network."""
    here = os.environ.get(FOLDER_VARIABLE) or _brought() is not None
    return not here and importlib.util.find_spec("robot_descriptions") is not None


def _brought() -> Path | None:
    """The copy of an installed genesis-world, whose files are read and which is never imported."""
    found = importlib.util.find_spec("genesis")
    for package in found.submodule_search_locations or () if found is not None else ():
        folder = Path(package) / "assets" / "xml" / _FOLDER
        if (folder / "panda.xml").is_file():
            return folder
    return None


def build_panda(folder: Path) -> Any:
    """The compiled model of `folder`/panda.xml: servos of our own, no contacts, and all that the painter paints."""
    mujoco = import_mujoco()
    spec = mujoco.MjSpec.from_file(str(folder / "panda.xml"))
    for kind in (spec.actuators, spec.tendons, spec.equalities, spec.keys, spec.sensors):
        for item in list(kind):
            spec.delete(item)
    spec.option.timestep = _TIMESTEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    for geom in list(spec.geoms):
        geom.contype = geom.conaffinity = 0
        if geom.classname.name.startswith(("collision", "fingertip")):
            spec.delete(geom)
    for body in spec.bodies[1:]:
        body.gravcomp = 1.0
    spec.body("hand").add_site(name="tip", pos=_TIP_M, rgba=[0.0] * 4)
    for name, armature in zip((*JOINTS, "finger_joint1", "finger_joint2"), (*_ARMATURE, 0.5, 0.5), strict=True):
        spec.joint(name).armature = armature
        servo = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        servo.set_to_position(kp=armature * _RATE**2, kv=2.0 * armature * _RATE)
    dress(spec, floor_half_width_m=0.9)
    for geom in spec.geoms:
        if geom.classname.name == "visual":
            geom.material = "effector" if geom.parent.name in ("hand", "left_finger", "right_finger") else "self"
    spec.worldbody.add_camera(name=CAMERA, pos=_CAMERA_M, quat=looking(_CAMERA_M, _LOOKED_AT_M), fovy=46.0)
    _lighten(spec)
    return spec.compile()


def _lighten(spec: Any) -> None:
    """Give every mesh fewer faces: Menagerie's have 137,000 together, which take a software renderer 30 ms to draw.

    Bodies have masses of their own, so that only the picture depends on their meshes.
    """
    mujoco = import_mujoco()
    model = spec.compile()
    for name in {geom.meshname for geom in spec.geoms if geom.meshname}:
        number = model.mesh(name).id
        first, count = int(model.mesh_faceadr[number]), int(model.mesh_facenum[number])
        if count <= _FEW_FACES:
            continue
        start, turn = int(model.mesh_vertadr[number]), np.empty(9)
        mujoco.mju_quat2Mat(turn, model.mesh_quat[number])  # compiling moved the mesh to its own middle and axes
        own = model.mesh_vert[start : start + int(model.mesh_vertnum[number])]
        placed = own @ turn.reshape(3, 3).T + model.mesh_pos[number]
        vertices, faces = cluster_vertices(placed, model.mesh_face[first : first + count], _CELL_M)
        light = spec.add_mesh(name=f"{name}_light", uservert=vertices.ravel(), userface=faces.ravel())
        light.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL  # what is left need not be closed
        for geom in spec.geoms:
            if geom.meshname == name:
                geom.meshname = light.name
    drawn = {geom.meshname for geom in spec.geoms}
    for mesh in list(spec.meshes):
        if mesh.name not in drawn:
            spec.delete(mesh)


def cluster_vertices(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], cell_m: float
) -> tuple[Float[np.ndarray, "w 3"], Int[np.ndarray, "g 3"]]:
    """A mesh in which all vertices of a cube of side `cell_m` have become one, their mean; faces that vanish or
    double are left out. Rossignac and Borrel 1993, "Multi-resolution 3D approximations", section 3."""
    cells = np.floor((vertices - vertices.min(axis=0)) / cell_m).astype(np.int64)
    _, cell, size = np.unique(_numbered(cells), return_inverse=True, return_counts=True)
    merged = np.stack([np.bincount(cell, weights=axis) / size for axis in vertices.T], axis=1)
    left = cell[faces]
    left = left[(left != np.roll(left, 1, axis=1)).all(axis=1)]
    _, once = np.unique(_numbered(np.sort(left, axis=1)), return_index=True)
    return merged, left[np.sort(once)]


def _numbered(rows: Int[np.ndarray, "n 3"]) -> Int[np.ndarray, "n"]:
    """One number for each row of numbers from 0 on, equal for equal rows alone."""
    _, middle, last = rows.max(axis=0, initial=0) + 1
    return (rows[:, 0] * middle + rows[:, 1]) * last + rows[:, 2]
