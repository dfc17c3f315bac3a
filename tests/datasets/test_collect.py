"""Collecting gives the same store for any number of workers, and after any interruption."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_trajectories import toy_episode, toy_spec

from vjepa_mpc.cli.main import main
from vjepa_mpc.collect import CollectSettings, collect
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.exploration import MIXTURE, EpisodeSettings, simulate_episode
from vjepa_mpc.robots.base import Camera, Observation, RobotSpec

SMALL = EpisodeSettings(frames=9, camera_size=32)


class ToyRobot:
    """Joints that do as told, within their bounds, without a simulator. Implements `SimulatedRobot`."""

    spec = RobotSpec(
        name="toy",
        action_names=("d1", "d2"),
        action_low=(-0.3, -0.2),
        action_high=(0.3, 0.2),
        action_units=("rad", "rad"),
        state_names=("q1", "q2"),
        state_low=(-math.pi, -1.0),
        state_high=(math.pi, 1.0),
        state_units=("rad", "rad"),
        state_periodic=(True, False),
        control_period_s=0.1,
        cameras={"top": Camera(8, 8)},
    )
    renderer_identity = "toy"

    def __init__(self, camera_size: int = 8) -> None:
        self.state, self.time, self.looks = np.zeros(2), 0.0, []

    def reset(self, seed: int | None = None) -> Observation:
        return self.observe()

    def place(self, state: np.ndarray) -> Observation:
        self.state, self.time = self.spec.check_state(state), 0.0
        return self.observe()

    def observe(self) -> Observation:
        image = np.full((8, 8, 3), int(20 * (self.state[0] + 4)), np.uint8)
        return Observation({"top": image}, self.state.astype(np.float32), self.time)

    def apply(self, action: np.ndarray) -> np.ndarray:
        target = self.state + np.clip(action, self.spec.action_low, self.spec.action_high)
        target[1] = np.clip(target[1], -1.0, 1.0)
        applied, self.time = target - self.state, self.time + 0.1
        self.state = np.array([(target[0] + math.pi) % (2 * math.pi) - math.pi, target[1]])
        return applied

    def true_state(self) -> np.ndarray:
        return self.state.copy()

    def sample_state(self, generator: np.random.Generator) -> np.ndarray:
        return generator.uniform(self.spec.state_low, self.spec.state_high)

    def set_appearance(self, seed: int | None, level: float = 1.0) -> None:
        self.looks.append(seed)

    def end_effector(self) -> np.ndarray:
        return np.zeros(3)

    def settings(self) -> dict:
        return {}

    def stop(self) -> None: ...

    def close(self) -> None: ...


def test_episodes_show_the_stated_mixture_within_the_bounds() -> None:
    robot, settings = ToyRobot(), EpisodeSettings(robot="toy", frames=50)
    episodes = [simulate_episode(robot, settings, index) for index in range(100)]
    for episode in episodes:
        moved = np.diff(episode.states, axis=0) - episode.actions
        moved[:, 0] = (moved[:, 0] + np.pi) % (2 * np.pi) - np.pi
        assert np.abs(moved).max() < 1e-5  # the recorded actions are those truly applied
    actions = np.concatenate([episode.actions for episode in episodes])
    states = np.concatenate([episode.states for episode in episodes])
    assert (np.abs(actions) <= np.array([0.3, 0.2], np.float32)).all()
    assert (np.abs(actions[:, 0]) > 0.299).mean() > 0.08 and (actions == 0).all(axis=1).mean() > 0.01
    assert np.histogram(states[:, 0], 8, (-np.pi, np.pi))[0].min() > 0.5 * len(states) / 8
    kinds = [kind for episode in episodes for _, kind in episode.metadata["behaviours"]]
    for kind, share in MIXTURE.items():
        assert abs(kinds.count(kind) / len(kinds) - share) < 0.07
    # Smooth motion: what follows resembles what was.
    assert np.corrcoef(actions[:-1, 0], actions[1:, 0])[0, 1] > 0.4


def test_appearances_are_drawn_below_the_manifests_seeds_with_the_stated_share() -> None:
    robot, settings = ToyRobot(), EpisodeSettings(robot="toy", frames=2, appearance_fraction=0.7)
    seeds = [simulate_episode(robot, settings, i).metadata["appearance_seed"] for i in range(200)]
    varied = [seed for seed in seeds if seed is not None]
    assert abs(len(varied) / 200 - 0.7) < 0.1 and len(set(varied)) > 120
    assert min(varied) >= 0 and max(varied) < 1_000_000 and robot.looks == seeds
    plain = simulate_episode(robot, replace(settings, appearance="plain"), 0).metadata
    assert plain["appearance_seed"] is None


def test_an_episode_depends_on_seed_and_index_alone() -> None:
    robot, settings = ToyRobot(), EpisodeSettings(robot="toy", frames=20)
    first = simulate_episode(robot, settings, 3)
    simulate_episode(robot, settings, 4)
    assert simulate_episode(robot, settings, 3).digest() == first.digest()
    assert simulate_episode(robot, settings, 4).digest() != first.digest()
    assert simulate_episode(robot, replace(settings, seed=1), 3).digest() != first.digest()


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'varied'"):
        EpisodeSettings(appearance="vaired")
    for change in ({"frames": 1}, {"seed": -1}, {"appearance_level": 1.5}, {"camera_size": 2}):
        with pytest.raises(InputError):
            EpisodeSettings(**change)
    with pytest.raises(InputError, match="at least 1"):
        CollectSettings(Path("x"), episodes=0)


def test_a_store_that_is_not_ours_to_continue_is_left_alone(tmp_path: Path) -> None:
    ZarrStore.create(tmp_path / "a.zarr", toy_spec()).close()
    with pytest.raises(InputError, match=r"another recipe .*seed 1 there, 0 asked"):
        collect(CollectSettings(tmp_path / "a.zarr"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("keep me")
    with pytest.raises(InputError, match="not a trajectory store"):
        collect(CollectSettings(tmp_path / "notes"))
    with ZarrStore.append_to(tmp_path / "a.zarr") as writer:
        writer.append(toy_episode(0))
        with pytest.raises(InputError, match="being written by process"):
            collect(CollectSettings(tmp_path / "a.zarr"))
    with pytest.raises(InputError, match="no robot named 'recher'"):
        collect(CollectSettings(tmp_path / "b.zarr", 1, 1, EpisodeSettings(robot="recher")))
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.gl
def test_workers_and_interruptions_do_not_change_a_byte(tmp_path: Path) -> None:
    one = collect(CollectSettings(tmp_path / "one.zarr", 7, 1, SMALL))
    assert (one.episodes, one.frames, one.added, one.interrupted) == (7, 63, 7, False)
    calls: list[tuple[int, int]] = []
    collect(CollectSettings(tmp_path / "two.zarr", 3, 2, SMALL), lambda *call: calls.append(call))
    assert calls[0] == (0, 3) and calls[-1] == (3, 3)
    assert collect(CollectSettings(tmp_path / "two.zarr", 7, 2, SMALL)).added == 4
    assert collect(CollectSettings(tmp_path / "two.zarr", 5, 2, SMALL)).added == 0  # nothing is ever removed
    assert bytes_of(tmp_path / "one.zarr") == bytes_of(tmp_path / "two.zarr")
    with pytest.raises(InputError, match="appearance 'varied' there, 'plain' asked"):
        collect(CollectSettings(tmp_path / "two.zarr", 9, 1, replace(SMALL, appearance="plain")))
    store = ZarrStore.open(tmp_path / "one.zarr")
    assert store.spec.robot == "reacher" and store.spec.provenance["recipe"]["frames"] == 9
    assert store.read(0).images["top"].shape == (9, 32, 32, 3)
    assert len({store.read(i).images["top"].tobytes() for i in range(7)}) == 7


@pytest.mark.gl
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_collecting_keeps_finished_episodes_and_leaves_no_process(tmp_path: Path, how: signal.Signals) -> None:
    script = (
        "import sys; from pathlib import Path; from vjepa_mpc.cli.collect import collect\n"
        "if __name__ == '__main__':\n"
        "    from typer import Typer; app = Typer(); app.command()(collect); app()\n"
    )
    (tmp_path / "run.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = tmp_path / "a.zarr"
    arguments = ["--episodes", "100000", "--out", str(out), "--workers", "2", "--frames", "9", "--size", "32"]
    child = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        wait_for(lambda: (out / "meta").exists() and len(ZarrStore.open(out)) > 5, 120)
        os.killpg(child.pid, how) if how == signal.SIGINT else child.kill()  # as Ctrl-C, or as an OOM killer
        printed, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    wait_for(lambda: not group_alive(child.pid), 30)
    store = ZarrStore.open(out)
    for index in range(len(store)):
        store.verify(index)
    if how == signal.SIGINT:
        assert child.returncode == 130 and "run the same command to continue" in errors
        assert "Traceback" not in errors
        assert json.loads(printed)["episodes"] == len(store) and json.loads(printed)["interrupted"]


def wait_for(condition: object, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def bytes_of(store: Path) -> dict[str, bytes]:
    """Every file but the lock, and with the one thing that may differ, the commit, taken out."""
    files = {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}
    files.pop("meta/writer.lock", None)
    files["zarr.json"] = re.sub(rb'"commit": [^,]*,', b"", files["zarr.json"])
    return files


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["smooth"], "write demonstration=0.8"), (["smooth=half"], "write demonstration=0.8"),
        (["smooth=0.5", "smooth=0.5"], "given twice"), (["smoth=1"], "did you mean 'smooth'"),
        (["smooth=0.5"], "must sum to 1"), (["demonstration=1"], "needs the task"),
    ],
)  # fmt: skip
def test_behaviours_that_cannot_be_are_refused_before_anything_is_made(
    given: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    robot = ["--robot", "vjepa_mpc.robots.push_t:PushT"] if words == "needs the task" else ["--task", "push-t"]
    line = ["collect", *robot, "--out", str(tmp_path / "a.zarr")]
    with pytest.raises(SystemExit) as left:
        main([*line, *(word for one in given for word in ("--behaviour", one))])
    assert left.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--actor", "point-maze"], "belong together"), (["--behaviour", "actor=1"], "belong together"),
        (["--actor", "two-rooms", "--behaviour", "actor=1"], "no actor that could drive"),
        (["--actor", "jaco-place", "--behaviour", "actor=1"], "trained for jaco-place"),
    ],
)  # fmt: skip
def test_an_actor_that_cannot_drive_is_refused_before_anything_is_made(
    given: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["collect", "--task", "point-maze", *given, "--out", str(tmp_path / "a.zarr")])
    assert left.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.gl
def test_what_an_actor_did_is_in_the_store_with_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for workers in ("1", "2"):
        line = ["collect", "--task", "point-maze", "--size", "64", "--frames", "40", "--workers", workers]
        with pytest.raises(SystemExit) as left:
            main([*line, "--behaviour", "actor=1", "--actor", "point-maze", "--episodes", "2", "--out",
                  str(tmp_path / f"{workers}.zarr")])  # fmt: skip
        assert not left.value.code, capsys.readouterr().err
    assert bytes_of(tmp_path / "1.zarr") == bytes_of(tmp_path / "2.zarr")
    store = ZarrStore.open(tmp_path / "1.zarr")
    recipe = store.spec.provenance["recipe"]
    assert len(recipe["actor_weights"]) == 64 and "actor" not in recipe, "its folder may be moved"
    assert recipe["actor_steps"] == 1 and recipe["segment_steps"]["demonstration"] == [90, 90]
    kinds = [kind for episode in range(2) for _, kind in store.metadata(episode)["behaviours"]]
    assert set(kinds) == {"actor", "demonstration"}


@pytest.mark.gl
def test_a_store_of_behaviours_is_gone_on_with_in_any_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["collect", "--task", "push-t", "--size", "32", "--frames", "12", "--workers", "1", "--json"]
    shares = ["--behaviour", "demonstration=0.75", "--behaviour", "smooth=0.25"]
    for episodes, asked in (("1", shares), ("2", [*shares[2:], *shares[:2]])):
        with pytest.raises(SystemExit) as left:
            main([*line, "--out", str(tmp_path / "a.zarr"), "--episodes", episodes, *asked])
        assert not left.value.code
        assert json.loads(capsys.readouterr().out)["added"] == 1
    with pytest.raises(SystemExit):
        main([*line, "--out", str(tmp_path / "a.zarr"), "--episodes", "3"])
    assert "another recipe" in capsys.readouterr().err
