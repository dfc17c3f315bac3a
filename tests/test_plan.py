"""`vjepa-mpc plan`: what it leaves behind and how it ends (what it refuses: test_plan_refusals.py)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from plan_command import FAST, GOAL_STATE, START, run
from tiny_world import save_tiny_model

from vjepa_mpc import loop
from vjepa_mpc.cli import building
from vjepa_mpc.cli.plan_screen import TABLE_ROWS, _how_near
from vjepa_mpc.controller import ControlSettings
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planning import CLEARLY_AWAY, GoalController, interrupt_held, long_way, place_start, reach
from vjepa_mpc.robots.reacher import Reacher, reacher_spec
from vjepa_mpc.world_model import Calibration, WorldModel

ROOT = Path(__file__).resolve().parents[1]
NEVER = Calibration(reached_cost=-1.0, goal_score=1e3, state_radius=0.1)


@pytest.fixture(scope="module")
def never(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to which no view is at the goal."""
    return save_tiny_model(tmp_path_factory.mktemp("never") / "model", calibration=NEVER)


def frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


# --- what it does ---------------------------------------------------------------------------------------


def test_reached_and_held(tmp_path: Path, goal: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    assert run("--goal", goal, "--model", tiny_model, "--start", START, "--out", out, *FAST) == 0
    assert sorted(os.listdir(out)) == ["energy.png", "episode.mp4", "plan.json"]
    record = json.loads((out / "plan.json").read_text())
    assert record["reached"] and record["exit_reason"] == "reached"
    steps = record["steps"]
    assert len(steps) == 3, "held over three views"
    assert [step["reached"] for step in steps] == [False, False, True]
    assert record["actions"] == 2 and steps[-1]["applied"] is None
    np.testing.assert_allclose(steps[0]["proprioception"], (-1.0, 1.5), atol=1e-6)
    # what was applied is what moved the joints
    moved = np.subtract(steps[1]["proprioception"], steps[0]["proprioception"])
    np.testing.assert_allclose(moved, steps[0]["applied"], atol=0.02)
    assert all(abs(value) <= 0.3 + 1e-6 for step in steps for value in step["wanted"])
    assert set(steps[0]["costs"]) == {"goal", "state_box"}
    assert record["robot"]["action_units"] == ["rad", "rad"]
    assert record["settings"]["seed"] == 0 and record["settings"]["planner_settings"]["samples"] == 6
    assert record["model"]["folder"] == str(tiny_model) and len(record["model"]["weights_sha256"]) == 64
    assert record["goal"]["sha256"] and record["goal_warning"] is None and record["goal"]["state"] is None
    assert record["provenance"]["packages"]["torch"] and record["provenance"]["torch_threads"] == 1
    assert record["files"] == ["plan.json", "episode.mp4", "energy.png"]
    assert steps[0]["distance_m"] is None
    assert frames(out / "episode.mp4") == 3
    assert Image.open(out / "energy.png").format == "PNG"
    shown = capsys.readouterr()
    assert "Reached and held after 2 actions" in shown.out and "latent cost" in shown.out
    assert "distance" not in shown.out
    assert "step 2" in shown.err


def test_not_reached_is_3_and_distances_are_known_in_simulation(
    tmp_path: Path, goal: Path, never: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "goal.png"
    shutil.copy(goal, picture)
    (tmp_path / "goal.json").write_text(json.dumps({"state": GOAL_STATE}))
    out = tmp_path / "out"
    code = run("--goal", picture, "--model", never, "--start", "0.6,-1.1", "--max-steps", 2, "--out", out, *FAST)
    assert code == 3
    record = json.loads((out / "plan.json").read_text())
    assert record["exit_reason"] == "max_steps" and not record["reached"] and record["actions"] == 2
    assert len(record["steps"]) == 3 and frames(out / "episode.mp4") == 3
    assert record["steps"][0]["distance_m"] == pytest.approx(0.0, abs=1e-6)
    assert record["goal"]["state"] == list(GOAL_STATE)
    assert any("never sees it" in note for note in record["notes"])
    assert "distance (cm)" in capsys.readouterr().out


def test_json_is_all_of_stdout_and_the_seed_decides(
    tmp_path: Path, goal: Path, never: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = []
    for index, seed in enumerate((3, 3, 4)):
        out = tmp_path / str(index)
        arguments = ("--goal", goal, "--model", never, "--max-steps", 1, "--seed", seed, "--out", out, "--json")
        assert run(*arguments, *FAST) == 3
        shown = json.loads(capsys.readouterr().out)
        assert shown == json.loads((out / "plan.json").read_text())
        records.append([(step["proprioception"], step["wanted"], step["latent_cost"]) for step in shown["steps"]])
    assert records[0] == records[1] != records[2]


def test_the_table_says_when_it_leaves_rows_out(
    tmp_path: Path, goal: Path, never: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--goal", goal, "--model", never, "--start", START, *FAST, "--iterations", 1, "--horizon", 1)
    rows = {}
    for steps in (TABLE_ROWS - 1, 2 * TABLE_ROWS):
        assert run(*quick, "--max-steps", steps, "--out", tmp_path / str(steps)) == 3
        shown = capsys.readouterr().out
        rows[steps] = [int(line.split("│")[1]) for line in shown.splitlines() if line.startswith("│")]
        left_out = f"{TABLE_ROWS} of {steps + 1} steps; all are in plan.json"
        assert (left_out in shown) == (steps + 1 > TABLE_ROWS)
    assert rows[TABLE_ROWS - 1] == list(range(TABLE_ROWS))
    assert len(rows[2 * TABLE_ROWS]) == TABLE_ROWS and rows[2 * TABLE_ROWS][-1] == 2 * TABLE_ROWS


def test_quiet_prints_nothing(tmp_path: Path, goal: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--goal", goal, "--model", tiny_model, "--start", START, "--out", tmp_path / "out", "--quiet")
    assert run(*arguments, *FAST) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_gradient_planner_and_appearance(tmp_path: Path, goal: Path, never: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--planner", "gradient", "--samples", 2, "--iterations", 2, "--horizon", 2, "--backend", "rays")
    code = run(
        "--goal", goal, "--model", never, "--start", START, "--max-steps", 1, "--out", out, "--appearance", 7,
        "--threads", 1, *arguments,
    )  # fmt: skip
    assert code == 3
    record = json.loads((out / "plan.json").read_text())
    assert record["settings"]["planner"] == "GradientPlanner" and record["settings"]["appearance"] == 7


def test_one_plan_from_two_pictures_without_a_simulator(tmp_path: Path, goal: Path, never: Path) -> None:
    """In its own process, where mujoco cannot be imported."""
    out = tmp_path / "out"
    code = "\n".join([
        "import sys",
        "sys.modules['mujoco'] = sys.modules['dm_control'] = None",
        "from vjepa_mpc.cli.main import main",
        "main(sys.argv[1:])",
    ])  # fmt: skip
    done = subprocess.run(
        [
            sys.executable, "-c", code, "plan", "--goal", goal, "--model", never, "--observation", goal,
            "--state", "0.6,-1.1", "--out", out, "--samples", "6", "--elites", "2", "--horizon", "3", "--threads", "1",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MUJOCO_GL": "no such thing"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(out)) == ["energy.png", "plan.json"]
    record = json.loads((out / "plan.json").read_text())
    assert record["kind"] == "one plan" and np.shape(record["actions"]) == (3, 2)
    assert record["latent_cost"] == pytest.approx(0.0, abs=1e-6) and record["observation"]["state"] == [0.6, -1.1]
    assert set(record["costs"]) == {"goal", "state_box"}
    assert "shoulder_delta (rad)" in done.stdout and "predicted" in done.stdout


def test_run_folder_of_train_will_do(tmp_path: Path, goal: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "run" / "model")
    arguments = ("--goal", goal, "--model", tmp_path / "run", "--observation", goal, "--state", "0,0")
    assert run(*arguments, "--out", tmp_path / "out", "--threads", 1) == 0


def test_goal_of_any_size_and_mode(tmp_path: Path, goal: Path, tiny_model: Path) -> None:
    for name, picture in {
        "grey.png": Image.open(goal).convert("L"),
        "wide.webp": Image.open(goal).resize((300, 170)),
        "rgba.png": Image.open(goal).convert("RGBA"),
    }.items():
        picture.save(tmp_path / name)
        arguments = ("--goal", tmp_path / name, "--model", tiny_model, "--observation", goal, "--state", "0,0")
        assert run(*arguments, "--out", tmp_path / "out", "--threads", 1) == 0


def test_other_renderer_than_in_training_is_said(
    tmp_path: Path, goal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny_model(tmp_path / "model", renderer="mujoco-egl")
    out = tmp_path / "out"
    assert run("--goal", goal, "--model", model, "--start", START, "--out", out, *FAST) == 0
    assert "mujoco-rays-2x, but the model was trained on mujoco-egl" in capsys.readouterr().err
    assert any("mujoco-egl" in note for note in json.loads((out / "plan.json").read_text())["notes"])


def test_a_goal_unlike_the_training_is_said(
    tmp_path: Path, goal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score = Calibration(reached_cost=1e3, goal_score=1e-3, state_radius=0.1)
    world = WorldModel.from_pretrained(save_tiny_model(tmp_path / "model", calibration=score))
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3)).astype(np.uint8)
    world.get_familiar(world.pooled(noise))
    world.save_pretrained(tmp_path / "model")
    model, out = tmp_path / "model", tmp_path / "out"
    assert run("--goal", goal, "--model", model, "--start", START, "--out", out, *FAST) == 0
    assert "far from anything the model was trained on" in capsys.readouterr().err
    record = json.loads((out / "plan.json").read_text())
    assert "far from anything" in record["goal_warning"] and record["goal"]["score"] > 1e-3


def test_a_goal_that_shows_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    least = Calibration(reached_cost=1e3, goal_score=None, state_radius=0.1, contrast=0.02)
    model = save_tiny_model(tmp_path / "model", calibration=least)
    white, out = tmp_path / "white.png", tmp_path / "out"
    Image.new("RGB", (64, 64), "white").save(white)
    assert run("--goal", white, "--model", model, "--start", START, "--out", out, *FAST) == 0
    assert "white.png shows hardly anything (contrast 0; " in capsys.readouterr().err


# --- Ctrl-C ---------------------------------------------------------------------------------------------


def test_interrupted_midway_everything_is_kept(tmp_path: Path, goal: Path, never: Path) -> None:
    out = tmp_path / "out"
    child = subprocess.Popen(
        [
            sys.executable, "-m", "vjepa_mpc.cli.main", "plan", "--goal", goal, "--model", never, "--start", START,
            "--max-steps", "100000", "--out", out, *FAST,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `&` would have it ignored
    )  # fmt: skip
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("step 3"):
            break
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=120)
    assert child.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert sorted(os.listdir(out)) == ["energy.png", "episode.mp4", "plan.json"]
    record = json.loads((out / "plan.json").read_text())
    assert record["exit_reason"] == "interrupted" and not record["reached"]
    assert len(record["steps"]) >= 4 and frames(out / "episode.mp4") == len(record["steps"])
    assert "Interrupted after" in stdout


def test_interrupt_waits_for_the_end_of_the_block() -> None:
    seen = []
    with pytest.raises(KeyboardInterrupt), interrupt_held():
        os.kill(os.getpid(), signal.SIGINT)
        seen.append("went on")
    assert seen == ["went on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Breaks(Reacher):
    """Its third observation is of a broken sensor."""

    seen = 0

    def observe(self) -> Any:
        observation = super().observe()
        self.seen += 1
        if self.seen < 4:
            return observation
        return replace(observation, proprioception=np.array([np.nan, 0.0], dtype=np.float32))


def controller(model: Path, picture: np.ndarray) -> GoalController:
    world = WorldModel.from_pretrained(model)
    planner = building.make_planner("cem", world.action_bounds, samples=6, elites=2, iterations=1)
    return GoalController(world, planner, picture, ControlSettings(horizon=2), torch.Generator().manual_seed(0))


def test_a_failing_robot_is_stopped_and_its_records_kept(never: Path) -> None:
    with Breaks(64, backend="rays") as robot:
        pilot = controller(never, robot.place(np.array(GOAL_STATE)).images["top"])
        outcome = reach(pilot, robot, max_steps=10)
        assert outcome.ended == "failed" and len(outcome.records) == 2 and outcome.actions == 2
        assert isinstance(outcome.error, InputError) and "not finite" in str(outcome.error)


class CutShort(Reacher):
    """Ctrl-C comes while its third action is under way, half done."""

    sent = stopped = 0

    def apply(self, action: np.ndarray) -> np.ndarray:
        self.sent += 1
        if self.sent < 3:
            return super().apply(action)
        super().apply(0.5 * action)
        raise KeyboardInterrupt

    def stop(self) -> None:
        self.stopped += 1
        super().stop()


def test_an_action_that_ctrl_c_cuts_short_is_recorded(never: Path) -> None:
    with CutShort(64, backend="rays") as robot:
        pilot = controller(never, robot.place(np.array(GOAL_STATE)).images["top"])
        outcome = reach(pilot, robot, max_steps=10)
        assert outcome.ended == "interrupted" and outcome.actions == len(outcome.records) == robot.sent == 3
        assert [record.executed for record in outcome.records] == ["planned", "planned", "interrupted"]
        assert np.array_equal(outcome.records[2].action, outcome.records[2].wanted) and robot.stopped


def test_ctrl_c_between_sending_and_recording_loses_nothing(never: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 0

    def applied(pilot: Any, action: np.ndarray) -> None:
        nonlocal sent
        sent += 1
        if sent == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Stepwise, "applied", applied)
    with Reacher(64, backend="rays") as robot:
        pilot = controller(never, robot.place(np.array(GOAL_STATE)).images["top"])
        outcome = reach(pilot, robot, max_steps=10)
    assert outcome.actions == 2 and [record.executed for record in outcome.records] == ["planned", "interrupted"]


def test_the_long_way_round_is_said() -> None:
    spec = reacher_spec(64)  # the shoulder turns freely, the elbow does not
    found = long_way(spec, np.array([[-2.0, 0.5], [-2.5, 3.0]]))
    assert found is not None and "shoulder by -4.50 rad, where +1.78 leads to the same pose" in found
    assert "elbow" not in found and long_way(spec, np.array([[-2.0, 0.5], [-1.0, 3.0]])) is None
    poses = replace(spec, action_units=("m", "m"))
    assert long_way(poses, np.array([[-2.0, 0.5], [-2.5, 3.0]])) is None


def test_a_drawn_start_is_not_at_the_goal(never: Path) -> None:
    with Reacher(64, backend="rays") as robot:
        pilot = controller(never, robot.place(np.array(GOAL_STATE)).images["top"])
        views = [robot.reset(seed).images["top"] for seed in range(30)]
        away = (pilot.model.encode(np.stack(views)) - pilot.goal).abs().mean(dim=(1, 2)).sort().values
        middle = float(away[15]) / CLEARLY_AWAY
        calibration = Calibration(reached_cost=middle, goal_score=1e3, state_radius=0.1)
        for seed in range(5):
            place_start(robot, pilot, calibration, None, seed)
            view = pilot.model.encode(robot.observe().images["top"][None])
            assert float((view - pilot.goal).abs().mean()) > CLEARLY_AWAY * middle
        everywhere = Calibration(reached_cost=1e3, goal_score=1e3, state_radius=0.1)
        with pytest.raises(InputError, match="choose one with --start"):
            place_start(robot, pilot, everywhere, None, 0)


@pytest.mark.parametrize(("pixels", "warning", "hinted"), [(256, None, True), (64, None, False), (256, "far", False)])
def test_a_goal_not_reached_is_told_which_size_might_help(pixels: int, warning: str | None, hinted: bool) -> None:
    """Unless it has that size, or there is a likelier reason."""
    told = _how_near({
        "steps": [{"latent_cost": 0.9}], "goal": {"pixels": [pixels, pixels]}, "goal_warning": warning,
        "model": {"reached_cost": 0.2, "camera_pixels": [64, 64]},
    })  # fmt: skip
    assert "0.90, and below 0.20 counts" in told and ("a goal of 64 x 64 pixels" in told) == hinted
