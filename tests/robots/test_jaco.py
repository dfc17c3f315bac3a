"""Differential inverse kinematics against analytic and finite-difference kinematics, and the Jaco arm that uses it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from vjepa_mpc.robots.differential_ik import SiteKinematics, damped_least_squares, rotation_vector
from vjepa_mpc.robots.jaco import HIGH_M, LOW_M, Jaco
from vjepa_mpc.robots.jaco_arm import DOWN, HOME_RAD, JOINTS, PINCH, SPEED_RAD_S, STEP_M
from vjepa_mpc.robots.rendering import import_mujoco

ARM = """
<mujoco><compiler angle="radian"/><worldbody><body>
  <joint name="a" axis="0 0 1"/><geom type="capsule" fromto="0 0 0 .3 0 0" size=".01"/>
  <body pos=".3 0 0"><joint name="b" axis="0 0 1" limited="true" range="-2.5 2.5"/>
    <geom type="capsule" fromto="0 0 0 .2 0 0" size=".01"/><site name="tip" pos=".2 0 0"/></body>
</body></worldbody></mujoco>
"""


@pytest.fixture(scope="module")
def planar() -> SiteKinematics:
    return SiteKinematics(import_mujoco().MjModel.from_xml_string(ARM), "tip", ("a", "b"), damping=0.01)


@pytest.fixture(scope="module")
def jaco() -> Iterator[Jaco]:
    with Jaco(camera_size=8) as robot:
        yield robot


def turned(angle: float) -> np.ndarray:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def test_two_links_are_where_geometry_says(planar: SiteKinematics) -> None:
    for first, second in np.random.default_rng(0).uniform(-2.4, 2.4, (20, 2)):
        both = first + second
        place = [0.3 * math.cos(first) + 0.2 * math.cos(both), 0.3 * math.sin(first) + 0.2 * math.sin(both), 0.0]
        position, rotation = planar.pose(np.array([first, second]))
        assert position == pytest.approx(place, abs=1e-12)
        assert rotation == pytest.approx(turned(both), abs=1e-12)
        analytic = np.array([[-place[1], -0.2 * math.sin(both)], [place[0], 0.2 * math.cos(both)]])
        jacobian = planar.jacobian(np.array([first, second]))
        assert jacobian[:2] == pytest.approx(analytic, abs=1e-12)
        assert jacobian[5] == pytest.approx([1.0, 1.0]) and np.abs(jacobian[2:5]).max() < 1e-12


def test_two_links_find_the_angles_they_had(planar: SiteKinematics) -> None:
    angles = np.array([0.4, 1.1])
    position, rotation = planar.pose(angles)
    assert planar.solve(np.array([0.1, 0.7]), position, rotation, 50) == pytest.approx(angles, abs=1e-6)


def test_joint_limits_are_kept_and_what_is_out_of_reach_is_approached(planar: SiteKinematics) -> None:
    position, rotation = planar.pose(np.array([0.0, 2.7]))  # past the second joint's limit
    found = planar.solve(np.array([0.0, 2.4]), position, rotation, 50)
    assert found[1] == 2.5
    found = planar.solve(np.array([0.1, 0.2]), np.array([0.8, 0.0, 0.0]), np.eye(3), 200)
    assert 0.49 < np.linalg.norm(planar.pose(found)[0]) <= 0.5  # all but stretched, where damping slows it


def test_damping_bounds_the_step_at_a_singularity() -> None:
    generator = np.random.default_rng(0)
    stretched = np.array([[0.0, 0.0], [0.5, 0.2]])  # no motion along the arm
    error = np.array([0.1, 0.0])
    assert damped_least_squares(stretched, error, 0.02) == pytest.approx([0.0, 0.0])
    for _ in range(50):
        jacobian, error = generator.normal(size=(2, 3)), generator.normal(size=2)
        jacobian[1] = jacobian[0] * (1 + 1e-6)
        step = damped_least_squares(jacobian, error, 0.05)
        assert np.linalg.norm(step) <= np.linalg.norm(error) / (2 * 0.05) + 1e-9
        # The definition: the gradient of |J d - e|^2 + damping^2 |d|^2 is zero there.
        assert jacobian.T @ (jacobian @ step - error) + 0.05**2 * step == pytest.approx(np.zeros(3), abs=1e-9)


def test_rotation_vectors() -> None:
    for angle in (0.0, 1e-7, 0.3, 3.0, -2.0):
        assert rotation_vector(turned(angle)) == pytest.approx([0.0, 0.0, angle], abs=1e-9)


def test_the_arms_jacobian_is_that_of_finite_differences(jaco: Jaco) -> None:
    kinematics, step = jaco._kinematics, 1e-6
    generator = np.random.default_rng(0)
    for _ in range(5):
        angles = np.array(HOME_RAD) + generator.uniform(-0.5, 0.5, 6)
        jacobian = kinematics.jacobian(angles)
        for joint in range(6):
            up, down = (kinematics.pose(angles + sign * step * np.eye(6)[joint]) for sign in (1, -1))
            moved = (up[0] - down[0]) / (2 * step)
            spun = rotation_vector(up[1] @ down[1].T) / (2 * step)
            assert jacobian[:, joint] == pytest.approx(np.concatenate([moved, spun]), abs=1e-6)


def test_every_place_in_the_box_is_reached_pointing_down_well_away_from_singularities(jaco: Jaco) -> None:
    kinematics = SiteKinematics(jaco._model, PINCH, JOINTS)
    for place in np.random.default_rng(1).uniform(LOW_M, HIGH_M, (30, 3)):
        angles = kinematics.solve(np.array(HOME_RAD), place, DOWN, 100)
        assert np.abs(kinematics.error(angles, place, DOWN)).max() < 1e-6
        assert ((angles >= kinematics.low) & (angles <= kinematics.high)).all()
        assert np.linalg.svd(kinematics.jacobian(angles))[1][-1] > 0.08


def test_displacements_mean_metres_and_the_hand_keeps_pointing_down(jaco: Jaco) -> None:
    generator, shorter = np.random.default_rng(0), 0
    for step in range(150):
        if step % 30 == 0:
            jaco._put(jaco.sample_state(generator))
        if step % 6 == 0:
            action = generator.choice([-1.0, 1.0], 3) * STEP_M
        before, angles = jaco.end_effector(), jaco._data.qpos.copy()
        applied = jaco.apply(action)
        assert jaco.end_effector() - before == pytest.approx(applied, abs=3e-4)
        asked = np.clip(before + action, LOW_M, HIGH_M) - before
        shorter += bool(np.abs(applied - asked).max() > 1e-3)
        assert (np.abs(jaco._data.qpos - angles) <= SPEED_RAD_S * 0.2 + 1e-3).all()
        assert np.abs(jaco._data.qvel).max() < 0.02  # rad/s: at rest when the step ends
        _, rotation = jaco._kinematics.pose(jaco._data.qpos.copy())
        assert np.linalg.norm(rotation_vector(DOWN @ rotation.T)) < 0.02
    assert shorter < 30  # steps that the joints' speeds cut


def test_the_same_place_is_the_same_pose_whatever_the_way_there(jaco: Jaco) -> None:
    start = np.array([-0.15, -0.5, 0.1])
    jaco._put(start)
    angles = jaco._data.qpos.copy()
    for corner in ([0.15, -0.32, 0.3], [0.18, -0.5, 0.1], start):
        for _ in range(25):
            jaco.apply(np.clip(np.array(corner) - jaco.true_state(), -STEP_M, STEP_M))
    assert jaco._data.qpos == pytest.approx(angles, abs=1e-3)


def test_the_box_ends_motion(jaco: Jaco) -> None:
    jaco._put(np.array([0.0, -0.4, 0.07]))
    for _ in range(3):
        applied = jaco.apply(np.array([0.0, 0.0, -STEP_M]))
    assert jaco.end_effector()[2] == pytest.approx(LOW_M[2], abs=1e-3)
    assert applied == pytest.approx(np.zeros(3), abs=1e-3)
