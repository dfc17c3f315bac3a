"""End-effector poses of V-JEPA 2-AC: [x, y, z, roll, pitch, yaw, gripper].

x, y, z in metres, extrinsic 'xyz' Euler angles in radians (R = Rz(yaw) Ry(pitch) Rx(roll)), gripper in
[0, 1], all in the robot's base frame. A delta has the same seven entries: translation in
base axes, the Euler angles of R_next R^T, and the gripper's change. `to_camera` and its kin change the frame
by a camera's extrinsics. Vectorised, differentiable, on any device and in any floating type.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def euler_to_matrix(angles: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrices Rz(c) Ry(b) Rx(a) of extrinsic 'xyz' Euler angles (a, b, c) in rad."""
    (sin_a, sin_b, sin_c), (cos_a, cos_b, cos_c) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    rows = (
        (cos_c * cos_b, cos_c * sin_b * sin_a - sin_c * cos_a, cos_c * sin_b * cos_a + sin_c * sin_a),
        (sin_c * cos_b, sin_c * sin_b * sin_a + cos_c * cos_a, sin_c * sin_b * cos_a - cos_c * sin_a),
        (-sin_b, cos_b * sin_a, cos_b * cos_a),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matrix_to_euler(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Extrinsic 'xyz' Euler angles in rad, the middle one in [-pi/2, pi/2].

    The last angle is found first and the other two from Rz(c)^T R, so that the three always reproduce the
    matrix: at gimbal lock c alone means nothing, and reading a and c independently would lose the rotation.
    Exactly at the lock c is 0 (SciPy's choice) and its gradient is cut instead of being NaN.
    """
    r00, r01, r02 = rotation[..., 0, :].unbind(-1)
    r10, r11, r12 = rotation[..., 1, :].unbind(-1)
    locked = r00 * r00 + r10 * r10 < (4 * torch.finfo(rotation.dtype).eps) ** 2
    yaw = torch.atan2(r10.masked_fill(locked, 0.0), r00.masked_fill(locked, 1.0))
    sin_c, cos_c = yaw.sin(), yaw.cos()
    roll = torch.atan2(sin_c * r02 - cos_c * r12, cos_c * r11 - sin_c * r01)
    pitch = torch.atan2(-rotation[..., 2, 0], cos_c * r00 + sin_c * r10)
    return torch.stack((roll, pitch, yaw), dim=-1)


def integrate_pose(pose: Float[Tensor, "*batch 7"], delta: Float[Tensor, "*batch 7"]) -> Float[Tensor, "*batch 7"]:
    """The pose after `delta`: translation added, R_next = R_delta R, gripper added and clipped to [0, 1]."""
    rotation = euler_to_matrix(delta[..., 3:6]) @ euler_to_matrix(pose[..., 3:6])
    gripper = (pose[..., 6:] + delta[..., 6:]).clamp(0.0, 1.0)
    return torch.cat((pose[..., :3] + delta[..., :3], matrix_to_euler(rotation), gripper), dim=-1)


def pose_difference(start: Float[Tensor, "*#batch 7"], end: Float[Tensor, "*#batch 7"]) -> Float[Tensor, "*batch 7"]:
    """The delta with which `integrate_pose` goes from `start` to `end`; V-JEPA 2-AC's actions are made so."""
    relative = euler_to_matrix(end[..., 3:6]) @ euler_to_matrix(start[..., 3:6]).mT
    return torch.cat((end[..., :3] - start[..., :3], matrix_to_euler(relative), end[..., 6:] - start[..., 6:]), -1)


def quaternion_to_matrix(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrices of quaternions (x, y, z, w), which are normalised first; a zero one gives NaN."""
    x, y, z, w = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def rotation_vector_to_matrix(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrices of rotation vectors: the axis times the angle in rad."""
    half = vector.norm(dim=-1, keepdim=True) / 2
    # sinc is smooth at 0, where the axis is undefined: sin(half) * axis = vector * sinc(half) / 2.
    return quaternion_to_matrix(torch.cat([vector * torch.sinc(half / torch.pi) / 2, half.cos()], dim=-1))


def to_camera(
    pose: Float[Tensor, "*batch 7"], extrinsics: Float[Tensor, "*#batch 6"]
) -> Float[Tensor, "*batch 7"]:
    """A pose of the base frame as a camera sees it: R_c^T (x - c), R_c^T R, the same gripper.

    `extrinsics` is the camera's own pose in the base frame: its position c in metres and the extrinsic 'xyz'
    Euler angles of R_c in radians, whose columns are the camera's axes in base axes.
    """
    back = euler_to_matrix(extrinsics[..., 3:]).mT
    return _moved(pose, back, (back @ (pose[..., :3] - extrinsics[..., :3])[..., None])[..., 0])


def to_base(
    pose: Float[Tensor, "*batch 7"], extrinsics: Float[Tensor, "*#batch 6"]
) -> Float[Tensor, "*batch 7"]:
    """A pose that a camera sees, in the base frame: undoes `to_camera`."""
    camera = euler_to_matrix(extrinsics[..., 3:])
    return _moved(pose, camera, (camera @ pose[..., :3, None])[..., 0] + extrinsics[..., :3])


def delta_to_camera(
    delta: Float[Tensor, "*batch 7"], extrinsics: Float[Tensor, "*#batch 6"]
) -> Float[Tensor, "*batch 7"]:
    """A delta in base axes along a camera's axes: R_c^T dx, R_c^T R_delta R_c, the same change of the gripper.

    Integrating it from `to_camera(pose)` leads where `to_camera` puts the pose that the base's delta leads to.
    """
    return _turned(delta, euler_to_matrix(extrinsics[..., 3:]).mT)


def delta_to_base(
    delta: Float[Tensor, "*batch 7"], extrinsics: Float[Tensor, "*#batch 6"]
) -> Float[Tensor, "*batch 7"]:
    """A delta along a camera's axes in base axes: undoes `delta_to_camera`."""
    return _turned(delta, euler_to_matrix(extrinsics[..., 3:]))


def _moved(pose: Tensor, rotation: Tensor, position: Tensor) -> Tensor:
    """`pose` turned by `rotation` and put at `position`."""
    angles = matrix_to_euler(rotation @ euler_to_matrix(pose[..., 3:6]))
    return torch.cat((position, angles, pose[..., 6:]), dim=-1)


def _turned(delta: Tensor, axes: Tensor) -> Tensor:
    """`delta` along other axes: both its translation and its axis of rotation are turned."""
    step = (axes @ delta[..., :3, None])[..., 0]
    angles = matrix_to_euler(axes @ euler_to_matrix(delta[..., 3:6]) @ axes.mT)
    return torch.cat((step, angles, delta[..., 6:]), dim=-1)
