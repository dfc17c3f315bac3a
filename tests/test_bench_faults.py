"""Workers that are really killed, and episodes that cannot be played: the others' results are all there, once."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import solvable_world
from solvable_world import SpelledRobot

from vjepa_mpc.benchmark import Cell, failures, play, rows
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.evaluation import ArenaSetup, EpisodeResult
from vjepa_mpc.executor import Executor, LocalExecutor, RayExecutor
from vjepa_mpc.policies import RandomPolicy
from vjepa_mpc.robots.reacher import ReachTask
from vjepa_mpc.robots.tasks import Manifest, Pair

# Workers cannot import these modules: they travel by value, as a user's script does.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(solvable_world)

TASK = ReachTask(step_budget=4)
PAIRS = 8
MANIFEST = Manifest(
    "reach", 1, "reacher", "mine", 0, tuple(Pair((0.0, 0.5), (0.6 + 0.2 * index, 1.0)) for index in range(PAIRS))
)
POISONED = 3


class Poisoned(RandomPolicy):
    """Cannot begin one of the pairs: raises, or kills its process. With a marker it does so the first time only."""

    def __init__(self, how: str = "", marker: Path | None = None) -> None:
        super().__init__(TASK.spec)
        self.how, self.marker = how, marker

    def begin(self, goal: np.ndarray, goal_state: np.ndarray, seed: int) -> None:
        super().begin(goal, goal_state, seed)
        if not self.how or tuple(goal_state) != MANIFEST.pairs[POISONED].goal:
            return
        if self.marker is not None:
            if self.marker.exists():
                return
            self.marker.touch()
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "input":
            raise InputError("the goal is no goal; choose another.")
        raise ZeroDivisionError("a poisoned pair")


def cells(how: str, marker: Path | None = None) -> list[Cell]:
    """One policy that is poisoned, and one after it that is not."""
    setups = [ArenaSetup(SpelledRobot, partial(Poisoned, *given), TASK, 0) for given in ((how, marker), ())]
    return [Cell("reacher", name, "floor", setup, MANIFEST, PAIRS) for name, setup in zip("ab", setups, strict=True)]


def outcome(some: list[Cell], folder: Path) -> dict[tuple[str, int], EpisodeResult]:
    """Every episode that is in the files, by policy and pair; each is there once."""
    found = {}
    for cell in some:
        lines = (folder / "episodes" / f"{cell.key}.jsonl").read_text().splitlines()
        indices = [json.loads(line)["index"] for line in lines]
        assert len(indices) == len(set(indices)), "an episode was counted twice"
        for one in cell.finished(folder):
            found[cell.policy, one.index] = dataclasses.replace(one, milliseconds=())
    return found


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], EpisodeResult]:
    """What comes out when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("clean")
    assert play(cells(""), LocalExecutor(), folder) == []
    found = outcome(cells(""), folder)
    assert len(found) == 2 * PAIRS
    return found


WORKERS = [
    pytest.param(LocalExecutor(2), id="processes"),
    pytest.param(RayExecutor(2), id="ray", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("executor", [pytest.param(LocalExecutor(1), id="here"), *WORKERS])
def test_a_poisoned_episode_is_named_and_ends_no_other(
    executor: Executor, clean: dict[tuple[str, int], EpisodeResult], tmp_path: Path
) -> None:
    some = cells("raise")
    failed = play(some, executor, tmp_path, tries=2)
    (named,) = failures(some, failed)
    assert (named["policy"], named["pair"], named["tries"]) == ("a", POISONED, 2)
    assert named["reason"] == "ZeroDivisionError: a poisoned pair"
    assert outcome(some, tmp_path) == {key: one for key, one in clean.items() if key != ("a", POISONED)}
    assert [row["episodes"] for row in rows(some, tmp_path)] == [PAIRS - 1, PAIRS]
    assert len(play(some, LocalExecutor(), tmp_path, tries=1)) == 1  # tried again, and it alone


@pytest.mark.parametrize("executor", WORKERS)
def test_an_episode_that_kills_its_worker_is_named_and_ends_no_other(
    executor: Executor, clean: dict[tuple[str, int], EpisodeResult], tmp_path: Path
) -> None:
    some = cells("kill")
    (failed,) = play(some, executor, tmp_path, tries=2)
    assert (failed.series, failed.index, failed.tries) == (0, POISONED, 2) and "worker died" in failed.reason
    assert outcome(some, tmp_path) == {key: one for key, one in clean.items() if key != ("a", POISONED)}


@pytest.mark.slow
@pytest.mark.parametrize("executor", WORKERS)
def test_a_worker_killed_once_costs_nothing(
    executor: Executor, clean: dict[tuple[str, int], EpisodeResult], tmp_path: Path
) -> None:
    some = cells("kill", tmp_path / "killed")
    assert play(some, executor, tmp_path) == [] and (tmp_path / "killed").exists()
    assert outcome(some, tmp_path) == clean


def test_workers_killed_from_outside_cost_nothing(
    clean: dict[tuple[str, int], EpisodeResult], tmp_path: Path
) -> None:
    some, killed = cells(""), []

    def kill(number: int, one: EpisodeResult) -> None:
        if one.index in (2, 5):
            victim = multiprocessing.active_children()[len(killed) % 2]
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(victim.pid)

    assert play(some, LocalExecutor(2), tmp_path, kill, tries=5) == []
    assert len(killed) == 4 and outcome(some, tmp_path) == clean


@pytest.mark.parametrize(
    "executor",
    [pytest.param(LocalExecutor(1), id="here"), pytest.param(LocalExecutor(2), id="processes", marks=pytest.mark.slow)],
)
def test_the_callers_mistake_ends_the_run(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose another"):
        play(cells("input"), executor, tmp_path)


@pytest.mark.slow
def test_a_machine_lost_costs_nothing(clean: dict[tuple[str, int], EpisodeResult], tmp_path: Path) -> None:
    """Two machines of one core: the second goes away in the middle, its worker finds no other place."""
    import ray
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    lost: list[int] = []

    def lose(number: int, one: EpisodeResult) -> None:
        if not lost:
            lost.append(one.index)
            cluster.remove_node(second, allow_graceful=False)

    try:
        some = cells("")
        assert play(some, RayExecutor(2, cluster.address), tmp_path, lose, tries=3) == []
        assert outcome(some, tmp_path) == clean
    finally:
        ray.shutdown()
        cluster.shutdown()
