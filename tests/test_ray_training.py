"""`--workers N --ray` of the trainings: by Ray Train the same run as without it, also when it is cut short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

sys.path.insert(0, str(Path(__file__).parent / "pretrain"))
from moving_dot import make_store

from vjepa_mpc.cli.ray_training import End, _judge, _Voice
from vjepa_mpc.cli.workers import PLACED, launches
from vjepa_mpc.core.errors import WorkerDiedError
from vjepa_mpc.pretrain import ranks

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--width", "24", "--depth", "1", "--heads", "1", "--fp32", "--batch", "4", "--device", "cpu", "--workers", "2"]
ENCODER = [*TINY, "--patch", "4", "--checkpoint-every", "10", "--steps", "120"]
PREDICTOR = [*TINY, *["--encoder", "pixels", "--grid", "2", "--stride", "2", "--frames", "3", "--steps", "6"]]
Leave = Callable[..., tuple[Any, str, str]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["pretrain", "logs.zarr", "--ray"], "say how many with --workers"),
        (["pretrain", "logs.zarr", "--workers", "0", "--ray"], "at least one worker"),
        (["train", "logs.zarr", "--workers", "10000", "--ray"], "give the address of a Ray cluster"),
        (["train", "logs.zarr", "--workers", "2", "--ray-address", "nowhere"], "is no Ray address"),
        (["pretrain", "logs.zarr", "--workers", "2", "--ray-address", "127.0.0.1:1"], "Nothing answers at 127.0.0.1:1"),
    ],
)
def test_what_cannot_be_is_refused_at_once(leave: Leave, given: list[str], words: str) -> None:
    began = time.monotonic()
    code, out, err = leave(*given)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and words in err
    assert time.monotonic() - began < 20


def test_without_ray_train_the_sentence_says_what_to_install(leave: Leave, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.train.torch", None)
    code, _, err = leave("pretrain", "logs.zarr", "--workers", "2", "--ray")
    assert code == 2 and "pip install 'vjepa-mpc[ray-train]'" in err


def test_a_worker_of_ray_starts_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launches(2) and launches(1, on_ray=True) and not launches(None, on_ray=True)
    monkeypatch.setenv(PLACED, "1")
    assert not launches(2, on_ray=True) and not launches(1, on_ray=True)


def test_the_wish_to_stop_reaches_a_training_that_no_signal_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_asked_to_stop", type(ranks._asked_to_stop)())
    assert ranks.agree(False, 7) == (False, 7)
    ranks.ask_to_stop()
    assert ranks.agree(False, 7) == (True, 7)


def test_who_failed_is_told_from_who_noticed(capfd: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("Ray Train's words")
    noticed = End(0, 4, "Error: Another worker of this training stopped.")
    with pytest.raises(typer.Exit) as left:
        _judge(error, [noticed, End(1, 2, "Error: the disk is full; free some space.")], 2)
    assert left.value.exit_code == 2
    assert capfd.readouterr().err == "Worker 1 of 2:\nError: the disk is full; free some space.\n"
    with pytest.raises(typer.Exit):
        _judge(error, [End(1, 2, "Error: no such store."), End(0, 2, "Error: no such store.")], 2)
    assert capfd.readouterr().err == "Error: no such store.\n"
    error.worker_failures = {0: RuntimeError("noticed"), 1: RuntimeError("The actor died.\nMore")}
    with pytest.raises(WorkerDiedError, match=r"Worker 1 of 2 on Ray was lost \(The actor died\).*same command again"):
        _judge(error, [noticed], 2)
    with pytest.raises(WorkerDiedError, match="The workers on Ray were lost"):
        _judge(RuntimeError("no room"), [], 2)
    with pytest.raises(typer.Exit) as left:
        _judge(None, [End(1, 130, ""), End(0, 130, "")], 2)
    assert left.value.exit_code == 130
    _judge(None, [End(0, 0, ""), End(1, 0, "")], 2)


def test_the_first_worker_speaks_in_whole_lines() -> None:
    heard: list[tuple[bool, str]] = []
    line = SimpleNamespace(say=SimpleNamespace(remote=lambda error, text: heard.append((error, text))))
    for rank in range(2):
        voice = _Voice(line, rank, True)
        for part in ("one", "\ntwo\nth", "ree", "\n"):
            assert voice.write(part) == len(part)
    assert heard == [(True, "one\ntwo\n"), (True, "three\n")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("dots") / "dots.zarr")


def start(*given: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vjepa_mpc", *(str(one) for one in given)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str], words: str) -> None:
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0 and out.count(words) == 1, err


def children(pid: int, name: str) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(row.split()[0]) for row in listed.stdout.splitlines() if name in row]


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 180
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cut_short_on_ray_and_ended_without_it_a_run_is_the_same_to_the_bit(store: Path, tmp_path: Path) -> None:
    straight = ["pretrain", store, "--out", tmp_path / "straight", *ENCODER]
    broken = ["pretrain", store, "--out", tmp_path / "broken", *ENCODER]
    finished(start(*straight), "done after 120 steps")
    checkpoint = tmp_path / "broken" / "checkpoint.pt"

    lost = start(*broken, "--ray")
    until(checkpoint.is_file)
    (raylet,) = children(lost.pid, "raylet/raylet")
    workers = children(raylet, "TrainWorker")
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    said = lost.communicate(timeout=120)[1]
    assert lost.returncode == 1 and "of 2 on Ray was lost" in said and "Traceback" not in said
    assert "run the same command again" in said.splitlines()[-1]

    before = checkpoint.read_bytes()
    interrupted = start(*broken, "--ray")
    until(lambda: checkpoint.read_bytes() != before)
    os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does: to all that were started
    out, said = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 130 and "saved; run the same command to go on" in said and out == ""

    finished(start(*broken), "done after 120 steps")
    encoders = [tmp_path / run / "encoder" / "model.safetensors" for run in ("straight", "broken")]
    assert encoders[0].read_bytes() == encoders[1].read_bytes()
    rows = [(tmp_path / run / "log.jsonl").read_text() for run in ("straight", "broken")]
    assert rows[0] == rows[1]


@pytest.fixture
def cluster() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 * 2**20})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_trained_on_a_cluster_is_that_trained_without(cluster: str, store: Path, tmp_path: Path) -> None:
    finished(start("train", store, "--out", tmp_path / "here", *PREDICTOR), "done after 6 steps")
    there = start("train", store, "--out", tmp_path / "there", *PREDICTOR, "--json", "--ray-address", cluster)
    out, err = there.communicate(timeout=280)
    assert there.returncode == 0, err
    assert json.loads(out)["finished"] is True
    here, there_ = (json.loads((tmp_path / run / "settings.json").read_text()) for run in ("here", "there"))
    assert here["settings"] == there_["settings"]
    models = [tmp_path / run / "model" / "model.safetensors" for run in ("here", "there")]
    assert models[0].read_bytes() == models[1].read_bytes()

    refused = start("train", tmp_path / "no.zarr", "--out", tmp_path / "no", *PREDICTOR, "--ray-address", cluster)
    out, err = refused.communicate(timeout=280)
    assert refused.returncode == 2 and out == "" and err.splitlines()[-1].startswith("Error: ")
    assert "no.zarr does not exist" in err.splitlines()[-1]
    crowd = start("train", store, "--out", tmp_path / "no", *PREDICTOR, "--workers", "9", "--ray-address", cluster)
    out, err = crowd.communicate(timeout=280)
    assert crowd.returncode == 2 and "9 workers of 1 CPU need 9 CPUs" in err.splitlines()[-1]
