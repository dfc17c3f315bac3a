"""Episodes decided together: each is what it is alone, and none takes the others with it."""

from __future__ import annotations

import json
import math
import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest
import solvable_world
import torch
from solvable_world import SpelledModel, SpelledRobot, settings, solvable_model

from vjepa_mpc.actor import Actor, ActorConfig
from vjepa_mpc.cli import main as cli
from vjepa_mpc.controller import Controller, ControllerState
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import ActionRate, GoalDistance, PlanningCost, StateBox
from vjepa_mpc.episodes import EpisodeResult
from vjepa_mpc.evaluation import ArenaSetup, FailedEpisode, Series, evaluate, evaluate_all
from vjepa_mpc.executor import LocalExecutor
from vjepa_mpc.governors import Guards
from vjepa_mpc.guardrails import PoseBox
from vjepa_mpc.lockstep import JoinedCost, decide_together, see_together
from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.planners.icem import ICEM, ICEMSettings
from vjepa_mpc.policies import PlannedPolicy, Policy, RandomPolicy
from vjepa_mpc.results import summarise
from vjepa_mpc.robots.base import Observation
from vjepa_mpc.robots.reacher import ReachTask
from vjepa_mpc.robots.task import SubGoal
from vjepa_mpc.robots.tasks import Manifest, Pair
from vjepa_mpc.rollout import Context
from vjepa_mpc.world_model import WorldModel

# Workers cannot import these modules: they travel by value, as a user's script does.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(solvable_world)

TASK = ReachTask(step_budget=6)
PAIRS = (
    Pair((0.0, 0.5), (0.9, 1.0)), Pair((2.0, -1.0), (2.9, -2.0), 7), Pair((-1.0, 0.3), (-0.4, 1.4)),
    Pair((1.0, 0.1), (0.2, -0.6)), Pair((-2.0, 1.0), (-2.5, 1.9)),
)  # fmt: skip
MANIFEST = Manifest("reach", 1, "reacher", "mine", 0, PAIRS)


class ViaHalf(ReachTask):
    """Shows the way's middle for the first two steps."""

    def sub_goals(self, start: Any, goal: Any) -> tuple[SubGoal, ...]:
        return SubGoal((start + goal) / 2, 2), SubGoal(goal, self.step_budget)


def planned(model: Any = solvable_model, guards: Guards | None = None) -> Policy:
    world = model(reached=0.02, history=2)
    planner = CEM(world.action_bounds, CEMSettings(samples=24, elites=4, iterations=3))
    return PlannedPolicy(world, planner, settings(horizon=2, hold_steps=2), guards=guards)


def setup(policy: Any = planned, robot: Any = SpelledRobot, task: ReachTask = TASK) -> ArenaSetup:
    return ArenaSetup(robot, policy, task, 3)


def same(found: list[EpisodeResult], wanted: list[EpisodeResult]) -> None:
    """The same episodes up to the last bits of what was computed at once."""
    assert [one.index for one in found] == [one.index for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert (one.hit, one.held, one.model_reached) == (other.hit, other.held, other.model_reached)
        assert one.evaluations == other.evaluations and one.start_distance == other.start_distance
        np.testing.assert_allclose(one.distances, other.distances, atol=1e-4)
        np.testing.assert_allclose(one.latent_costs, other.latent_costs, atol=1e-4)
        assert len(one.milliseconds) == len(other.milliseconds)


@pytest.fixture(scope="module")
def alone() -> list[EpisodeResult]:
    return evaluate(MANIFEST, setup(), LocalExecutor())


@pytest.mark.parametrize("batch", [2, 5, 64])
def test_episodes_are_what_they_are_alone(batch: int, alone: list[EpisodeResult]) -> None:
    together = evaluate(MANIFEST, setup(), LocalExecutor(), batch=batch)
    same(together, alone)
    sizes = [min(batch, 5 - first) for first in range(0, 5, batch) for _ in range(min(batch, 5 - first))]
    assert [one.together for one in together] == sizes and {one.together for one in alone} == {1}
    for first in range(0, 5, batch):  # everyone has waited for the whole decision
        assert len({one.milliseconds for one in together[first : first + batch]}) == 1


def test_the_share_of_a_decision_is_told_beside_what_it_took() -> None:
    def result(index: int, together: int) -> EpisodeResult:
        return EpisodeResult(index, 0.2, (0.1,), False, False, None, (), (12.0,), 4, together=together)

    told = summarise([result(0, 4), result(1, 4), result(2, 4), result(3, 4)])
    assert told["milliseconds_median"] == 12.0 and told["milliseconds_each_median"] == 3.0
    assert "milliseconds_each_median" not in summarise([result(0, 1)])


def test_sub_goals_and_films_are_each_ones_own(alone: list[EpisodeResult]) -> None:
    task = ViaHalf(step_budget=6)
    films: list[list[Any]] = [[], []]
    results = []
    for batch, seen in zip((1, 3), films, strict=True):
        series = Series(MANIFEST, setup(task=task), film=True, batch=batch)
        results.append(
            evaluate_all([series], LocalExecutor(), on_result=lambda _, __, film, seen=seen: seen.append(film))[0]
        )
    same(results[1], results[0])
    assert [one.distances for one in results[0]] != [one.distances for one in alone]
    assert all(film.shape[0] == 8 for film in films[1])  # goal, start and six views
    for mine, theirs in zip(films[1], films[0], strict=True):
        np.testing.assert_array_equal(mine[:2], theirs[:2])


def test_what_is_missing_is_grouped_anew(tmp_path: Path, alone: list[EpisodeResult]) -> None:
    log = tmp_path / "episodes.jsonl"
    evaluate(MANIFEST, setup(), LocalExecutor(), pairs=1, log=log)
    series = Series(MANIFEST, setup(), log=log, batch=2)
    assert [[index for index, _ in group.pairs] for group in series.groups(0, {0})] == [[1, 2], [3, 4]]
    both = evaluate(MANIFEST, setup(), LocalExecutor(), log=log, batch=2)
    same(both, alone)
    assert [one.together for one in both] == [1, 2, 2, 2, 2]
    assert [json.loads(line)["index"] for line in log.read_text().splitlines()] == [0, 1, 2, 3, 4]


class Poisoned(SpelledRobot):
    """Breaks at its third action of the second pair: as often as there are no files in `folder`, or always."""

    def __init__(self, folder: Path, times: int) -> None:
        super().__init__()
        self.folder, self.times, self.poisoned, self.steps = folder, times, False, 0

    def set_appearance(self, seed: int | None, level: float = 1.0) -> None:
        self.poisoned, self.steps = seed == 7, 0

    def apply(self, action: np.ndarray) -> np.ndarray:
        self.steps += 1
        tried = len(list(self.folder.iterdir()))
        if self.poisoned and self.steps == 3 and tried < self.times:
            (self.folder / str(tried)).touch()
            self.broken()
        return super().apply(action)

    def broken(self) -> None:
        raise RuntimeError("the arm came off")


class Deadly(Poisoned):
    def broken(self) -> None:
        os._exit(9)


def test_an_episode_that_breaks_is_tried_again_alone_and_the_others_go_on(
    tmp_path: Path, alone: list[EpisodeResult]
) -> None:
    arena = setup(robot=partial(Poisoned, tmp_path, 1))
    results = evaluate(MANIFEST, arena, LocalExecutor(), batch=5)
    same(results, alone)
    assert [one.together for one in results] == [5, 1, 5, 5, 5]


def test_an_episode_that_always_breaks_is_named_and_ends_a_run_without_tries(
    tmp_path: Path, alone: list[EpisodeResult]
) -> None:
    arena = setup(robot=partial(Poisoned, tmp_path, 99))
    failed: list[FailedEpisode] = []
    (results,) = evaluate_all([Series(MANIFEST, arena, batch=5)], LocalExecutor(), tries=2, failed=failed)
    same(results, [alone[index] for index in (0, 2, 3, 4)])
    assert failed == [FailedEpisode(0, 1, "RuntimeError: the arm came off", 2)]
    log = tmp_path.parent / "kept.jsonl"
    with pytest.raises(RuntimeError, match="came off"):
        evaluate(MANIFEST, arena, LocalExecutor(), batch=5, log=log)
    assert sorted(json.loads(line)["index"] for line in log.read_text().splitlines()) == [0, 2, 3, 4]


class Astray(ReachTask):
    """Judges the second pair by a number that is none, from its third step on."""

    def distance(self, state: Any, goal: Any) -> float:
        far = super().distance(state, goal)
        return math.nan if np.allclose(goal, PAIRS[1].goal) and far < 0.1 else far


def test_an_episode_that_cannot_be_judged_takes_no_other_along(alone: list[EpisodeResult]) -> None:
    failed: list[FailedEpisode] = []
    some = [Series(MANIFEST, setup(task=Astray(step_budget=6)), batch=5)]
    (results,) = evaluate_all(some, LocalExecutor(), tries=1, failed=failed)
    same(results, [alone[index] for index in (0, 2, 3, 4)])
    assert [one.index for one in failed] == [1] and "nan m from the goal" in failed[0].reason


class Blind(SpelledModel):
    """Sees nothing at all in one place, and so cannot plan there."""

    def pooled(self, images: Any) -> torch.Tensor:
        seen = super().pooled(images)
        return torch.where((seen < -1.9).any(dim=-1, keepdim=True), torch.nan, seen)


def blind() -> Policy:
    policy: Any = planned()
    policy.model.__class__ = Blind
    return policy


def test_one_that_cannot_be_planned_for_leaves_and_the_others_are_what_they_are_alone(
    alone: list[EpisodeResult],
) -> None:
    failed: list[FailedEpisode] = []
    (results,) = evaluate_all([Series(MANIFEST, setup(blind), batch=5)], LocalExecutor(), tries=1, failed=failed)
    same(results, [alone[index] for index in (0, 2, 3)])
    assert [one.index for one in failed] == [1, 4] and all("NotFiniteError" in one.reason for one in failed)


def test_physics_in_other_processes_is_the_same_and_one_that_dies_takes_its_own_with_it(
    tmp_path: Path, alone: list[EpisodeResult]
) -> None:
    arena = setup(robot=partial(Deadly, tmp_path, 1))
    results = evaluate(MANIFEST, arena, LocalExecutor(), batch=5, physics=2)
    same(results, alone)
    assert [one.together for one in results] == [5, 1, 5, 1, 5]  # 1 and 3 lived in the process that died


def test_only_planners_that_wait_are_decided_together() -> None:
    with pytest.raises(InputError, match="random cannot be decided together"):
        evaluate(MANIFEST, setup(partial(RandomPolicy, TASK.spec)), LocalExecutor(), batch=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_series_in_batches_and_one_at_a_time_share_workers(workers: int, alone: list[EpisodeResult]) -> None:
    floor = setup(partial(RandomPolicy, TASK.spec))
    some = [Series(MANIFEST, setup(), batch=3), Series(MANIFEST, floor), Series(MANIFEST, setup(), pairs=2, batch=2)]
    found = evaluate_all(some, LocalExecutor(workers))
    same(found[0], alone)
    same(found[2], alone[:2])
    assert [one.together for one in found[1]] == [1] * 5


def controllers(
    model: WorldModel, planner: Any, guards: Guards | None, pictures: list[np.ndarray], propose: int
) -> list[Controller]:
    return [
        Controller(
            model, planner, goal, settings(horizon=2, chunk=20, action_rate=0.1, propose=propose),
            torch.Generator().manual_seed(seed), guards,
        )
        for seed, goal in enumerate(pictures)
    ]  # fmt: skip


@pytest.mark.parametrize("rail", [None, PoseBox((-1.0, -1.0), (0.1, 0.05))], ids=["plain", "guarded"])
@pytest.mark.parametrize("kind", ["cem", "icem", "cem of an actor", "icem of an actor"])
def test_a_real_model_decides_the_same_together_and_alone(kind: str, rail: Any, tiny_model: Path) -> None:
    """Three steps with history, warm starts, suggestions, those of an actor too, and guardrails: actions agree to what
    float32 allows."""
    model = WorldModel.from_pretrained(tiny_model)
    propose = 6 if "actor" in kind else 0
    if propose:
        latent = model.config.latent
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.get_actor(Actor(ActorConfig(latent.positions, latent.dim, 25, 8, 16, actions=2)))
    planner: Any = CEM(model.action_bounds, CEMSettings(samples=12, elites=4, iterations=2))
    if kind.startswith("icem"):
        planner = ICEM(model.action_bounds, ICEMSettings(samples=12, elites=4, iterations=2))
    rng = np.random.default_rng(0)
    goals = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
    guards = None if rail is None else Guards(rails=(rail,))
    one, many = (controllers(model, planner, guards, goals, propose) for _ in range(2))
    apart, joint = ([ControllerState()] * 3 for _ in range(2))
    poses = rng.uniform(-0.1, 0.0, (3, 2)).astype(np.float32)
    for _ in range(3):
        seen = [
            Observation({"top": rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)}, pose, 0.0) for pose in poses
        ]
        single = [loop.step(*pair) for loop, pair in zip(one, zip(seen, apart, strict=True), strict=True)]
        views = see_together(many, seen, joint)
        batch = decide_together(many, [view for view, _ in views], [state for _, state in views])
        for (mine, _), (theirs, _) in zip(batch, single, strict=True):
            np.testing.assert_allclose(mine.action, theirs.action, atol=1e-5)
            assert mine.terms == pytest.approx(theirs.terms, abs=1e-5)
            assert mine.held_by == theirs.held_by and mine.plan.evaluations == theirs.plan.evaluations
            assert mine.plan.actions.shape == (1, 2, 2) and len(mine.plan.iterations[0].best) == 1
        apart = [loop.applied(done.action, state) for loop, (done, state) in zip(one, single, strict=True)]
        joint = [loop.applied(done.action, state) for loop, (done, state) in zip(many, batch, strict=True)]
        poses = poses + np.stack([done.action for done, _ in single]).astype(np.float32)


def costs(model: WorldModel, **changes: Any) -> list[PlanningCost]:
    rng = torch.Generator().manual_seed(5)
    found = []
    for _ in range(3):
        states = torch.rand(1, 1, 2, generator=rng)
        context = Context(states[:, :, None], states, torch.zeros(1, 0, 2))
        goal = GoalDistance(torch.rand(1, 1, 2, generator=rng), 0.3)
        terms = [goal, ActionRate(model.action_bounds.high, 0.2)]
        found.append(PlanningCost(model, context, terms, [StateBox(model.states)], **{"chunk": 7, **changes}))
    return found


@pytest.mark.parametrize("chunk", [1, 4, 7, 12, 100])
def test_a_joined_cost_says_of_each_problem_what_its_own_says(chunk: int) -> None:
    apart = costs(solvable_model())
    joined = JoinedCost(costs(apart[0].model, chunk=chunk))
    actions = 6 * torch.rand(3, 5, 2, 2, generator=torch.Generator().manual_seed(1)) - 3
    own = torch.zeros(1, dtype=torch.long)
    for rows in ([0, 1, 2], [2, 0], [1]):
        found = joined(actions[rows], torch.tensor(rows))
        for place, row in enumerate(rows):
            wanted = apart[row](actions[row : row + 1], own)
            torch.testing.assert_close(found.cost[place], wanted.cost[0])
            torch.testing.assert_close(found.violation[place], wanted.violation[0])
        assert found.names == ("state_box",) and bool((found.violation > 0).any())
    for row, terms in enumerate(joined.by_problem(actions[:, 0])):
        torch.testing.assert_close(terms, apart[row].by_term(actions[row : row + 1, :1], own))


def test_memory_that_runs_out_means_fewer_at_a_time() -> None:
    class Small(SpelledModel):
        def rollout(self, context: Context, actions: torch.Tensor, *, chunk: int = 256) -> Any:
            if actions.shape[0] * actions.shape[1] > 6:
                raise MemoryError
            return super().rollout(context, actions, chunk=chunk)

    model = solvable_model()
    wanted = JoinedCost(costs(model, chunk=100))(torch.ones(3, 5, 2, 2), torch.arange(3))
    model.__class__ = Small
    joined = JoinedCost(costs(model, chunk=100))
    found = joined(torch.ones(3, 5, 2, 2), torch.arange(3))
    torch.testing.assert_close(found.cost, wanted.cost)
    assert joined.chunk == 7  # 15, then half: one problem's five at a time


def test_a_joined_cost_has_a_gradient() -> None:
    actions = torch.full((3, 2, 2, 2), 0.4, requires_grad=True)
    joined = JoinedCost(costs(solvable_model()))(actions, torch.arange(3))
    (slope,) = torch.autograd.grad(joined.cost.sum(), actions)
    assert bool((slope != 0).any(dim=-1).all())


def test_what_cannot_be_joined_is_refused() -> None:
    model = solvable_model()
    one, other = costs(model)[0], costs(model, chunk=8)[0]
    with pytest.raises(InputError, match="one chunk"):
        JoinedCost([one, other])
    other = costs(model)[1]
    other.constraints = ()
    with pytest.raises(InputError, match="same names"):
        JoinedCost([one, other])


BAD = {
    "physics without a batch": (["--physics-workers", "2"], "add --batch"),
    "physics beside workers": (["--physics-workers", "2", "--batch", "2", "--workers", "2"], "leave out --workers"),
    "too much physics": (["--physics-workers", "10000", "--batch", "2"], "10000 workers are more than"),
}


@pytest.mark.parametrize("command", ["evaluate", "bench"])
@pytest.mark.parametrize("kind", BAD)
def test_options_that_do_not_go_together_are_one_sentence(
    kind: str, command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, words = BAD[kind]
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--out", str(tmp_path / "out"), *arguments])
    err = capfd.readouterr().err
    assert left.value.code == 2 and words in err.splitlines()[-1] and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_batch_is_part_of_what_a_run_is(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = [
        "evaluate", "--model", str(tiny_model), "--pairs", "2", "--samples", "2", "--elites", "1", "--iterations", "1",
        "--no-floors", "--backend", "rays", "--out", str(tmp_path), "--json",
    ]  # fmt: skip

    def run(*more: str) -> tuple[Any, str, str]:
        try:
            cli.main([*line, *more])
        except SystemExit as left:
            return left.code, *capfd.readouterr()
        return 0, *capfd.readouterr()

    code, out, err = run("--batch", "2")
    assert code in (0, None), err
    (row,) = json.loads(out)["results"].values()
    assert row["batch"] == 2 and row["milliseconds_each_median"] == pytest.approx(row["milliseconds_median"] / 2)
    (log,) = tmp_path.glob("episodes-*.jsonl")
    assert [json.loads(text)["together"] for text in log.read_text().splitlines()] == [2, 2]
    code, _, err = run("--batch", "3")
    assert code == 2 and "batch" in err.splitlines()[-1]
    code, _, err = run("--batch", "2", "--rate", "5")
    assert code == 2 and "wait for each other" in err


@pytest.mark.parametrize("kept", [True, False])
def test_ctrl_c_says_what_is_kept_and_a_pipe_gets_lines(
    kept: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, on_result: Any, **__: Any) -> None:
        on_result(SimpleNamespace(held=True))
        raise KeyboardInterrupt

    monkeypatch.setattr("vjepa_mpc.evaluation.evaluate", interrupted)
    line = ["evaluate", "--model", str(tiny_model), "--pairs", "4", "--no-floors", "--backend", "rays"]
    with pytest.raises(SystemExit) as left:
        cli.main([*line, *(["--out", str(tmp_path)] if kept else [])])
    *_, told, last = capfd.readouterr().err.splitlines()
    assert left.value.code == 130 and told == f"{tiny_model}: 1/4 episodes, held 1"
    assert last.startswith("Interrupted: ") and (f"kept in {tmp_path}; the same" in last) == kept
