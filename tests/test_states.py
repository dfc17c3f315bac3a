"""Robot states as the predictor sees them: no seam, right units, honest limits."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.poses import euler_to_matrix, integrate_pose
from vjepa_mpc.pretrain.calibration import ROUNDING
from vjepa_mpc.robots.base import Camera, RobotSpec
from vjepa_mpc.robots.reacher import WRIST_LIMIT_RAD, reacher_spec
from vjepa_mpc.states import JointStates, PoseStates, state_space

POSE = RobotSpec(
    name="arm",
    action_names=tuple("abcdefg"), action_low=(-0.1,) * 7, action_high=(0.1,) * 7, action_units=("m",) * 7,
    state_names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    state_low=(-0.5, -0.5, 0.0, -4.0, -4.0, -4.0, 0.0), state_high=(0.5, 0.5, 1.0, 4.0, 4.0, 4.0, 1.0),
    state_units=("m",) * 3 + ("rad",) * 3 + ("",), state_periodic=(False,) * 7,
    control_period_s=0.25, cameras={"top": Camera(8, 8)}, state_model="pose",
)  # fmt: skip


def spec(**changes: Any) -> RobotSpec:
    return dataclasses.replace(reacher_spec(), **changes)


def rows(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def test_a_periodic_joint_has_no_seam() -> None:
    space = JointStates(spec())
    before, after = rows(math.pi - 1e-3, 0.2), rows(-math.pi + 1e-3, 0.2)
    assert float((space.state_features(before) - space.state_features(after)).abs().max()) < 2e-2
    torch.testing.assert_close(space.difference(before, after), rows(2e-3, 0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(space.difference(after, before), rows(-2e-3, 0.0), atol=1e-6, rtol=0)
    turns = space.state_features(rows(0.7 + 6 * math.pi, 0.2))  # an integrated state may wind up
    torch.testing.assert_close(turns, space.state_features(rows(0.7, 0.2)), atol=1e-5, rtol=0)


def test_features_by_hand() -> None:
    space = JointStates(spec())
    features = space.state_features(rows(math.pi / 6, -math.pi / 3))
    angles = [k * turn for turn in (math.pi / 6, -math.pi / 3, -math.pi / 6) for k in (1, 2, 4, 8)]
    scaled = -math.pi / 3 / WRIST_LIMIT_RAD
    expected = rows(*map(math.cos, angles), *map(math.sin, angles), scaled)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    assert space.state_dim == 25 and space.action_dim == 27
    for angle, feature in ((-WRIST_LIMIT_RAD, -1.0), (WRIST_LIMIT_RAD, 1.0), (2 * WRIST_LIMIT_RAD, 1.0)):
        assert float(space.state_features(rows(0.0, angle))[0, -1]) == pytest.approx(feature, abs=1e-6)


def test_difference_is_the_shortest_way_there() -> None:
    space, rng = JointStates(spec()), np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.uniform(-math.pi, math.pi, (500, 2))).float() for _ in range(2))
    delta = space.difference(a, b)
    assert float(delta[:, 0].abs().max()) <= math.pi + 1e-5
    there = space.integrate(a, delta)
    torch.testing.assert_close(space.state_features(there)[:, :2], space.state_features(b)[:, :2], atol=1e-5, rtol=0)
    torch.testing.assert_close(there[:, 1], b[:, 1], atol=1e-5, rtol=0)  # a limited joint never wraps
    kept = a.clone()
    space.difference(a, b)
    assert torch.equal(a, kept)


def test_only_limited_joints_can_exceed() -> None:
    space = JointStates(spec())
    over = torch.tensor([[9.0, 0.0], [0.0, WRIST_LIMIT_RAD + 0.25], [-9.0, -WRIST_LIMIT_RAD - 0.5]])
    torch.testing.assert_close(space.excess(over), torch.tensor([0.0, 0.25, 0.5]), atol=1e-5, rtol=0)
    beyond = space.integrate(rows(0.0, WRIST_LIMIT_RAD), rows(0.0, 0.3))
    assert float(space.excess(beyond)) == pytest.approx(0.3, abs=1e-5)  # never clipped away


@pytest.mark.parametrize("stride", [1, 4])
def test_an_action_is_in_units_of_what_so_many_steps_can_do(stride: int) -> None:
    space = state_space(spec(action_low=(-0.3, -0.1), action_high=(0.2, 0.2)), stride)
    action, state = rows(0.3 * stride, -0.1 * stride), rows(0.5, 0.25)
    features = space.action_features(action, state)
    torch.testing.assert_close(features[..., :2], rows(1.0, -0.5))
    torch.testing.assert_close(features[..., 2:], space.state_features(space.integrate(state, action)))
    torch.testing.assert_close(space.integrate(rows(1.0, 1.0), rows(0.3, -0.1)), rows(1.3, 0.9))


def test_one_action_a_joint() -> None:
    lacking = spec(action_names=("a",), action_low=(-1.0,), action_high=(1.0,), action_units=("rad",))
    with pytest.raises(InputError, match="1 actions and 2 state values"):
        state_space(lacking)


def test_poses_are_moved_as_rigid_bodies_and_limited_in_place() -> None:
    space = state_space(POSE)
    assert isinstance(space, PoseStates)
    pose, delta = rows(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9), rows(0.1, 0.0, -0.5, 0.3, -0.2, 0.1, 0.4)
    torch.testing.assert_close(space.integrate(pose, delta), integrate_pose(pose, delta))
    assert torch.equal(space.state_features(pose), pose) and torch.equal(space.action_features(delta, pose), delta)
    outside = rows(0.75, -1.0, -0.25, 9.0, 9.0, 9.0, 9.0)
    torch.testing.assert_close(space.excess(outside), torch.tensor([1.0]))


def test_a_pose_has_no_seam_and_one_difference_a_rotation() -> None:
    space, angles = PoseStates(POSE), (0.1, -0.2)
    before, after = rows(0.1, 0.2, 0.3, 3.14, *angles, 0.5), rows(0.1, 0.2, 0.3, -3.14, *angles, 0.5)
    seam = 2 * math.pi - 6.28
    turned = space.difference(before, after)
    assert float(turned[:, 3:6].norm()) == pytest.approx(seam, rel=1e-2)
    torch.testing.assert_close(space.difference(after, before), -turned, atol=1e-5, rtol=0)
    assert float(turned[:, [0, 1, 2, 6]].abs().max()) == 0.0
    # the same rotation in other angles: (roll, pitch, yaw) and (roll + pi, pi - pitch, yaw + pi)
    other = rows(0.1, 0.2, 0.3, 3.14 - math.pi, math.pi - 0.1, -0.2 + math.pi, 0.5)
    assert float(space.difference(before, other).abs().max()) < 1e-5
    rng = np.random.default_rng(0)
    low, high = np.array(POSE.state_low), np.array(POSE.state_high)
    same = torch.from_numpy(rng.uniform(low, high, (500, 7))).float()
    assert float(space.difference(same, same).abs().max()) < ROUNDING / 2  # held rotations count as held
    a, b = (torch.from_numpy(rng.uniform(low, high, (200, 7))) for _ in range(2))
    there = space.integrate(a, space.difference(a, b))
    torch.testing.assert_close(euler_to_matrix(there[:, 3:6]), euler_to_matrix(b[:, 3:6]), atol=1e-9, rtol=0)


def test_poses_do_not_add_up_over_a_stride() -> None:
    with pytest.raises(InputError, match="1 control step at a time, not 4"):
        state_space(POSE, 4)


def test_other_layouts_are_refused() -> None:
    with pytest.raises(InputError, match="7 values"):
        state_space(spec(state_model="pose"))
    with pytest.raises(InputError, match="'joints' or 'pose'"):
        state_space(spec(state_model="velocity"))
