"""The mapping's arithmetic: units, rotations, displacements, and rates by time stamps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.poses import integrate_pose
from vjepa_mpc.datasets.logs import VectorInfo
from vjepa_mpc.datasets.mapping import LogMapping, declare
from vjepa_mpc.datasets.resample import sample_rows

RNG = np.random.default_rng(0)
VECTORS = {
    "joints": VectorInfo(3, ("shoulder", "elbow", "wrist")),
    "obs/xyz": VectorInfo(3),
    "obs/rotation": VectorInfo(4),
    "grip": VectorInfo(2),
    "action": VectorInfo(3),
}


def mapping(*state: str, action: str | None = None) -> LogMapping:
    return declare(VECTORS, state, action, {"top": "top"})


def test_units_names_and_cuts() -> None:
    found = mapping("joints[0:2]:deg", "joints[2]:angle", "obs/xyz[1:]:mm", "grip[1]:gripper=0.04..0")
    assert [axis.name for axis in found.state_axes] == ["shoulder", "elbow", "wrist", "xyz_1", "xyz_2", "grip"]
    assert [axis.unit for axis in found.state_axes] == ["rad", "rad", "rad", "m", "m", "1"]
    assert [axis.wraps for axis in found.state_axes] == [False, False, True, False, False, False]
    rows = {
        "joints": np.array([[180.0, 90.0, 4.0]]),
        "obs/xyz": np.array([[1.0, 2.0, 3000.0]]),
        "grip": np.array([[0.0, 0.01]]),
    }
    expected = [[math.pi, math.pi / 2, 4 - 2 * math.pi, 0.002, 3.0, 0.75]]
    np.testing.assert_allclose(found.states(rows), expected, atol=1e-12)
    assert found.state_model == "joints" and found.fields() == ["grip", "joints", "obs/xyz"]


def test_displacements_of_angles_take_the_short_way() -> None:
    found = mapping("joints[0]:angle", "joints[1]:rad")
    states = np.array([[3.1, 3.1], [-3.1, -3.1]])
    np.testing.assert_allclose(found.deltas(states), [[2 * math.pi - 6.2, -6.2]], atol=1e-12)


@pytest.mark.parametrize("kind", ["quat", "quat-wxyz", "rotvec", "euler", "euler-deg"])
def test_poses_follow_scipy_and_their_displacements_integrate(kind: str) -> None:
    turns = Rotation.random(7, random_state=3)
    values = {
        "quat": turns.as_quat(),
        "quat-wxyz": turns.as_quat()[:, [3, 0, 1, 2]] * 2,  # any length will do
        "rotvec": turns.as_rotvec(),
        "euler": turns.as_euler("xyz"),
        "euler-deg": turns.as_euler("xyz", degrees=True),
    }[kind]
    xyz, grip = RNG.normal(size=(7, 3)), RNG.uniform(size=(7, 2))
    cut = "[0:3]" if values.shape[1] == 3 else ""
    padded = np.concatenate([values, np.zeros((7, 4 - values.shape[1]))], axis=1)
    found = mapping("obs/xyz:xyz", f"obs/rotation{cut}:{kind}", "grip[0]:gripper")
    rows = {"obs/xyz": xyz, "obs/rotation": padded, "grip": grip}
    states = found.states(rows)
    np.testing.assert_allclose(states[:, :3], xyz)
    np.testing.assert_allclose(Rotation.from_euler("xyz", states[:, 3:6]).as_matrix(), turns.as_matrix(), atol=1e-9)
    assert found.state_model == "pose" and found.action_axes[0].name == "d_x"
    reached = integrate_pose(torch.from_numpy(states[:-1]), torch.from_numpy(found.deltas(states))).numpy()
    np.testing.assert_allclose(reached, states[1:], atol=1e-9)


def test_a_small_rotation_vector_is_exact() -> None:
    found = mapping("obs/xyz:xyz", "obs/rotation[0:3]:rotvec")
    rows = {"obs/xyz": np.zeros((2, 3)), "obs/rotation": np.array([[0.0, 0, 0, 0], [1e-9, 0, 0, 0]])}
    np.testing.assert_allclose(found.states(rows)[:, 3:6], [[0, 0, 0], [1e-9, 0, 0]], atol=1e-15)


def test_recorded_actions_of_each_kind() -> None:
    degrees = np.array([[0.0, 10], [10, 20], [20, 20], [40, 10]])
    rows = {"joints": np.concatenate([degrees, degrees[:, :1]], axis=1)}
    steps = np.array([[10.0, 10, 0], [10, 0, 0], [20, -10, 0], [7, 7, 7]])
    every, some = np.arange(4), np.array([0, 2, 3])
    state = ("joints[0:2]:deg",)
    displaced = mapping(*state, action="action[0:2]:displacement")
    states = displaced.states(rows)
    for chosen in (every, some):
        expected = np.diff(states[chosen], axis=0)
        np.testing.assert_allclose(displaced.actions({**rows, "action": steps}, states, chosen), expected)
        np.testing.assert_allclose(mapping(*state).actions(rows, states, chosen), expected)
    # The target sent at a row is where the arm is at the next one.
    targets = np.concatenate([degrees[1:], [[0, 0]]])
    aimed = mapping(*state, action="action[0:2]:target")
    values = {**rows, "action": np.concatenate([targets, targets[:, :1]], axis=1)}
    np.testing.assert_allclose(aimed.actions(values, states, some), np.diff(states[some], axis=0))
    plain = mapping(*state, action="action")
    assert plain.state_model == "recorded" and len(plain.action_axes) == 3
    np.testing.assert_array_equal(plain.actions({**rows, "action": steps}, states, some), steps[[0, 2]])


@pytest.mark.parametrize(
    ("state", "action", "words"),
    [
        (("joint",), None, "did you mean 'joints'"),
        (("joints[2:5]",), None, r"has 3 numbers; \[2:5\]"),
        (("joints:degrees",), None, "kind of numbers named 'degrees'"),
        (("joints[a]",), None, "is no mapping"),
        (("joints:deg=0..1",), None, "a range is for a gripper"),
        (("grip[0]:gripper=1..1",), None, "differ"),
        (("obs/xyz:xyz",), None, "for a position alone write :m"),
        (("obs/xyz:xyz", "obs/rotation:rotvec"), None, "picks 4 numbers, rotvec has 3"),
        (("obs/xyz:xyz", "obs/rotation:quat", "joints"), None, "A pose is one position"),
        (("joints",), "action[0:2]:target", "same 2 numbers"),
        (("obs/xyz:xyz", "obs/rotation:quat"), "action:displacement", "leave --action out"),
        (("joints",), "action:deg", "kind of numbers named 'deg'"),
    ],
)
def test_mappings_that_do_not_fit_say_why(state: tuple[str, ...], action: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        mapping(*state, action=action)


@given(
    rate=st.sampled_from([10.0, 15.0, 30.0, 50.0]),
    wanted=st.floats(1.0, 10.0),
    length=st.integers(2, 120),
    jitter=st.floats(0, 0.2),
    seed=st.integers(0, 99),
)
def test_the_grid_is_kept_to_half_a_row(rate: float, wanted: float, length: int, jitter: float, seed: int) -> None:
    """Against brute force: each grid point has its nearest row."""
    period = 1 / wanted
    shift = np.random.default_rng(seed).uniform(-jitter, jitter, length)
    times = 5.0 + (np.arange(length) + shift) / rate
    (rows,) = sample_rows(times, 1 / rate, period)
    if period <= 1.02 / rate:
        np.testing.assert_array_equal(rows, np.arange(length))
        return
    grid = np.arange(times[0], times[-1] + 0.5 / rate, period)
    nearest = np.unique([np.abs(times - point).argmin() for point in grid])
    assert abs(len(rows) - len(nearest)) <= 1
    np.testing.assert_array_equal(rows[: len(nearest)], nearest[: len(rows)])
    assert rows[0] == 0 and (np.diff(rows) > 0).all()


def test_gaps_end_a_stretch_and_begin_a_new_grid() -> None:
    times = np.concatenate([np.arange(10) / 10, 2.03 + np.arange(6) / 10, [9.0]])
    stretches = sample_rows(times, 0.1, 0.2)
    assert [rows.tolist() for rows in stretches] == [[0, 2, 4, 6, 8], [10, 12, 14], [16]]
    assert [len(rows) for rows in sample_rows(times, 0.1, 0.1)] == [10, 6, 1]
    # A row missing here and there is no gap at a lower rate.
    thin = np.delete(np.arange(20) / 10, [5])
    assert len(sample_rows(thin, 0.1, 0.3)) == 1 and len(sample_rows(thin, 0.1, 0.1)) == 2
