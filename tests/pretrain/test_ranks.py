"""Two processes that train as one: the same statistics, gradients and results as one process, and exact resume."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_cases
import torch
from moving_dot import make_store, training
from rank_cases import OBJECTIVES, STATISTICS, STEPS
from safetensors.torch import load_file

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.pretrain import ranks

pytestmark = pytest.mark.timeout(900)  # four processes have to start; on a busy machine that takes a while
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def two_processes(script: str, *arguments: object) -> list[subprocess.CompletedProcess[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(2):
        variables = {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank),
            "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        command = [sys.executable, str(HERE / script), *(str(argument) for argument in arguments)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, **pipes))
    try:
        said = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *text)
        for process, text in zip(started, said, strict=True)
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("dots") / "dots.zarr")


@pytest.fixture(scope="module")
def killed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose run `killed` lost a rank on the way."""
    out = tmp_path_factory.mktemp("ranks")
    left, dead = two_processes("killed_rank.py", store, out / "killed")
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert left.returncode == 1, left.stderr
    assert left.stderr.splitlines()[-1].startswith("Error: Another worker of this training stopped"), left.stderr
    assert torch.load(out / "killed" / "checkpoint.pt", weights_only=True)["step"] == 2
    return out


@pytest.fixture(scope="module")
def two(store: Path, killed: Path) -> Path:
    """What two ranks found, and made of the run that was killed."""
    for process in two_processes("rank_cases.py", store, killed):
        assert process.returncode == 0, process.stderr
    return killed


@pytest.fixture(scope="module")
def found(two: Path) -> dict[str, Any]:
    answer: dict[str, Any] = torch.load(two / "found.pt", weights_only=True)
    return answer


@pytest.fixture(scope="module")
def one(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same trainings by this process alone."""
    threads, out = torch.get_num_threads(), tmp_path_factory.mktemp("one")
    torch.set_num_threads(1)
    rank_cases.trainings(store, out)
    torch.set_num_threads(threads)
    return out


def test_statistics_of_a_batch_are_those_of_the_whole_batch(found: dict[str, Any]) -> None:
    """SIGReg's above all, and their gradients."""
    expected = rank_cases.statistics()
    for name in STATISTICS:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6, msg=lambda text, n=name: n + text)
        assert float(expected[name][1].abs().max()) > 1e-4
    torch.testing.assert_close(found["health"], expected["health"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found["rank"], expected["rank"], rtol=1e-6, atol=0)


def test_every_objective_has_the_gradient_of_the_whole_batch(store: Path, found: dict[str, Any]) -> None:
    expected = rank_cases.first_gradients(store)
    assert len(expected) == 2 * len(OBJECTIVES)
    for name, (numbers, gradients) in expected.items():
        torch.testing.assert_close(found[name][0], numbers, rtol=2e-5, atol=1e-6, msg=lambda text, n=name: n + text)
        assert found[name][1].keys() == gradients.keys()
        scale = max(float(gradient.abs().max()) for gradient in gradients.values())
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(found[name][1][parameter], gradient, rtol=1e-3, atol=2e-6 * scale)


def tensors_in(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for part in parts for tensor in tensors_in(part)]


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("run", "result"), [("vjepa", "encoder"), ("model", "model")])
def test_whole_runs_agree_to_tolerance(one: Path, two: Path, run: str, result: str) -> None:
    alone, shared = rows(one / run), rows(two / run)
    assert len(alone) == len(shared) == STEPS
    for left, right in zip(alone, shared, strict=True):
        assert left == pytest.approx(right, rel=2e-3)
    left, right = (load_file(folder / run / result / "model.safetensors") for folder in (one, two))
    apart = torch.cat([(left[name] - right[name]).float().flatten() for name in left])
    assert float(apart.square().mean().sqrt()) < 2e-4  # a step is 1e-3: Adam enlarges what is only rounding


def test_a_run_that_lost_a_rank_goes_on_to_the_same_bits(two: Path) -> None:
    assert rows(two / "killed") == rows(two / "vjepa")
    encoders = [two / run / "encoder" / "model.safetensors" for run in ("vjepa", "killed")]
    assert encoders[0].read_bytes() == encoders[1].read_bytes()
    saved = [torch.load(two / run / "checkpoint.pt", weights_only=True) for run in ("vjepa", "killed")]
    for parts in ("modules", "optimisers"):
        straight, resumed = (tensors_in(state[parts]) for state in saved)
        assert len(straight) == len(resumed) > 0
        assert all(torch.equal(left, right) for left, right in zip(straight, resumed, strict=True))


def test_the_first_rank_alone_writes(two: Path) -> None:
    for folder in ("vjepa", "killed"):
        curves = list((two / folder / "tensorboard").iterdir())
        assert len(curves) == (1 if folder == "vjepa" else 2)  # one each time it ran
        assert [row["step"] for row in rows(two / folder)] == list(range(STEPS))


def test_one_process_is_one_rank(store: Path, tmp_path: Path) -> None:
    values = torch.arange(3.0)
    assert ranks.average(values) is values and ranks.share(5) == slice(0, 5) and ranks.first()
    assert ranks.agree(True, None) == (True, None) and ranks.agree(False, 7) == (False, 7) and ranks.same(3)
    with ranks.joined(torch.device("cpu")), ranks.first_before_the_others():
        assert ranks.count() == 1


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 4)
    with pytest.raises(InputError, match="6 cannot be shared evenly by 4 workers"):
        ranks.share(training().batch)
