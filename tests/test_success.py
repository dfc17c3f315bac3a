"""Closed-loop success: the interval, the log, the floors, and equal results wherever it is played.

(`planners/test_evaluation.py` has the name that would fit: test modules must differ in theirs.)
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import solvable_world
import torch
from solvable_world import SpelledRobot, settings, solvable_model

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.evaluation import Arena, ArenaSetup, EpisodeResult, evaluate, run_pair
from vjepa_mpc.executor import Executor, LocalExecutor, RayExecutor
from vjepa_mpc.intervals import wilson_interval
from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.policies import NoOpPolicy, PlannedPolicy, Policy, RandomPolicy, ScriptedPolicy
from vjepa_mpc.results import summarise
from vjepa_mpc.robots.base import SimulatedRobot
from vjepa_mpc.robots.reacher import ReachTask
from vjepa_mpc.robots.tasks import Manifest, Pair

# Workers cannot import these modules: they travel by value, as a user's script does.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(solvable_world)

TASK = ReachTask(step_budget=8)
MANIFEST = Manifest(
    "reach", 1, "reacher", "mine", 0,
    (Pair((0.0, 0.5), (0.9, 1.0)), Pair((2.0, -1.0), (2.9, -2.0), 7), Pair((-1.0, 0.3), (-0.4, 1.4))),
)  # fmt: skip


def planned() -> Policy:
    model = solvable_model(reached=0.02, history=2)
    planner = CEM(model.action_bounds, CEMSettings(samples=24, elites=4, iterations=3))
    return PlannedPolicy(model, planner, settings(horizon=2, hold_steps=2))


def setup(policy: Any, seed: int = 3) -> ArenaSetup:
    return ArenaSetup(SpelledRobot, policy, TASK, seed)


def without_times(results: list[EpisodeResult]) -> list[EpisodeResult]:
    return [dataclasses.replace(result, milliseconds=()) for result in results]


# R: Hmisc::binconf(k, n, method = "wilson"); Newcombe 1998, table I: 81 of 263.
@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
     (5, 5, 0.5655, 1.0)],
)  # fmt: skip
def test_the_interval_is_wilsons(k: int, n: int, low: float, high: float) -> None:
    found = wilson_interval(k, n)
    assert found == pytest.approx((low, high), abs=6e-5)
    for bound in found:  # the definition: the bounds are the rates whose score statistic is z
        if 0 < bound < 1:
            assert abs(k / n - bound) / math.sqrt(bound * (1 - bound) / n) == pytest.approx(1.959964, abs=1e-5)


def test_no_episodes_no_interval() -> None:
    with pytest.raises(InputError, match="at least one episode"):
        wilson_interval(0, 0)


def test_floors_stay_and_ceilings_hold() -> None:
    still = evaluate(MANIFEST, setup(partial(NoOpPolicy, TASK.spec)), LocalExecutor())
    for result in still:
        assert set(result.distances) == {result.start_distance} and not result.hit and not result.held
        assert len(result.distances) == TASK.step_budget and result.model_reached is None
    best = evaluate(MANIFEST, setup(partial(ScriptedPolicy, TASK)), LocalExecutor())
    assert all(result.held and result.hit and result.distances[-1] < 1e-3 for result in best)
    lucky = evaluate(MANIFEST, setup(partial(RandomPolicy, TASK.spec)), LocalExecutor())
    assert all(len(set(result.distances)) == TASK.step_budget for result in lucky)


def test_floors_and_ceiling_on_the_simulated_arm() -> None:
    from vjepa_mpc.robots.factory import make_robot

    robot: Any = partial(make_robot, "reacher", backend="rays", camera_size=16)
    manifest = dataclasses.replace(MANIFEST, pairs=MANIFEST.pairs[:2])
    (still, _) = evaluate(manifest, ArenaSetup(robot, partial(NoOpPolicy, TASK.spec), TASK, 0), LocalExecutor())
    assert max(abs(distance - still.start_distance) for distance in still.distances) < 1e-3 and not still.hit
    best = evaluate(manifest, ArenaSetup(robot, partial(ScriptedPolicy, TASK), TASK, 0), LocalExecutor())
    assert all(result.held for result in best)


def test_random_actions_fill_the_robots_limits() -> None:
    policy = RandomPolicy(TASK.spec)
    policy.begin(np.zeros((1, 1, 3), np.uint8), np.zeros(2), 0)
    actions = np.array([policy.act(SpelledRobot().observe()) for _ in range(400)])
    assert np.abs(actions).max() <= 0.3 and np.abs(actions).max() > 0.29
    assert abs(actions.mean()) < 0.02


def test_a_world_model_that_is_right_holds_and_knows_it() -> None:
    results = evaluate(MANIFEST, setup(planned), LocalExecutor())
    assert [result.index for result in results] == [0, 1, 2]
    for result in results:
        assert result.held and result.model_reached is not None and result.model_reached >= 1
        assert min(result.latent_costs) < 0.02 < result.latent_costs[0]
        assert result.evaluations >= 8 * 3 * 24
        assert len(result.distances) == TASK.step_budget  # truth never stops an episode


def test_each_pair_is_seen_in_its_own_look_and_ends_stopped() -> None:
    arena = Arena(SpelledRobot(), TASK, NoOpPolicy(TASK.spec), 0)
    for item in enumerate(MANIFEST.pairs):
        run_pair(arena, item)
    calls = [call for call in arena.robot.calls if call != "apply"]  # type: ignore[attr-defined]
    assert calls == ["appearance None", "stop", "appearance 7", "stop", "appearance None", "stop"]
    assert isinstance(arena.robot, SimulatedRobot)


EXECUTORS: list[Any] = [
    pytest.param(LocalExecutor(1), id="here"),
    pytest.param(LocalExecutor(2), id="processes"),
    pytest.param(RayExecutor(2), id="ray", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def wanted() -> list[EpisodeResult]:
    """One pair at a time, each in an arena of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = [run_pair(setup(planned)(), item) for item in enumerate(MANIFEST.pairs)]
    torch.set_num_threads(threads)
    return without_times(results)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_results_are_the_same_to_the_bit_wherever_they_are_played(
    executor: Executor, wanted: list[EpisodeResult]
) -> None:
    assert without_times(evaluate(MANIFEST, setup(planned), executor)) == wanted


def test_another_seed_plans_otherwise(wanted: list[EpisodeResult]) -> None:
    assert without_times(evaluate(MANIFEST, setup(planned, seed=4), LocalExecutor())) != wanted


def test_a_resumed_run_plays_only_what_is_missing(tmp_path: Path, wanted: list[EpisodeResult]) -> None:
    log, played = tmp_path / "episodes.jsonl", []
    first = evaluate(MANIFEST, setup(planned), LocalExecutor(), pairs=2, log=log)
    assert [json.loads(line)["index"] for line in log.read_text().splitlines()] == [0, 1]
    both = evaluate(MANIFEST, setup(planned), LocalExecutor(), log=log, on_result=lambda one: played.append(one.index))
    assert both[:2] == first and played == [2]  # to the millisecond: read, not played
    assert without_times(both) == wanted

    def fail() -> Policy:
        raise AssertionError("nothing is left to play")

    assert evaluate(MANIFEST, setup(fail), LocalExecutor(), log=log) == both
    assert evaluate(MANIFEST, setup(fail), LocalExecutor(), pairs=1, log=log) == both[:1]


@pytest.mark.parametrize("cut", [1, 30, -1])
def test_a_line_that_a_crash_cut_short_is_played_again_once(tmp_path: Path, cut: int) -> None:
    log = tmp_path / "episodes.jsonl"
    policy = partial(NoOpPolicy, TASK.spec)
    whole = evaluate(MANIFEST, setup(policy), LocalExecutor(), log=log)
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0] + lines[1][:cut])
    for _ in range(2):  # the second time nothing must be left to play
        played: list[int] = []
        again = evaluate(
            MANIFEST, setup(policy), LocalExecutor(), log=log, on_result=lambda one, seen=played: seen.append(one.index)
        )  # fmt: skip
        assert without_times(again) == without_times(whole)
        assert len(log.read_text().splitlines()) == 3
    assert played == []


def test_the_summary_by_hand() -> None:
    def result(index: int, held: bool, reached: int | None, end: float) -> EpisodeResult:
        return EpisodeResult(index, 0.2, (0.1, end), held, held, reached, (), (1.0, float(index)), 10)

    summary = summarise([result(0, True, 1, 0.01), result(1, False, 0, 0.3), result(2, False, None, 0.2)])
    assert summary["episodes"] == 3
    low, high = wilson_interval(1, 3)
    assert summary["held"] == {"count": 1, "rate": 1 / 3, "wilson_low": low, "wilson_high": high}
    assert summary["final_distance_median_m"] == 0.2 and summary["milliseconds_median"] == 1.0
    assert summary["evaluations_per_step"] == 5.0
    assert summary["model_says_reached"] == {"count": 2, "of_which_held": 1}
