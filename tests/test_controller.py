"""The closed loop in a world that can be solved exactly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from solvable_world import SpelledRobot, picture, settings, solvable_model

from vjepa_mpc.controller import Controller, ControllerState, ControlSettings
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.loop import StepRecord, run_episode
from vjepa_mpc.planners.base import ActionPlan, Bounds, Budget, CostFunction
from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.robots.base import Observation
from vjepa_mpc.world_model import WorldModel

GOAL = np.array([1.1, -0.7])


class GivenPlans:
    """Answers with plans it was handed, and remembers what it was started from."""

    def __init__(self, *plans: Any) -> None:
        self.plans = [torch.tensor(plan, dtype=torch.float32) for plan in plans]
        self.bounds = Bounds(torch.full((2,), -9.0), torch.full((2,), 9.0))
        self.inits: list[torch.Tensor] = []
        self.contexts: list[Any] = []

    def plan(
        self, cost_fn: CostFunction, init: torch.Tensor, *, budget: Budget, generators: Sequence[torch.Generator]
    ) -> ActionPlan:
        self.inits.append(init.clone())
        self.contexts.append(cost_fn.context)  # type: ignore[attr-defined]
        actions = self.plans[min(len(self.inits), len(self.plans)) - 1][None]
        return ActionPlan(actions, torch.zeros(1), torch.zeros(1, 1), ("state_box",), 1, 0.0, "given")


def controller(planner: Any, model: WorldModel, goal: np.ndarray = GOAL, **changes: Any) -> Controller:
    return Controller(model, planner, picture(goal), settings(**changes), torch.Generator().manual_seed(0))


def cem(model: WorldModel, **changes: Any) -> CEM:
    return CEM(model.action_bounds, CEMSettings(**{"samples": 48, "elites": 6, "iterations": 6, **changes}))


def view(state: np.ndarray) -> Observation:
    return SpelledRobot(tuple(state)).observe()


@pytest.mark.parametrize("stride", [1, 3])
def test_it_goes_to_the_goal_within_the_robots_limits_and_says_so(stride: int) -> None:
    model, robot = solvable_model(stride=stride), SpelledRobot()
    records = run_episode(controller(cem(model), model), robot, max_steps=30)
    assert records[-1].reached and len(records) < 25
    assert float(np.abs(robot.state - GOAL).mean()) < 0.02
    assert len(robot.asked) == len(records) - 1 >= 4  # 1.1 rad takes four steps of at most 0.3
    for record, asked in zip(records, robot.asked, strict=False):
        assert float(np.abs(asked).max()) <= 0.3
        np.testing.assert_array_equal(record.wanted, asked)
        np.testing.assert_array_equal(record.action, asked)
    assert not records[-1].action.any()
    np.testing.assert_allclose(records[-1].proprioception, robot.state, atol=1e-6)


def test_the_same_seed_gives_the_same_run_to_the_bit() -> None:
    runs = []
    for _ in range(2):
        model, robot = solvable_model(), SpelledRobot()
        run_episode(controller(cem(model), model), robot, max_steps=6)
        runs.append(np.array(robot.asked))
    np.testing.assert_array_equal(*runs)


def test_a_step_of_stride_1_starts_from_the_shifted_plan() -> None:
    model, plan = solvable_model(), [[0.1, 0.0], [0.2, 0.1], [0.3, -0.2]]
    planner = GivenPlans(plan)
    loop = controller(planner, model)
    decision, state = loop.step(view(np.zeros(2)), ControllerState())
    loop.step(view(np.zeros(2)), loop.applied(decision.action, state))
    assert torch.equal(planner.inits[0], torch.zeros(1, 3, 2))  # holding still
    torch.testing.assert_close(planner.inits[1], torch.tensor([[plan[1], plan[2], [0.0, 0.0]]]))


def test_a_longer_stride_keeps_what_is_left_of_the_block_under_way() -> None:
    """0.7 rad in one model step of 3 control steps: 0.3 at once (the limit), 0.4 left; the truth counts."""
    model, plan = solvable_model(stride=3), [[0.7, -0.5], [0.2, 0.1], [0.3, -0.2]]
    planner = GivenPlans(plan)
    loop = controller(planner, model)
    decision, state = loop.step(view(np.zeros(2)), ControllerState())
    np.testing.assert_allclose(decision.action, [0.3, -0.3], atol=1e-6)
    loop.step(view(np.zeros(2)), loop.applied(np.array([0.25, -0.3]), state))
    torch.testing.assert_close(planner.inits[1], torch.tensor([[[0.45, -0.2], plan[1], plan[2]]]))


def test_a_model_step_all_but_done_makes_room_for_the_next() -> None:
    model, plan = solvable_model(stride=3), [[0.3, -0.29], [0.2, 0.1], [0.3, -0.2]]
    planner = GivenPlans(plan)
    loop = controller(planner, model)
    _, state = loop.step(view(np.zeros(2)), ControllerState())
    loop.step(view(np.zeros(2)), loop.applied(np.array([0.29, -0.3]), state))  # 0.01 left of the first
    torch.testing.assert_close(planner.inits[1], torch.tensor([[plan[1], plan[2], [0.0, 0.0]]]))


@pytest.mark.parametrize(
    ("away", "planned", "stays"),
    [
        (0.01, 0.1, True),  # there, and the plan only leads away
        (0.01, -0.01, False),  # there, but the plan leads nearer still
        (0.1, 0.1, False),  # not there: a plan that looks worse is followed all the same
    ],
)
def test_what_is_seen_to_be_there_is_not_left_for_a_worse_future(away: float, planned: float, stays: bool) -> None:
    loop = controller(GivenPlans([[planned, planned]]), solvable_model(reached=0.02), horizon=1)
    decision, _ = loop.step(view(GOAL + away), ControllerState())
    np.testing.assert_allclose(decision.action, 0.0 if stays else planned, atol=1e-6)


def test_after_staying_a_plan_of_stride_1_is_still_whole() -> None:
    plan = [[0.1, 0.1], [0.2, 0.1], [0.3, -0.2]]
    planner = GivenPlans(plan)
    loop = controller(planner, solvable_model(reached=0.02))
    decision, state = loop.step(view(GOAL), ControllerState())
    assert not decision.action.any()
    loop.step(view(GOAL), loop.applied(decision.action, state))
    torch.testing.assert_close(planner.inits[1], torch.tensor([[plan[0], plan[1], [0.0, 0.0]]]))


def test_at_the_start_the_one_view_is_repeated_with_actions_that_hold() -> None:
    planner = GivenPlans([[0.1, 0.2]])
    loop = controller(planner, solvable_model(history=3), horizon=1)
    loop.step(view(np.array([0.5, -0.5])), ControllerState())
    context = planner.contexts[0]
    assert context.latents.shape == (1, 3, 1, 2)
    torch.testing.assert_close(context.states, torch.tensor([0.5, -0.5]).expand(1, 3, 2))
    torch.testing.assert_close(context.latents[0, :, 0], torch.tensor([0.5, -0.5]).expand(3, 2), atol=2e-4, rtol=0)
    assert torch.equal(context.actions, torch.zeros(1, 2, 2))


@pytest.mark.parametrize(("stride", "history"), [(1, 3), (2, 2), (3, 2), (2, 3)])
def test_history_is_a_stride_apart_and_its_actions_are_what_was_applied(stride: int, history: int) -> None:
    """Along a known path, every context must be consistent: each state plus its action is the next state."""
    planner = GivenPlans([[0.3, 0.3]])
    loop = controller(planner, solvable_model(stride=stride, history=history), horizon=1)
    rng, state, position, path = np.random.default_rng(0), ControllerState(), np.array([0.2, -0.4]), []
    for _ in range(9):
        path.append(position)
        _, state = loop.step(view(position), state)
        applied = rng.uniform(-0.2, 0.2, 2)
        state = loop.applied(applied, state)
        position = position + applied
    span = (history - 1) * stride
    for step, context in enumerate(planner.contexts):
        seen = [path[max(0, step - span + stride * i)] for i in range(history)]
        torch.testing.assert_close(context.states[0], torch.tensor(np.array(seen)).float())
        torch.testing.assert_close(
            context.states[0, :-1] + context.actions[0], context.states[0, 1:], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(context.latents[0, :, 0], context.states[0], atol=3e-4, rtol=0)


def test_history_needs_no_more_than_one_frame() -> None:
    planner = GivenPlans([[0.1, 0.2]])
    loop = controller(planner, solvable_model(stride=2), horizon=1)
    _, state = loop.step(view(np.zeros(2)), ControllerState())
    state = loop.applied(np.array([0.1, 0.2]), state)
    assert state.actions is not None and state.actions.shape == (0, 2)
    loop.step(view(np.ones(2)), state)
    assert planner.contexts[1].actions.shape == (1, 0, 2)
    torch.testing.assert_close(planner.contexts[1].states, torch.ones(1, 1, 2))


@pytest.mark.parametrize(("history", "longest"), [(1, 5), (2, 4)])
def test_a_horizon_longer_than_what_was_trained_is_refused(history: int, longest: int) -> None:
    model = solvable_model(history=history, frames=6)
    controller(cem(model), model, horizon=longest)
    with pytest.raises(InputError, match=f"plan at most {longest} ahead"):
        controller(cem(model), model, horizon=longest + 1)


@pytest.mark.parametrize("name", ["horizon", "hold_steps"])
def test_counts_below_1_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="at least 1"):
        ControlSettings(**{name: 0})


@pytest.mark.parametrize("running", [-1.0, float("nan"), float("inf")])
def test_weights_that_would_turn_the_cost_round_are_refused(running: float) -> None:
    with pytest.raises(InputError, match="at least 0 and finite"):
        ControlSettings(running=running)


@pytest.mark.parametrize(
    "failure", [RuntimeError("the bus is gone"), KeyboardInterrupt(), InputError("a picture is torn; look.")]
)
def test_the_robot_is_stopped_whatever_happens(failure: BaseException) -> None:
    model, robot = solvable_model(), SpelledRobot()
    robot.fail_at, robot.failure = 2, failure
    with pytest.raises(type(failure)) as caught:
        run_episode(controller(GivenPlans([[0.1, 0.1]]), model, horizon=1), robot, max_steps=9)
    assert caught.value is failure
    assert robot.calls == ["apply", "apply", "apply", "stop"]


def test_a_watchers_error_stops_the_robot_too() -> None:
    class Full:
        def step(self, record: StepRecord) -> None:
            raise OSError(28, "No space left on device")

    model, robot = solvable_model(), SpelledRobot()
    with pytest.raises(OSError, match="No space"):
        run_episode(controller(GivenPlans([[0.1, 0.1]]), model, horizon=1), robot, max_steps=9, watchers=[Full()])
    assert robot.calls[-1] == "stop"


def test_an_episode_ends_stopped_after_its_last_step_with_a_record_of_the_final_view() -> None:
    model, robot = solvable_model(), SpelledRobot()
    seen: list[StepRecord] = []

    class Watcher:
        def step(self, record: StepRecord) -> None:
            seen.append(record)

    away = iter(range(9, 0, -1))
    records = run_episode(
        controller(GivenPlans([[0.1, 0.1]]), model, horizon=1), robot, max_steps=4, watchers=[Watcher()],
        distance=lambda: float(next(away)),
    )  # fmt: skip
    assert robot.calls == ["apply"] * 4 + ["stop"]
    assert [record.step for record in records] == [0, 1, 2, 3, 4] and seen == records
    assert [record.distance for record in records] == [9.0, 8.0, 7.0, 6.0, 5.0]
    np.testing.assert_array_equal(records[-1].image, robot.observe().images["top"])


def test_reached_means_several_views_in_a_row() -> None:
    loop = controller(GivenPlans([[0.0, 0.0]]), solvable_model(), horizon=1, hold_steps=3)
    state, judged = ControllerState(), []
    for near in (1, 1, 0, 1, 1, 1, 1, 0, 1):
        decision, state = loop.step(view(GOAL + (0.0 if near else 0.2)), state)
        judged.append(decision.reached)
        state = loop.applied(decision.action, state)
    assert judged == [False] * 5 + [True, True, False, False]


def test_without_calibration_only_the_goals_own_picture_is_the_goal() -> None:
    loop = controller(GivenPlans([[0.0, 0.0]]), solvable_model(reached=None), horizon=1, hold_steps=1)
    assert not loop.step(view(GOAL + 1e-3), ControllerState())[0].reached
    assert loop.step(view(GOAL), ControllerState())[0].reached


def test_an_episode_can_go_on_past_the_goal() -> None:
    model, robot = solvable_model(), SpelledRobot(tuple(GOAL))
    loop = controller(GivenPlans([[0.0, 0.0]]), model, horizon=1)
    assert len(run_episode(loop, robot, max_steps=7)) == 3
    assert len(run_episode(loop, robot, max_steps=7, stop_when_reached=False)) == 8


def test_guardrails_are_asked_for_by_the_settings() -> None:
    model = solvable_model()
    for changes, names in (
        ({}, {"goal", "state_box"}),
        ({"state_box": False}, {"goal"}),
        ({"action_rate": 0.5}, {"goal", "action_rate", "state_box"}),
    ):
        decision, _ = controller(cem(model), model, **changes).step(view(np.zeros(2)), ControllerState())
        assert set(decision.terms) == names
        assert sum(value for name, value in decision.terms.items() if name != "state_box") == pytest.approx(
            float(decision.plan.cost[0]), rel=1e-5
        )


def test_the_joint_limit_is_kept_although_the_goal_picture_lies_beyond() -> None:
    model, limit = solvable_model(reached=None), 2.7925268
    robot = SpelledRobot((0.0, 2.5))
    run_episode(controller(cem(model), model, np.array([0.0, 3.3])), robot, max_steps=6)
    assert 2.6 < robot.state[1] <= limit + 1e-3


def test_a_real_model_steps_too(tiny_model: Path) -> None:
    model = WorldModel.from_pretrained(tiny_model)
    picture = np.full((64, 64, 3), 90, np.uint8)
    loop = Controller(model, cem(model, samples=8, iterations=2), picture, settings(), torch.Generator().manual_seed(0))
    observation = Observation({"top": picture}, np.zeros(2, np.float32), 0.0)
    decision, state = loop.step(observation, ControllerState())
    assert decision.latent_cost == 0 and decision.plan.actions.shape == (1, 3, 2)
    assert state.latents is not None and state.latents.shape == (2, 4, 48)
