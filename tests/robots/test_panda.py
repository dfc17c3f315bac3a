"""The Panda's interface on a stand-in with its kinematics and, where it is at hand, on its own model."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in_panda import write_stand_in

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.factory import make_robot
from vjepa_mpc.robots.panda import (
    HIGH_M,
    LOW_M,
    SPEED_RAD_S,
    TILT_RAD,
    Panda,
    PandaReachTask,
    difference,
    matrix,
    moved,
    sample,
    tilt,
)
from vjepa_mpc.robots.panda_model import FOLDER_VARIABLE, build_panda, cluster_vertices, fetches, panda_folder
from vjepa_mpc.robots.tasks import load_manifest, play_script
from vjepa_mpc.sanity import bold


@pytest.fixture(scope="module")
def panda(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Panda]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(write_stand_in(tmp_path_factory.mktemp("menagerie"))))
        robot = make_robot("panda-reach", camera_size=32)
    assert isinstance(robot, Panda)
    with robot:
        yield robot


def test_the_interface_is_v_jepa_2_acs(panda: Panda) -> None:
    spec = panda.spec
    assert spec.state_model == "pose" and spec.control_period_s == 0.25  # 4 Hz
    assert spec.state_names == ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    assert spec.action_high[:3] == (0.075,) * 3 and spec.action_high[6] == 0.75


def test_a_placed_hand_is_where_it_was_put(panda: Panda) -> None:
    generator = np.random.default_rng(0)
    for _ in range(10):
        state = sample(generator)
        panda.place(state)
        assert panda.true_state() == pytest.approx(state, abs=1e-6)


def test_actions_are_differences_of_poses(panda: Panda) -> None:
    generator = np.random.default_rng(1)
    panda.place(np.array([0.5, 0.0, 0.3, math.pi, 0.0, 0.0, 0.5]))
    for _ in range(12):
        before, angles = panda.true_state(), panda._data.qpos[panda._arm].copy()
        action = generator.uniform(-1.0, 1.0, 7) * [0.02, 0.02, 0.02, 0.05, 0.05, 0.05, 0.2]
        applied = panda.apply(action)
        assert difference(before, panda.true_state()) == pytest.approx(applied, abs=4e-3)
        turned = np.abs(panda._data.qpos[panda._arm] - angles)
        assert (turned <= SPEED_RAD_S * 0.25).all() and np.abs(panda._data.qvel).max() < 0.05


@pytest.mark.parametrize("seed", [2026, 4])
def test_what_is_applied_keeps_the_limits_and_a_pose_is_one_posture(panda: Panda, seed: int) -> None:
    """Seven joints have a pose in many ways: a picture would not tell it, nor a goal's picture be reached."""
    panda.reset(seed)
    limits = np.array(panda.spec.action_high)
    for action in bold(panda.spec, np.random.default_rng([seed, 1]), 24):
        applied = panda.apply(action)
        assert (np.abs(applied) <= limits + 1e-6).all()
        hand = panda.end_effector()
        assert (hand > np.array(LOW_M) - 8e-3).all() and (hand < np.array(HIGH_M) + 8e-3).all()
        assert tilt(panda.true_state()) < TILT_RAD + 8e-3
    joints, state = panda._data.qpos[panda._arm].copy(), panda.true_state()
    panda.place(np.clip(state, panda.spec.state_low, panda.spec.state_high))
    assert panda._data.qpos[panda._arm] == pytest.approx(joints, abs=0.02)


def test_a_turn_is_about_the_bases_axes(panda: Panda) -> None:
    """Extrinsic: R_next = R_delta R, so that 0.2 rad of yaw turns the hand about the vertical, however it is held."""
    start = np.array([0.5, 0.0, 0.3, math.pi - 0.2, 0.1, 0.3, 0.0])
    panda.place(start)
    panda.apply(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.0]))
    cosine, sine = math.cos(0.1), math.sin(0.1)
    about = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    assert matrix(panda.true_state()[3:6]) == pytest.approx(about @ matrix(start[3:6]), abs=5e-3)


def test_box_tilt_and_gripper_end_motion(panda: Panda) -> None:
    panda.place(np.array([0.6, 0.0, 0.45, math.pi, 0.0, 0.0, 0.5]))
    for _ in range(6):
        panda.apply(np.array([0.03, 0.0, 0.03, 0.1, 0.0, 0.0, 0.75]))
    state = panda.true_state()
    assert state[0] == pytest.approx(HIGH_M[0], abs=4e-3) and state[2] == pytest.approx(HIGH_M[2], abs=4e-3)
    assert state[6] == pytest.approx(1.0, abs=0.02) and tilt(state) < TILT_RAD + 0.02
    with pytest.raises(InputError, match="tilted"):
        panda.place(np.array([0.5, 0.0, 0.3, math.pi - 1.0, 0.0, 0.0, 0.0]))
    for bad in ([0.0] * 6, [math.nan] * 7, [math.inf] * 7):
        with pytest.raises(InputError, match="panda-reach"):
            panda.apply(np.array(bad))


def test_the_script_reaches_the_frozen_goals(panda: Panda) -> None:
    task = PandaReachTask()
    for pair in load_manifest("panda-reach-dev").pairs[:4]:
        assert task.held(play_script(panda, task, np.array(pair.start), np.array(pair.goal)))


def test_distance_is_the_worse_of_place_and_turn() -> None:
    task, goal = PandaReachTask(), np.array([0.5, 0.0, 0.3, math.pi, 0.0, 0.0, 0.0])
    assert task.distance(moved(goal, np.array([0.03, 0.04, 0.0, 0.0, 0.0, 0.01, 1.0])), goal) == pytest.approx(0.05)
    turned = moved(goal, np.array([0.0, 0.0, 0.0, 0.0, math.radians(15.0), 0.0, 0.0]))
    assert task.distance(turned, goal) == pytest.approx(task.success_radius_m)


def test_without_its_model_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match="has no franka_emika_panda"):
        panda_folder()
    assert "has no franka_emika_panda" in str(PandaReachTask().missing)
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setattr("vjepa_mpc.robots.panda_model.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps genesis-world"):
        make_robot("panda-reach")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), FOLDER_VARIABLE: str(tmp_path)}
    command = [sys.executable, "-m", "vjepa_mpc.cli.main", "tasks"]
    run = subprocess.run([*command, "show", "panda-reach"], capture_output=True, text=True, env=environment)
    assert run.returncode == 2 and "has no franka_emika_panda" in run.stderr + run.stdout


def test_the_copy_of_genesis_world_is_read_and_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assets = tmp_path / "genesis" / "assets" / "xml"
    assets.mkdir(parents=True)
    (tmp_path / "genesis" / "__init__.py").write_text("raise AssertionError('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    write_stand_in(assets)
    assert panda_folder() == assets / "franka_emika_panda"
    assert not fetches() and PandaReachTask().missing is None
    (assets / "franka_emika_panda" / "panda.xml").unlink()  # another package of that name
    if not fetches():
        assert "pip install --no-deps genesis-world" in str(PandaReachTask().missing)


def test_clustered_vertices_keep_the_shape() -> None:
    """A finely meshed sphere of 50 mm stays one, with a tenth of the faces; nothing moves by more than a cell."""
    rows, columns = np.meshgrid(np.linspace(0.0, math.pi, 61), np.linspace(0.0, 2 * math.pi, 121), indexing="ij")
    points = 0.05 * np.stack([np.sin(rows) * np.cos(columns), np.sin(rows) * np.sin(columns), np.cos(rows)], axis=-1)
    corner = (np.arange(60)[:, None] * 121 + np.arange(120)).ravel()
    halves = [[corner, corner + 121, corner + 1], [corner + 1, corner + 121, corner + 122]]
    faces = np.concatenate([np.stack(half, axis=1) for half in halves])
    vertices, left = cluster_vertices(points.reshape(-1, 3), faces, 0.008)
    assert len(left) < len(faces) / 10 and len(vertices) < len(points.reshape(-1, 3)) / 10
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.05).max() < 0.002
    a, b, c = (vertices[left[:, index]] for index in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    assert area == pytest.approx(4 * math.pi * 0.05**2, rel=0.05)
    assert (np.sort(left, axis=1)[:, :2] < np.sort(left, axis=1)[:, 1:]).all()
    assert len({tuple(face) for face in np.sort(left, axis=1).tolist()}) == len(left)


def test_on_menageries_own_model() -> None:
    """Run where the model is at hand without a download: placed to 1e-6, moved as told, frozen goals held, light."""
    if fetches() or PandaReachTask().missing is not None:
        pytest.skip("no model of the Panda here: pip install --no-deps genesis-world")
    model = build_panda(panda_folder())
    assert model.nmesh > 10 and model.nmeshface < 60_000
    robot, task, generator = Panda(camera_size=32), PandaReachTask(), np.random.default_rng(2)
    with robot:
        state = sample(generator)
        assert robot.place(state) is not None and robot.true_state() == pytest.approx(state, abs=1e-6)
        for _ in range(20):
            before = robot.true_state()
            applied = robot.apply(generator.uniform(robot.spec.action_low, robot.spec.action_high))
            assert difference(before, robot.true_state()) == pytest.approx(applied, abs=0.01)
        for pair in load_manifest("panda-reach-test").pairs[:3]:
            assert task.held(play_script(robot, task, np.array(pair.start), np.array(pair.goal)))


@pytest.mark.slow
def test_planners_are_measured_on_models_of_joints_and_of_poses_and_go_on_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the planners' table is made: the reacher, whose model steps are cut shorter, and seven numbers a step."""
    import json

    from tiny_world import SIZE, WIDTH, save_tiny_model

    from vjepa_mpc.cli.main import main
    from vjepa_mpc.predictor import PredictorConfig
    from vjepa_mpc.robots.panda import panda_spec

    monkeypatch.setenv(FOLDER_VARIABLE, str(write_stand_in(tmp_path / "menagerie")))
    spec = panda_spec(SIZE)
    shape = PredictorConfig(
        grid_height=2, grid_width=2, latent_dim=WIDTH, width=WIDTH, depth=1, heads=3, max_frames=2,
        action_dim=7, state_dim=7,
    )  # fmt: skip
    panda = save_tiny_model(
        tmp_path / "panda", robot=spec, camera=next(iter(spec.cameras)), predictor=shape, history=1, stride=1
    )
    reacher = save_tiny_model(tmp_path / "reacher")

    def run(out: Path) -> dict[str, Any]:
        asked = ["--on", "model", "--model", str(reacher), "--model", str(panda), "--model", str(reacher)]
        asked += ["--problems", "2", "--budget", "60", "--planner", "default", "--planner", "icem", "--no-overhead"]
        with pytest.raises(SystemExit) as left:
            main(["bench", "planners", *asked, "--backend", "rays", "--out", str(out)])
        assert left.value.code == 0
        found: dict[str, Any] = json.loads((out / "planners.json").read_text())
        return found

    record = run(tmp_path / "bench")
    sizes = {row["problems"]: row["evaluations"] for row in record["rows"]}
    assert len(sizes) == 3 and set(sizes.values()) == {60}, "two models of one robot are two sets of problems"
    assert any("5 steps of 7" in name for name in sizes)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "bench/courses").iterdir()}
    kept.popitem()[0].unlink()  # as if the run had been stopped
    assert run(tmp_path / "bench")["rows"] != [] and len(kept) == 5
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert len(list((tmp_path / "bench/courses").iterdir())) == 6
