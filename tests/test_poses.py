"""Poses against the reference's numbers, SciPy's rotations, and their own inverses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from vjepa_mpc.core.poses import (
    delta_to_base,
    delta_to_camera,
    euler_to_matrix,
    integrate_pose,
    matrix_to_euler,
    pose_difference,
    quaternion_to_matrix,
    rotation_vector_to_matrix,
    to_base,
    to_camera,
)

GOLDEN = Path(__file__).parent / "golden"
ANGLES = st.lists(st.floats(-7.0, 7.0), min_size=3, max_size=3)


def poses(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 7, generator=g, dtype=dtype)
    values[:, 6].clamp_(0.0, 1.0)
    return values


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """Largest entry of R_a - R_b for Euler angles a and b: zero when they are the same rotation."""
    return (euler_to_matrix(a) - euler_to_matrix(b)).abs().amax(dim=(-1, -2))


@pytest.mark.parametrize("name", ["ac_tiny", "ac_tiny_extrinsics"])
def test_golden_poses(name: str) -> None:
    z = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items() if "pose" in key}
    start = z["pose_start"]
    torch.testing.assert_close(integrate_pose(start, z["pose_delta"]), z["pose_end"], rtol=0, atol=2e-6)
    found = pose_difference(start.double(), start.roll(-1, 0).double())
    torch.testing.assert_close(found, z["pose_diff"], rtol=0, atol=2e-6)


@given(ANGLES)
@settings(max_examples=100, deadline=None)
def test_matrix_is_scipys(angles: list[float]) -> None:
    mine = euler_to_matrix(torch.tensor(angles, dtype=torch.float64))
    np.testing.assert_allclose(mine.numpy(), Rotation.from_euler("xyz", angles).as_matrix(), atol=1e-12)


@given(ANGLES)
@settings(max_examples=100, deadline=None)
def test_euler_is_scipys_away_from_the_lock(angles: list[float]) -> None:
    rotation = Rotation.from_euler("xyz", angles)
    wanted = rotation.as_euler("xyz")
    mine = matrix_to_euler(torch.from_numpy(rotation.as_matrix()))
    if abs(abs(wanted[1]) - np.pi / 2) > 1e-3:
        around = np.angle(np.exp(1j * (mine.numpy() - wanted)))  # -pi and pi are the same angle
        np.testing.assert_allclose(around, 0.0, atol=1e-9)
    assert angle_between(mine, torch.tensor(angles, dtype=torch.float64)) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rotation_survives_gimbal_lock(sign: float, offset: float, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    angles = torch.rand(500, 3, generator=g, dtype=dtype) * 6 - 3
    angles[:, 1] = sign * (torch.pi / 2 - offset)
    back = matrix_to_euler(euler_to_matrix(angles))
    assert torch.isfinite(back).all()
    assert angle_between(back, angles).max() < (2e-6 if dtype == torch.float32 else 1e-14)


def test_difference_undoes_integration() -> None:
    start, end = poses(300, 0), poses(300, 1)
    delta = pose_difference(start, end)
    found = integrate_pose(start, delta)
    torch.testing.assert_close(found[:, [0, 1, 2, 6]], end[:, [0, 1, 2, 6]])
    assert angle_between(found[:, 3:6], end[:, 3:6]).max() < 1e-12


def test_rotation_delta_is_in_base_axes_and_small_angles_add() -> None:
    """Turning about the base's z adds to yaw whatever the pose; a delta in tool axes would not."""
    start = poses(50, 2)
    delta = torch.zeros(50, 7, dtype=torch.float64)
    delta[:, 5] = 0.3
    turned = integrate_pose(start, delta)[:, 3:6] - matrix_to_euler(euler_to_matrix(start[:, 3:6]))
    around = torch.remainder(turned + torch.pi, 2 * torch.pi) - torch.pi
    torch.testing.assert_close(around, torch.tensor([0.0, 0.0, 0.3], dtype=torch.float64).expand(50, 3))


def test_gripper_is_clipped() -> None:
    start = torch.tensor([[0.0] * 6 + [0.9], [0.0] * 6 + [0.1]])
    delta = torch.tensor([[0.0] * 6 + [0.75], [0.0] * 6 + [-0.75]])
    assert integrate_pose(start, delta)[:, 6].tolist() == [1.0, 0.0]


def test_gradients_equal_finite_differences_and_stay_finite_at_the_lock() -> None:
    start = poses(4, 3).requires_grad_()
    start.data[:, 6] = 0.5
    delta = (0.1 * poses(4, 4)).requires_grad_()
    assert torch.autograd.gradcheck(integrate_pose, (start, delta))
    locked = torch.tensor([0.3, 0.1, 0.2, 0.4, torch.pi / 2, 0.0, 0.5], dtype=torch.float64)
    delta = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    rotation = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]], requires_grad=True)
    assert torch.autograd.grad(matrix_to_euler(rotation).sum(), rotation)[0].isfinite().all()
    assert torch.autograd.grad(integrate_pose(locked, delta).sum(), delta)[0].isfinite().all()


ROWS = st.lists(st.floats(-3.0, 3.0), min_size=7, max_size=7)


@given(ROWS, ROWS)
@settings(max_examples=60)
def test_integration_and_difference_are_scipys(start: list[float], delta: list[float]) -> None:
    first, change = (torch.tensor(row, dtype=torch.float64) for row in (start, delta))
    first[6], change[6] = 0.5, change[6] / 10
    end = integrate_pose(first, change)
    before, turn = Rotation.from_euler("xyz", start[3:6]), Rotation.from_euler("xyz", delta[3:6])
    np.testing.assert_allclose(euler_to_matrix(end[3:6]).numpy(), (turn * before).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(end[[0, 1, 2, 6]], (first + change)[[0, 1, 2, 6]], atol=1e-12)
    found = Rotation.from_euler("xyz", pose_difference(first, end)[3:6].numpy())
    assert (found * turn.inv()).magnitude() < 1e-7


@given(ANGLES)
@settings(max_examples=60)
def test_quaternions_and_rotation_vectors_are_scipys(vector: list[float]) -> None:
    wanted = Rotation.from_rotvec(vector)
    row = torch.tensor(vector, dtype=torch.float64)
    np.testing.assert_allclose(rotation_vector_to_matrix(row).numpy(), wanted.as_matrix(), atol=1e-12)
    quaternion = 3.0 * torch.from_numpy(wanted.as_quat())
    np.testing.assert_allclose(quaternion_to_matrix(quaternion).numpy(), wanted.as_matrix(), atol=1e-12)


@given(ROWS, ROWS)
@settings(max_examples=60)
def test_camera_frame_is_the_inverse_of_the_cameras_pose(pose: list[float], camera: list[float]) -> None:
    """Against 4 x 4 matrices made by SciPy: camera_from_base = inv(base_from_camera)."""

    def matrix(row: list[float]) -> np.ndarray:
        placed = np.eye(4)
        placed[:3, :3], placed[:3, 3] = Rotation.from_euler("xyz", row[3:6]).as_matrix(), row[:3]
        return placed

    seen = to_camera(torch.tensor(pose, dtype=torch.float64), torch.tensor(camera[:6], dtype=torch.float64))
    wanted = np.linalg.inv(matrix(camera)) @ matrix(pose)
    np.testing.assert_allclose(matrix(seen.tolist()), wanted, atol=1e-9)
    assert seen[6] == pose[6]


def test_frames_undo_each_other_and_commute_with_motion() -> None:
    start, delta, camera = poses(200, 5), 0.3 * poses(200, 6), poses(1, 7)[:, :6]
    back = to_base(to_camera(start, camera), camera)
    torch.testing.assert_close(back[:, [0, 1, 2, 6]], start[:, [0, 1, 2, 6]])
    assert angle_between(back[:, 3:6], start[:, 3:6]).max() < 1e-12
    turned = delta_to_camera(delta, camera)
    undone = delta_to_base(turned, camera)
    torch.testing.assert_close(undone[:, [0, 1, 2, 6]], delta[:, [0, 1, 2, 6]])
    assert angle_between(undone[:, 3:6], delta[:, 3:6]).max() < 1e-12
    there = to_camera(integrate_pose(start, delta), camera)
    also = integrate_pose(to_camera(start, camera), turned)
    torch.testing.assert_close(also[:, [0, 1, 2, 6]], there[:, [0, 1, 2, 6]])
    assert angle_between(also[:, 3:6], there[:, 3:6]).max() < 1e-12
