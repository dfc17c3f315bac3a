"""`vjepa-mpc bench` as a user meets it: one command to a folder, again to go on, one sentence for bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vjepa_mpc.actor import Actor, ActorConfig
from vjepa_mpc.robots.tasks import load_manifest
from vjepa_mpc.world_model import SearchDefaults, WorldModel

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("bench", "--tasks", "reacher", "--models", "reacher=none", "--backend", "rays")
Leave = Callable[..., tuple[Any, str, str]]


def refused(answer: tuple[Any, str, str], words: str) -> None:
    code, out, err = answer
    assert code == 2, err
    assert out == "" and "Traceback" not in err
    assert err.splitlines()[-1].startswith("Error: ") and words in err.splitlines()[-1]


def test_one_command_makes_the_whole_folder_and_the_same_again_plays_nothing(
    tiny_model: Path, tmp_path: Path, leave: Leave
) -> None:
    line = (
        "bench", "--tasks", "reacher", "--models", f"reacher={tiny_model}", "--pairs", 1, "--samples", 2,
        "--elites", 1, "--iterations", 1, "--factors", "light", "--levels", 1, "--varied-pairs", 1, "--backend", "rays",
        "--out", tmp_path / "out",
    )  # fmt: skip
    code, out, err = leave(*line)
    assert code == 0, err
    assert "small: 1 task, 8 episodes, 8 of them to be played: about" in err
    assert "scripted" in out and "report.html" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "episodes", "films", "results.json", "results.csv", "episodes.csv", "report.html", "settings.json"
    }  # fmt: skip
    logs = {path.name: path.read_bytes() for path in (tmp_path / "out/episodes").iterdir()}
    assert len(logs) == 8
    record = json.loads((tmp_path / "out/results.json").read_text())
    (planner,) = [row for row in record["rows"] if row["kind"] == "planner" and not row["factor"]]
    assert planner["policy"] == f"{tiny_model}, cem" and planner["flops"]["step"] > planner["flops"]["encode"] > 0
    assert planner["played"]["weights"] and planner["deadline_misses"]["period_s"] == 0.2
    assert record["complete"] and record["hardware"]["cores"]
    code, out, err = leave(*line, "--json")
    assert code == 0 and " 0 of them to be played" in err and json.loads(out)["rows"] == record["rows"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/episodes").iterdir()} == logs


def test_an_actor_is_played_beside_the_planner_where_a_model_has_one(
    tiny_model: Path, tmp_path: Path, leave: Leave
) -> None:
    model = WorldModel.from_pretrained(tiny_model)
    latent = model.config.latent
    model.get_actor(Actor(ActorConfig(latent.positions, latent.dim, model.states.state_dim, actions=2)))
    model.save_pretrained(tmp_path / "acting")
    line = (
        "bench", "--tasks", "reacher", "--pairs", 1, "--factors", "none", "--backend", "rays", "--samples", 2,
        "--elites", 1, "--iterations", 1, "--batch", 2, "--seeds", 2, "--json",
    )  # fmt: skip
    code, out, err = leave(*line, "--models", f"reacher={tmp_path / 'acting'}", "--out", tmp_path / "out")
    assert code == 0, err
    rows = {row["kind"]: row for row in json.loads(out)["rows"] if row["kind"] in ("planner", "actor")}
    assert rows["actor"]["policy"].endswith("acting, actor") and rows["actor"]["evaluations"] == 0
    assert rows["actor"]["episodes"] == 1 and rows["planner"]["episodes"] == 2  # a seed changes no actor
    assert rows["actor"]["played"]["planner"] == "actor" and "flops" not in rows["actor"]
    assert f'reacher: {rows["actor"]["policy"]}' in (tmp_path / "out/report.html").read_text()
    model.searched(SearchDefaults(planner="actor", actor_drawn=True)).save_pretrained(tmp_path / "acting")
    alone = (
        "bench", "--tasks", "reacher", "--pairs", 1, "--factors", "none", "--backend", "rays", "--seeds", 2, "--json",
    )  # fmt: skip
    code, out, err = leave(*alone, "--models", f"reacher={tmp_path / 'acting'}", "--out", tmp_path / "alone")
    kinds = {row["kind"]: row["episodes"] for row in json.loads(out)["rows"]}
    assert code == 0 and kinds["actor"] == 2 and "planner" not in kinds, "it draws, by its seed; nobody asked for plans"
    wanted = ("--planners", "actor", "--models", f"reacher={tiny_model}", "--out", tmp_path / "without")
    refused(leave(*line, *wanted), "plans nothing: leave out what is said of plans")
    refused(leave("bench", "--tasks", "reacher", *wanted), "train-actor")


def test_the_price_alone_plays_nothing(tmp_path: Path, leave: Leave) -> None:
    code, out, err = leave(*FLOORS, "--suite", "full", "--price", "--out", tmp_path)
    assert code == 0 and out == ""
    # 100 pairs, and 20 of each of 7 factors at 2 levels, of random, no-op and script
    assert "full: 1 task, 1140 episodes, 1140 of them to be played: about" in err
    assert not (tmp_path / "episodes").exists()


def test_seeds_repeat_what_is_random_only(tmp_path: Path, leave: Leave) -> None:
    code, out, _err = leave(
        *FLOORS, "--pairs", 1, "--seeds", 2, "--factors", "none", "--json", "--out", tmp_path
    )
    assert code == 0
    counts = {row["policy"]: row["episodes"] for row in json.loads(out)["rows"]}
    assert counts == {"random": 2, "no-op": 1, "scripted (ceiling)": 1}


BAD = {
    "an unknown suite": (["--suite", "smal"], "did you mean 'small'"),
    "an unknown task": (["--tasks", "reachr"], "did you mean 'reacher'"),
    "an unknown planner": (["--planners", "cemm"], "did you mean 'cem'"),
    "an unknown factor": (["--factors", "ligth"], "did you mean 'light'"),
    "a level beyond the range": (["--factors", "light", "--levels", "1.5"], "outside [0, 1]"),
    "a level of nothing": (["--factors", "light", "--levels", "0"], "plain world"),
    "none and others": (["--factors", "none,light"], "leave one of them out"),
    "no workers": (["--workers", "0"], "at least 1"),
    "ten thousand workers": (["--workers", "10000"], "10000 workers are more than this machine's"),
    "ten thousand workers on a Ray of its own": (["--workers", "10000", "--ray"], "10000 workers are more than"),
    "no Ray address": (["--ray-address", "nonsense"], "is no Ray address"),
    "a Ray that is not there": (["--ray-address", "127.0.0.1:9"], "Nothing answers at 127.0.0.1:9"),
    "a model for no task": (["--models", "somewhere"], "write it as TASK=VALUE"),
    "a model for a task not played": (["--tasks", "two-rooms", "--models", "reacher=reacher"], "add it to --tasks"),
    "a model for another robot": (["--tasks", "two-rooms", "--models", "two-rooms=MODEL"], "was trained for reacher"),
    "a model that is not there": (["--tasks", "two-rooms", "--models", "two-rooms=./no"], "./no does not exist"),
    "an unknown split": (["--manifest", "tset"], "did you mean 'reacher-test'"),
    "another task's manifest": (["--manifest", "reacher=two-rooms-dev"], "choose another manifest"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence_said_soon(kind: str, tiny_model: Path, tmp_path: Path, leave: Leave) -> None:
    arguments, words = BAD[kind]
    more = [argument.replace("MODEL", str(tiny_model)) for argument in arguments]
    if not {"--tasks", "--models"} & set(more):
        more += ["--tasks", "reacher", "--models", "reacher=none"]
    started = time.monotonic()
    refused(leave("bench", "--out", tmp_path / "out", *more), words)
    assert time.monotonic() - started < 20
    assert not (tmp_path / "out" / "episodes").exists()


def test_a_manifest_of_another_version_of_the_task_is_refused(tmp_path: Path, leave: Leave) -> None:
    import dataclasses

    other = dataclasses.replace(load_manifest("reacher-dev"), task_version=99)
    (tmp_path / "old.json").write_text(json.dumps(other.to_json()))
    refused(leave(*FLOORS, "--manifest", tmp_path / "old.json", "--out", tmp_path / "out"), "99")
    altered = {**other.to_json(), "seed": 5}
    (tmp_path / "altered.json").write_text(json.dumps(altered))
    refused(leave(*FLOORS, "--manifest", tmp_path / "altered.json", "--out", tmp_path / "out"), "was altered")


def test_another_commands_folder_is_refused(tmp_path: Path, leave: Leave) -> None:
    (tmp_path / "settings.json").write_text('{"kind": "evaluate", "settings": {}}')
    refused(leave(*FLOORS, "--out", tmp_path), "run of another command")


def test_ctrl_c_leaves_with_130_keeps_what_was_finished_and_goes_on(tmp_path: Path, leave: Leave) -> None:
    arguments = (*FLOORS, "--pairs", "4", "--factors", "none", "--out", str(tmp_path))
    line = [sys.executable, "-m", "vjepa_mpc.cli.main", *arguments]
    process = subprocess.Popen(
        line, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def lines() -> int:
        return sum(len(path.read_text().splitlines()) for path in tmp_path.glob("episodes/*.jsonl"))

    deadline = time.monotonic() + 100
    while lines() < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err, err
    record = json.loads((tmp_path / "results.json").read_text())
    finished = lines()
    assert not record["complete"] and sum(row["episodes"] for row in record["rows"]) == finished < 12
    assert "no: what was finished when it was stopped" in (tmp_path / "report.html").read_text()
    code, out, err = leave(*arguments, "--json")
    assert code == 0 and f"{12 - finished} of them to be played" in err and lines() == 12
    assert [row["episodes"] for row in json.loads(out)["rows"]] == [4, 4, 4]
