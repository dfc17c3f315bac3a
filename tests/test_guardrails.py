"""Guardrails in a world that can be solved exactly: what plans keep, what is sent, and what is said of it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from solvable_world import SpelledRobot, picture, settings, solvable_model
from test_controller import GOAL, GivenPlans, view

from vjepa_mpc.actor import Actor, ActorConfig
from vjepa_mpc.cli.building import leg_bounds
from vjepa_mpc.controller import Controller, ControllerState
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import ModelSpan, Penalty, WayLength
from vjepa_mpc.governors import ChangeLimits, Guards, LastLook, Moment, Surprise, Watchdog, straight_step
from vjepa_mpc.guardrails import AvoidPictures, KeepOut, PoseBox, Situation, Workspace
from vjepa_mpc.loop import run_episode
from vjepa_mpc.planners.base import Bounds
from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.planners.limits import Ball, Limits, control_steps
from vjepa_mpc.rollout import Rollout
from vjepa_mpc.thresholds import load_thresholds, measure_thresholds, prediction_errors, save_thresholds

ALL = torch.arange(1)


def guarded(guards: Guards, *, stride: int = 1, legs: int = 1, goal: np.ndarray = GOAL, **changes: Any) -> Controller:
    model = solvable_model(stride=stride, reached=0.02)
    bounds = leg_bounds(model, legs, changes.get("leg_steps"))
    planner = CEM(bounds, CEMSettings(samples=96, elites=8, iterations=6))
    generator = torch.Generator().manual_seed(0)
    return Controller(model, planner, picture(goal), settings(legs=legs, **changes), generator, guards)


def pose(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def situation(*values: float, points: int = 4) -> Situation:
    return Situation(pose(*values), solvable_model().states, points)


def itself(states: torch.Tensor) -> torch.Tensor:
    return states


# ---- what a plan keeps -------------------------------------------------------------------------------


def test_the_way_is_straight_between_the_poses_and_leaves_the_first_out() -> None:
    way = situation(1.0, 0.0).way(torch.tensor([[[[0.4, 0.0], [0.0, -0.2]]]]))
    wanted = [[1.1, 0], [1.2, 0], [1.3, 0], [1.4, 0], [1.4, -0.05], [1.4, -0.1], [1.4, -0.15], [1.4, -0.2]]
    torch.testing.assert_close(way[0, 0], torch.tensor(wanted))


def test_a_region_is_seen_on_the_way_and_not_only_at_its_end() -> None:
    region = KeepOut(itself, (0.5, 0.0), 0.1, margin=0.05)
    rule = region.constraint(situation(0.0, 0.0, points=10))
    actions = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.4]]]])
    states = actions.cumsum(2)
    broken = rule(Rollout(states[..., None, :], states), actions)
    # Of the ten points of the first way 0.4, 0.5 and 0.6 lie in the region and its margin: 0.05, 0.15, 0.05 deep.
    torch.testing.assert_close(broken[0, 0], torch.tensor(0.25 / 10), atol=1e-5, rtol=0)
    assert float(broken[0, 1]) == 0 and float(broken[0, 2]) == 0
    assert rule.name == "keep_out"


def test_boxes_measure_how_far_out_and_slopes_lead_in() -> None:
    box = PoseBox((-1.0, -math.inf), (1.0, math.inf))
    torch.testing.assert_close(box.depth(torch.tensor([[1.5, 9.0], [-3.0, 0.0], [0.0, 0.0]])), pose(0.5, 2.0, 0.0))
    place = Workspace(itself, (0.0, 0.0), (1.0, 2.0))
    at = torch.tensor([1.5, -0.5], requires_grad=True)
    (slope,) = torch.autograd.grad(place.depth(at), at)
    assert slope.tolist() == [1.0, -1.0]
    with pytest.raises(InputError, match="low first"):
        Workspace(itself, (1.0,), (0.0,))
    with pytest.raises(InputError, match="radius"):
        KeepOut(itself, (0.0, 0.0), 0.0)


@pytest.mark.parametrize("legs", [1, 3])
def test_the_arm_goes_round_a_region_and_arrives(legs: int) -> None:
    """The straight way leads through it. Angles are the place here; one leg gets round by planning again."""
    region = KeepOut(itself, (0.55, -0.35), 0.2, margin=0.02)
    loop, robot = guarded(Guards((region,)), stride=12, legs=legs, horizon=1), SpelledRobot()
    path = [robot.state]
    for record in run_episode(loop, robot, max_steps=20):
        path.append(path[-1] + record.action)
    line = np.concatenate([a + np.linspace(0, 1, 50)[:, None] * (b - a) for a, b in itertools.pairwise(path)])
    nearest = float(np.linalg.norm(line - np.array([0.55, -0.35]), axis=1).min())
    assert nearest >= 0.2, f"{0.2 - nearest:.3f} into the region"
    if legs == 3:
        assert float(np.abs(robot.state - GOAL).mean()) < 0.03


def test_a_start_in_a_region_is_left_and_the_plan_says_what_held_it() -> None:
    region = KeepOut(itself, (0.0, 0.0), 0.35, name="hot_plate")
    loop, robot = guarded(Guards((region,)), horizon=1), SpelledRobot((0.1, 0.05))
    records = run_episode(loop, robot, max_steps=4)
    depth = [0.35 - float(np.linalg.norm(record.proprioception)) for record in records]
    assert all(b <= a + 1e-6 for a, b in itertools.pairwise(depth)) and depth[-1] < 0.01
    assert "hot_plate" in records[0].held_by and "hot_plate" not in records[-1].held_by


def test_pictures_are_stayed_away_from_by_the_nearest_and_the_worst_frame() -> None:
    latents = torch.tensor([[[1.0, 0.0]], [[0.0, 5.0]]])
    avoid = AvoidPictures(latents, 0.3)
    frames = torch.tensor([[[[[1.0, 0.2]], [[0.9, 0.0]]], [[[9.0, 9.0]], [[2.0, 2.0]]]]])
    broken = avoid(Rollout(frames, frames[..., 0, :]), torch.zeros(1, 2, 2, 2))
    torch.testing.assert_close(broken, torch.tensor([[0.25, 0.0]]), atol=1e-6, rtol=0)
    loop = guarded(Guards((AvoidPictures(torch.tensor([[[0.55, -0.35]]]), 0.2),)), horizon=1)
    robot = SpelledRobot()
    for record in run_episode(loop, robot, max_steps=15):
        assert float(np.abs(record.proprioception - [0.55, -0.35]).mean()) >= 0.2 - 1e-3


def test_a_penalty_is_the_constraint_as_a_cost() -> None:
    rule = KeepOut(itself, (0.0, 0.0), 0.5).constraint(situation(1.0, 0.0))
    actions = torch.tensor([[[[-1.0, 0.0]], [[1.0, 0.0]]]])
    states = actions.cumsum(2)
    rollout = Rollout(states[..., None, :], states)
    soft = Penalty(rule, 3.0)
    torch.testing.assert_close(soft(rollout, actions, ALL), 3 * rule(rollout, actions))
    assert soft.name == "soft_keep_out"
    with pytest.raises(InputError, match="at least 0"):
        Penalty(rule, -1.0)


def test_the_length_of_a_way_counts_control_steps() -> None:
    term = WayLength(Bounds(pose(-0.3, -0.3), pose(0.3, 0.6)), longest=10, weight=2.0)
    actions = torch.tensor([[[[0.6, 0.6], [-0.3, 0.0]]]])
    torch.testing.assert_close(term(Rollout(actions[..., None], actions), actions, ALL), torch.tensor([[2 * 3 / 10]]))


# ---- what is sent ------------------------------------------------------------------------------------


def test_legs_may_be_longer_than_a_model_step() -> None:
    """The way round takes more than the 4 control steps that a model step spans; the model sees where it ends."""
    region, ends = KeepOut(itself, (0.5, 0.0), 0.45), []
    goal = np.array([1.0, 0.0])
    for more in ({"legs": 4}, {"legs": 3, "leg_steps": 4}):
        loop, robot = guarded(Guards((region,)), stride=4, horizon=1, goal=goal, **more), SpelledRobot()
        decision, _ = loop.step(robot.observe(), ControllerState())
        assert "keep_out" not in decision.held_by
        ends.append(decision.terms["goal"])
    assert ends[1] < 0.2 < 0.35 < ends[0], ends


def test_the_sum_of_long_legs_stays_what_the_model_was_trained_on() -> None:
    span = ModelSpan(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0]), legs=2)
    rollout = Rollout(torch.zeros(1, 1, 2, 1, 1), torch.zeros(1, 1, 2, 2))
    inside = torch.tensor([[[[3.0, 0.0], [-2.0, 0.0], [0.5, 0.0], [0.5, 0.0]]]])
    assert span(rollout, inside).tolist() == [[0.0]], "out and back again is inside"
    outside = inside + torch.tensor([0.5, 0.0])
    torch.testing.assert_close(span(rollout, outside), torch.tensor([[(1.0 / 2 + 1.0 / 2) / 2]]))
    with pytest.raises(InputError, match="at least 1 control step, not 0"):
        settings(leg_steps=0)
    rules = guarded(Guards(), stride=4, legs=3, leg_steps=4)._constraints(situation(0.0, 0.0))
    assert [rule.name for rule in rules] == ["state_box", "model_span"]
    rules = guarded(Guards(), stride=4, legs=2)._constraints(situation(0.0, 0.0))
    assert [rule.name for rule in rules] == ["state_box"]


def test_a_straight_step_keeps_the_direction_and_leaves_short_legs_out() -> None:
    limits = Bounds(pose(-0.3, -0.3), pose(0.3, 0.3))
    step, rest = straight_step(torch.tensor([[0.9, -0.2], [0.1, 0.1]]), limits)
    torch.testing.assert_close(step, torch.tensor([0.3, -0.2 / 3]))
    torch.testing.assert_close(rest, torch.tensor([[0.9, -0.2], [0.1, 0.1]]))
    step, rest = straight_step(torch.tensor([[0.01, 0.0], [0.2, 0.4]]), limits)
    torch.testing.assert_close(step, torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(rest, torch.tensor([[0.2, 0.4], [0.0, 0.0]]))
    step, _ = straight_step(torch.tensor([[0.01, 0.0], [0.01, -0.02]]), limits)
    torch.testing.assert_close(step, torch.tensor([0.02, -0.02]))


def test_a_direction_without_a_step_takes_no_time() -> None:
    """A gripper that only closes, or only opens, beside a joint."""
    ways = torch.tensor([[0.0, 0.6], [0.2, 0.6], [-0.2, 0.0]])
    only_up, only_down = Bounds(pose(0.0, -0.3), pose(0.1, 0.3)), Bounds(pose(-0.1, -0.3), pose(0.0, 0.3))
    torch.testing.assert_close(control_steps(ways, only_up), torch.tensor([2.0, 2.0, 0.0]))
    torch.testing.assert_close(control_steps(-ways, only_up), torch.tensor([2.0, 2.0, 2.0]))
    torch.testing.assert_close(control_steps(-ways, only_down), torch.tensor([2.0, 2.0, 0.0]))
    way = ways[None, None].clone().requires_grad_()
    cost = WayLength(only_up, longest=10, weight=1.0)(Rollout(way[..., None, :], way), way, ALL)
    (slope,) = torch.autograd.grad(cost.sum(), way)
    assert bool(torch.isfinite(slope).all())
    step, _ = straight_step(torch.tensor([[0.0, 0.6]]), only_up)
    torch.testing.assert_close(step, pose(0.0, 0.3))


def test_actions_without_range_take_no_time_and_balls_do() -> None:
    """Held rotations, as V-JEPA 2-AC's robot has them."""
    limits = Bounds(pose(-0.3, 0.0), pose(0.3, 0.0))
    step, _ = straight_step(torch.tensor([[0.9, 0.0]]), limits)
    torch.testing.assert_close(step, pose(0.3, 0.0))
    ball = Limits(pose(-0.3, -0.3), pose(0.3, 0.3), balls=(Ball((0, 1), 0.25),))
    step, _ = straight_step(torch.tensor([[0.9, -1.2]]), ball)  # 1.5 rad; the box alone would do it in four
    torch.testing.assert_close(step, pose(0.15, -0.2))
    way = torch.tensor([[[[0.9, -1.2], [0.0, 0.0]]]], requires_grad=True)
    cost = WayLength(ball, longest=12, weight=1.0)(Rollout(way[..., None, :], way), way, ALL)
    (slope,) = torch.autograd.grad(cost.sum(), way)
    assert cost.item() == pytest.approx(0.5) and bool(torch.isfinite(slope).all())


def test_whatever_is_planned_the_last_look_keeps_the_robot_out() -> None:
    """A planner that wants straight in, constraints or not: the arm stops short of the region."""
    model, robot = solvable_model(), SpelledRobot()
    region = KeepOut(itself, (0.8, 0.0), 0.2)
    loop = Controller(
        model, GivenPlans([[0.3, 0.0]]), picture(GOAL), settings(horizon=1), torch.Generator().manual_seed(0),
        Guards((region,)),
    )  # fmt: skip
    records = run_episode(loop, robot, max_steps=8)
    assert 0.5 < robot.state[0] <= 0.6 + 1e-6
    assert "last_look" in records[-1].held_by


def moments(costs: list[float], governor: Any, action: np.ndarray) -> list[np.ndarray]:
    from vjepa_mpc.governors import Moment

    memory, out, model = governor.begin(), [], solvable_model()
    for cost in costs:
        moment = Moment(model, torch.zeros(1, 1, 2), cost, cost < 0.1, pose(0.0, 0.0), None, ())
        verdict = governor(action, moment, memory)
        memory = verdict.memory
        out.append(verdict.action)
    return out


def test_the_watchdog_stops_for_good_where_nothing_gets_nearer_and_sleeps_at_the_goal() -> None:
    action = np.array([0.3, 0.1])
    sent = moments([1.0, 0.9, 0.9, 0.899, 0.9, 0.5], Watchdog(3), action)
    assert [bool(value.any()) for value in sent] == [True, True, True, True, False, False]
    assert all(value.any() for value in moments([0.05] * 9, Watchdog(2), action))
    with pytest.raises(InputError, match="at least 1"):
        Watchdog(0)


def test_a_stalled_run_ends_and_says_so() -> None:
    loop = guarded(Guards(governors=(Watchdog(3),)), horizon=1)
    loop.planner = GivenPlans([[0.0, 0.0]])
    records = run_episode(loop, SpelledRobot(), max_steps=50)
    assert len(records) == 4 and records[-1].held_by == ("watchdog",)


def test_changes_of_what_is_sent_are_limited_from_rest() -> None:
    limits = ChangeLimits((0.1, math.inf), (0.05, math.inf))
    loop = guarded(Guards(governors=(limits,)), horizon=1)
    loop.planner = GivenPlans([[0.3, 0.3]])
    robot = SpelledRobot()
    run_episode(loop, robot, max_steps=5)
    np.testing.assert_allclose(np.array(robot.asked)[:, 0], [0.05, 0.15, 0.25, 0.3, 0.3], atol=1e-6)
    np.testing.assert_allclose(np.array(robot.asked)[:, 1], 0.3, atol=1e-6)


def a_moment(where: torch.Tensor, *sent: np.ndarray) -> Moment:
    model = solvable_model()
    latent = torch.zeros(1, model.config.latent.positions, model.config.latent.dim)
    return Moment(model, latent, 1.0, False, where, None, sent)


def test_a_change_that_is_limited_ends_where_it_should() -> None:
    """After a stop the arm comes to rest as fast as its limits allow, and does not swing back."""
    for rate, bend in ((math.inf, 0.1), (0.3, 0.1), (0.2, 0.05), (0.5, 0.3), (0.1, math.inf)):
        limits, sent = ChangeLimits((rate,), (bend,)), [np.zeros(1)]
        for wanted in (*[1.0] * 30, *[0.0] * 30):
            sent.append(limits(np.array([wanted]), a_moment(pose(0.0), *sent[-2:]), None).action)
        course = np.concatenate(sent)
        changes = np.diff(course)
        assert np.abs(changes).max() <= rate + 1e-9 and np.abs(np.diff(changes)).max() <= bend + 1e-9
        assert course.max() <= 1 + 1e-9 and course.min() >= -1e-9, f"overshot with {rate} and {bend}: {course}"
        assert abs(course[30] - 1) < 1e-9 and abs(course[-1]) < 1e-9


def test_the_last_look_sends_nothing_where_it_cannot_see() -> None:
    model = solvable_model()
    look = LastLook((PoseBox((-1.0, -1.0), (1.0, 1.0)),), model.states)
    verdict = look(np.array([0.5, 0.0]), a_moment(pose(math.nan, 0.0)), None)
    assert verdict.held and verdict.action.tolist() == [0.0, 0.0]


def test_a_surprise_slows_and_a_great_one_stops_until_the_world_is_as_expected() -> None:
    """The arm is pushed from outside: the model, which is exact, did not expect that."""
    loop = guarded(Guards(governors=(Surprise(0.05, 0.2),)), horizon=1)
    loop.planner = GivenPlans([[0.2, 0.0]])
    state, where, sent = ControllerState(), np.zeros(2), []
    for push in (0.0, 0.0, 0.2, 0.0, 1.0, 0.0):
        where = where + np.array([0.0, push])
        decision, state = loop.step(view(where), state)
        sent.append(round(float(decision.action[0]), 6))
        assert (decision.held_by == ("surprise",)) == (push > 0)
        state = loop.applied(decision.action, state)
        where = where + decision.action
    assert sent == [0.2, 0.2, 0.1, 0.2, 0.0, 0.2]


def test_names_are_distinct_and_legs_divide_a_stride() -> None:
    with pytest.raises(InputError, match="distinct"):
        Guards((KeepOut(itself, (0.0, 0.0), 1.0), KeepOut(itself, (1.0, 0.0), 1.0)))
    with pytest.raises(InputError, match="divisor"):
        guarded(Guards(), stride=4, legs=3)
    assert isinstance(Guards((PoseBox((0.0,), (1.0,)),)).all_governors(solvable_model().states)[0], LastLook)


# ---- thresholds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "history"), [(1, 1), (3, 2)])
def test_predictions_of_an_exact_model_are_no_surprise(stride: int, history: int) -> None:
    model = solvable_model(stride=stride, history=history)
    actions = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    states = torch.cat([torch.zeros(1, 2), actions.cumsum(0)])
    errors = prediction_errors(model, states[:, None], states, actions)
    assert len(errors) == 20 - stride * (history - 1) and float(errors.max()) < 1e-5
    pushed = states.clone()
    pushed[12:] += 0.5
    moved = prediction_errors(model, pushed[:, None], pushed, actions)
    assert int((moved > 0.4).sum()) == 1


def test_thresholds_are_quantiles_and_belong_to_the_weights(tmp_path: Any) -> None:
    model = solvable_model()
    actions = torch.zeros(1100, 2)
    states = torch.zeros(1101, 2)
    states[1::100] += 0.3  # eleven views in eleven hundred jump, and back
    found = measure_thresholds(model, [(states[:, None], states, actions)], [torch.linspace(0, 1, 101)], "data")
    assert found.frames == 1100 and found.pairs == 101 and found.same_place == pytest.approx(0.95)
    assert 0 <= found.surprise_slow <= found.surprise_stop == pytest.approx(0.3, abs=1e-5)
    save_thresholds(found, tmp_path / "guardrails.json")
    assert load_thresholds(tmp_path, model) == found
    latent = model.config.latent
    model.get_actor(Actor(ActorConfig(latent.positions, latent.dim, model.states.state_dim, actions=2)))
    assert load_thresholds(tmp_path, model) == found, "an actor has no part in predictions"
    model.predictor.predictor_embed.weight.data += 1
    with pytest.raises(InputError, match="other weights"):
        load_thresholds(tmp_path, model)
    with pytest.raises(InputError, match="no thresholds"):
        load_thresholds(tmp_path / "elsewhere", model)
    with pytest.raises(InputError, match="too few"):
        measure_thresholds(model, [(states[:9, None], states[:9], actions[:8])], [], "data")


