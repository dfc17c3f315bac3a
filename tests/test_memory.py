"""Candidates in chunks that fit: what is counted, what is refused, and the way on when memory runs out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from solvable_world import SpelledModel, picture, solvable_model
from tiny_world import save_tiny_model

from vjepa_mpc import controller
from vjepa_mpc.controller import fitting_chunk
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import GoalDistance, PlanningCost
from vjepa_mpc.landscape import Moment, study
from vjepa_mpc.memory import (
    CHUNK,
    candidate_bytes,
    chunk_within,
    free_bytes,
    parse_bytes,
    peak_bytes,
    with_smaller_chunks,
)
from vjepa_mpc.predictor import PredictorConfig
from vjepa_mpc.rollout import Context
from vjepa_mpc.world_model import WorldModel

FULL = PredictorConfig(
    grid_height=16, grid_width=16, latent_dim=1408, width=1024, depth=24, heads=16, max_frames=8
)
CPU = torch.device("cpu")


def test_amounts_of_memory() -> None:
    assert parse_bytes("24GB") == 24 * 10**9 and parse_bytes("1.5 GiB") == 3 * 2**29 and parse_bytes("700") == 700
    for wrong in ("", "much", "-1GB", "0", "24 XB", "1e9"):
        with pytest.raises(InputError, match="no amount of memory"):
            parse_bytes(wrong)
    assert peak_bytes(CPU) > 10**7


def put(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


MACHINE: dict[str, object] = {"proc/meminfo": "MemTotal:  90000 kB\nMemFree:  1000 kB\nMemAvailable:  80000 kB"}
VERSION_2: dict[str, object] = {"sys/fs/cgroup/memory.max": 50_000, "sys/fs/cgroup/memory.current": 49_000}
VERSION_1: dict[str, object] = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": 30_000,
    "sys/fs/cgroup/memory/memory.usage_in_bytes": 29_500,
}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 90000 kB"}, None),
        (MACHINE, 80_000 * 1024),
        (MACHINE | VERSION_2, 1_000),
        # A page cache fills every container that reads files, and is given up when memory is wanted.
        (MACHINE | VERSION_2 | {"sys/fs/cgroup/memory.stat": "anon 9000\nfile 40000\ninactive_file 39000"}, 40_000),
        (MACHINE | VERSION_2 | {"sys/fs/cgroup/memory.max": "max"}, 80_000 * 1024),
        (MACHINE | VERSION_2 | {"sys/fs/cgroup/memory.current": 60_000}, 0),
        (MACHINE | VERSION_1, 500),
        (
            MACHINE
            | VERSION_1
            | {"sys/fs/cgroup/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 20000"},
            20_500,
        ),
        (MACHINE | VERSION_1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": 2**63 - 4096}, 80_000 * 1024),
        (VERSION_2, 1_000),
    ],
    ids=["nothing", "old", "machine", "v2", "v2-cache", "v2-max", "v2-over", "v1", "v1-cache", "v1-none", "no-proc"],
)
def test_free_memory_is_what_machine_and_container_leave(
    tmp_path: Path, files: dict[str, object], free: int | None
) -> None:
    assert free_bytes(CPU, put(tmp_path, files)) == free


def test_the_full_model_is_planned_with_inside_24_gb() -> None:
    """800 candidates at H = 5 do not fit at once; the chunk that does leaves room for encoder and predictor."""
    each = candidate_bytes(FULL, 5, 5, torch.bfloat16)
    assert each > 5 * 25e6, "its keys and values alone are 25 MB a frame"
    weights = 4 * 1.01e9 + 2 * 0.305e9
    chunk = chunk_within(each, int(24e9 - weights))
    assert 32 <= chunk < 800 and chunk * each + weights < 24e9
    assert chunk_within(each, None) == CHUNK and chunk_within(each, 1) == 1


def test_memory_that_runs_out_is_answered_by_smaller_chunks() -> None:
    tried: list[int] = []

    def work(chunk: int) -> str:
        tried.append(chunk)
        if chunk > 30:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
        return "done"

    assert with_smaller_chunks(work, 200) == ("done", 25) and tried == [200, 100, 50, 25]

    def never(chunk: int) -> str:
        raise torch.OutOfMemoryError("no more")

    with pytest.raises(torch.OutOfMemoryError):
        with_smaller_chunks(never, 4)

    def other(chunk: int) -> str:
        tried.append(chunk)
        raise RuntimeError("shapes differ")

    tried.clear()
    with pytest.raises(RuntimeError, match="shapes differ"):
        with_smaller_chunks(other, 4)
    assert tried == [4]


def test_a_budget_makes_the_chunk_and_the_chunk_no_difference(tmp_path: Path) -> None:
    model = WorldModel.from_pretrained(save_tiny_model(tmp_path / "model"))
    each = candidate_bytes(model.config.predictor, 4, 3, torch.float32)
    assert fitting_chunk(model, 3, None) == CHUNK
    assert fitting_chunk(model, 3, 7 * each) == 7
    with pytest.raises(InputError, match="raise it, or shorten the horizon"):
        fitting_chunk(model, 3, each // 2)
    g = torch.Generator().manual_seed(0)
    context = Context(torch.randn(2, 2, 4, 48, generator=g), torch.zeros(2, 2, 2), torch.zeros(2, 1, 2))
    goal, actions = torch.randn(2, 4, 48, generator=g), 0.3 * torch.randn(2, 20, 3, 2, generator=g)
    with torch.no_grad():
        costs = [
            PlanningCost(model, context, [GoalDistance(goal)], chunk=chunk)(actions, torch.arange(2)).cost
            for chunk in (1, 7, 20, 256)
        ]
    for other in costs[:3]:
        torch.testing.assert_close(other, costs[3], rtol=0, atol=1e-6)


def test_the_chunk_that_worked_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins at what there is to judge, not at a chunk that no population fills, and the next call goes on."""
    model = WorldModel.from_pretrained(save_tiny_model(tmp_path / "model"))
    seen: list[int] = []
    rollout = WorldModel.rollout

    def scarce(self: WorldModel, context: Context, actions: torch.Tensor, *, chunk: int = CHUNK) -> object:
        seen.append(actions.shape[1])
        if actions.shape[1] > 5:
            raise MemoryError
        return rollout(self, context, actions, chunk=chunk)

    monkeypatch.setattr(WorldModel, "rollout", scarce)
    context = Context(torch.zeros(1, 2, 4, 48), torch.zeros(1, 2, 2), torch.zeros(1, 1, 2))
    cost = PlanningCost(model, context, [GoalDistance(torch.zeros(1, 4, 48))])
    with torch.no_grad():
        cost(torch.zeros(1, 3, 2, 2), torch.arange(1))
        assert seen == [3] and cost.chunk == CHUNK, "a small population makes later chunks small"
        seen.clear()
        cost(torch.zeros(1, 16, 2, 2), torch.arange(1))
        assert seen == [16, 8, 4, 4, 4, 4]
        seen.clear()
        cost(torch.zeros(1, 16, 2, 2), torch.arange(1))
        assert seen == [4, 4, 4, 4]


def test_a_landscape_is_judged_in_chunks_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, state = solvable_model(), np.array([0.2, 0.1])
    moment = Moment(picture(state), state, picture(state + 0.2))
    plenty = study(model, moment, points=3)
    seen: list[int] = []
    rollout = SpelledModel.rollout

    def watched(self: SpelledModel, context: Context, actions: torch.Tensor, *, chunk: int = CHUNK) -> object:
        seen.append(actions.shape[1])
        return rollout(self, context, actions, chunk=chunk)

    monkeypatch.setattr(SpelledModel, "rollout", watched)
    monkeypatch.setattr(controller, "free_bytes", lambda device: 0)
    np.testing.assert_array_equal(study(model, moment, points=3).energy, plenty.energy)
    assert set(seen) == {1}, "more futures than fit existed at a time"


def test_no_more_futures_than_a_chunk_exist_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = WorldModel.from_pretrained(save_tiny_model(tmp_path / "model"))
    seen: list[int] = []
    rollout = WorldModel.rollout

    def watched(self: WorldModel, context: Context, actions: torch.Tensor, *, chunk: int = CHUNK) -> object:
        seen.append(actions.shape[1])
        return rollout(self, context, actions, chunk=chunk)

    monkeypatch.setattr(WorldModel, "rollout", watched)
    context = Context(torch.zeros(1, 2, 4, 48), torch.zeros(1, 2, 2), torch.zeros(1, 1, 2))
    cost = PlanningCost(model, context, [GoalDistance(torch.zeros(1, 4, 48))], chunk=6)
    with torch.no_grad():
        cost(torch.zeros(1, 20, 2, 2), torch.arange(1))
    assert seen == [6, 6, 6, 2]
