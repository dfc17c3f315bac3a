"""What every control step keeps beyond the robot's box: balls, changes and held actions, by the actions executed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from solvable_world import SpelledRobot, picture, settings, solvable_model
from test_controller import GOAL, GivenPlans, controller, view
from test_fixed_rate import After

from vjepa_mpc.cli.building import by_knots, leg_bounds, make_planner, planner_and_control
from vjepa_mpc.cli.contenders import PlannerOptions, Stage, planning
from vjepa_mpc.cli.limiting import step_limits
from vjepa_mpc.controller import Controller, ControllerState
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.fixed_rate import FixedRate
from vjepa_mpc.governors import ChangeLimits, Guards
from vjepa_mpc.guardrails import KeepOut
from vjepa_mpc.lockstep import decide_together, see_together
from vjepa_mpc.loop import run_episode
from vjepa_mpc.planners import Ball, Bounds, Limits, StepLimits
from vjepa_mpc.policies import PlannedPolicy
from vjepa_mpc.world_model import WorldModel

BALL = StepLimits(balls=(Ball((0, 1), 0.2),))
RATE = StepLimits(rates=((0, 0.04), (1, 0.07)))
BOTH = StepLimits(BALL.balls, RATE.rates)
ROUNDING = 1e-6


def broken(limits: StepLimits, actions: Sequence[np.ndarray]) -> float:
    """By how much executed actions, the first of them after rest, break limits."""
    sent = np.stack([np.zeros(2), *actions])
    excess = [0.0]
    for ball in limits.balls:
        excess.append(np.linalg.norm(sent[:, list(ball.members)], axis=1).max() - ball.radius)
    for action, change in limits.rates:
        excess.append(np.abs(np.diff(sent[:, action])).max() - change)
    for action, value in limits.held:
        excess.append(np.abs(sent[1:, action] - value).max())
    return float(max(excess))


def limited(
    limits: StepLimits,
    *,
    stride: int = 1,
    knots: str | None = None,
    name: str = "cem",
    quick: bool = False,
    **more: Any,
) -> Any:
    """A controller under limits, and its planner under those of the planned steps; `more` are control settings."""
    guards, reached = more.pop("guards", None), more.pop("reached", 0.02)
    model = solvable_model(stride=stride, reached=reached)
    given = settings(**{"limits": limits, "horizon": 3, **more})
    bounds = leg_bounds(model, given.legs, given.leg_steps, limits)
    planner = make_planner(name, bounds, **({"samples": 2, "iterations": 5} if quick else {}))
    planner = by_knots(planner, knots, given.horizon * given.legs)
    return Controller(model, planner, picture(GOAL), given, torch.Generator().manual_seed(0), guards)


CASES: dict[str, dict[str, Any]] = {
    "one control step a model step": {},
    "three": {"stride": 3},
    "fifteen, one ahead": {"stride": 15, "horizon": 1},
    "short planned steps": {"stride": 15, "horizon": 1, "leg_steps": 4},
    "knots": {"knots": "blocks:2"},
    "lines of long steps": {"stride": 3, "knots": "lines:2"},
    "a region to stay out of": {"stride": 3, "guards": Guards((KeepOut(lambda states: states, (2.0, 2.0), 0.1),))},
    "by slopes": {"name": "lbfgs", "quick": True},
    "sampled and refined": {"stride": 3, "name": "cem+lbfgs"},
    "priced": {"stride": 3, "name": "lagrangian", "quick": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("limits", [BALL, RATE, BOTH], ids=["ball", "rate", "both"])
def test_executed_actions_keep_them_and_the_goal_is_reached(limits: StepLimits, case: str) -> None:
    robot = SpelledRobot()
    records = run_episode(limited(limits, **CASES[case]), robot, max_steps=40)
    assert broken(limits, robot.asked) < ROUNDING
    assert records[-1].reached, f"ended at {robot.state}, not {GOAL}"


@pytest.mark.parametrize("case", ["one control step a model step", "three"])
def test_without_them_the_same_robot_breaks_them(case: str) -> None:
    robot = SpelledRobot()
    run_episode(limited(StepLimits(), **CASES[case]), robot, max_steps=40)
    assert broken(BALL, robot.asked) > 0.05 and broken(RATE, robot.asked) > 0.05


@pytest.mark.parametrize("leg_steps", [None, 6])
def test_a_way_of_legs_keeps_a_ball_in_every_control_step(leg_steps: int | None) -> None:
    region = KeepOut(lambda states: states, (0.55, -0.35), 0.2, margin=0.02)
    robot = SpelledRobot()
    loop = limited(BALL, stride=12, legs=3, leg_steps=leg_steps, horizon=1, guards=Guards((region,)))
    run_episode(loop, robot, max_steps=40)
    assert broken(BALL, robot.asked) < ROUNDING
    assert max(float(np.linalg.norm(action)) for action in robot.asked) > 0.19, "a step that is never used up"
    assert float(np.abs(robot.state - GOAL).mean()) < 0.03


def test_an_action_that_is_held_is_held_in_every_control_step() -> None:
    held = StepLimits(held=((1, -0.05),))
    for case in ({}, {"stride": 3}, {"stride": 15, "leg_steps": 4}, {"stride": 12, "legs": 3}):
        for limits in (held, replace(held, balls=(Ball((0, 1), 0.1),)), replace(held, balls=(Ball((0, 1), 0.05),))):
            robot = SpelledRobot()
            run_episode(limited(limits, **{"horizon": 1, **case}, reached=None), robot, max_steps=8)
            assert broken(limits, robot.asked) < ROUNDING, f"{case}: {robot.asked}"
            goes = max(abs(float(action[0])) for action in robot.asked)
            wanted = 0.3 if not limits.balls else (limits.balls[0].radius ** 2 - 0.05**2) ** 0.5
            assert 0.8 * wanted - 1e-9 <= goes <= wanted + 1e-3, f"{case}: {limits}"  # legs go in equal steps


def test_a_ball_whose_radius_is_all_held_leaves_the_others_still() -> None:
    for value in np.linspace(0.01, 0.3, 30).tolist():  # whichever way float32 rounds
        limits = StepLimits(balls=(Ball((0, 1), value),), held=((0, value),))
        for steps in (1, 3, 7):
            bounds = limits.within(Bounds(torch.full((2,), -0.3 * steps), torch.full((2,), 0.3 * steps)), steps)
            found = bounds.clip(torch.tensor([[0.1, 0.3], [-1.0, -1.0]]))
            assert float(found[:, 1].abs().max()) <= 1e-3 * value * steps
    with pytest.raises(InputError, match="No action"):
        StepLimits(balls=(Ball((0, 1), 0.1),), held=((0, 0.101),)).within(Bounds(-torch.ones(2), torch.ones(2)))


def test_planned_steps_are_no_tighter_than_what_control_steps_can_do_and_no_looser_than_told() -> None:
    """Random walks that keep the limits, added up n at a time, are inside; what is at once too far is not."""
    n, rng = 4, np.random.default_rng(0)
    box = Bounds(torch.full((2,), -0.3 * n).double(), torch.full((2,), 0.3 * n).double())
    bounds = BOTH.within(box, n)
    assert isinstance(bounds, Limits) and bounds.balls[0].radius == pytest.approx(0.8)
    change = np.array([0.04, 0.07])
    for _ in range(200):
        walk = [rng.uniform(-0.1, 0.1, 2)]
        hurry = rng.choice([-1.0, 1.0], 2)
        for share in rng.uniform(-0.3, 1.0, (3 * n, 2)):
            step = walk[-1] + change * hurry * share
            walk.append(step if np.linalg.norm(step) <= 0.2 else walk[-1])
        plan = torch.from_numpy(np.stack(walk[1:]).reshape(3, n, 2).sum(1))[None, None]
        after = bounds.after(torch.from_numpy(n * walk[0])[None])
        torch.testing.assert_close(after.clip(plan), plan, atol=1e-9, rtol=0)
    far = bounds.after(torch.zeros(1, 2).double()).clip(torch.ones(1, 1, 2, 2).double())[0, 0]
    assert float(far[0, 0]) == pytest.approx(0.04 * (1 + 2 + 3 + 4)), "from rest in four steps"
    assert float(far[0].norm()) <= 0.8 + 1e-9


class Asked(GivenPlans):
    """Remembers the previous actions it was handed."""

    def plan(self, cost_fn: Any, init: torch.Tensor, *, previous: torch.Tensor, **given: Any) -> Any:
        self.previous = [*getattr(self, "previous", []), previous.clone()]
        return super().plan(cost_fn, init, **given)


@pytest.mark.parametrize("stride", [1, 3])
def test_the_search_is_handed_what_was_truly_applied(stride: int) -> None:
    planner = Asked([[0.3, 0.0]] * 3)
    loop = controller(planner, solvable_model(stride=stride), limits=RATE)
    state = ControllerState()
    for applied in ([0.01, 0.0], [0.05, -0.02], [0.0, 0.0]):
        _, state = loop.step(view(np.zeros(2)), state)
        state = loop.applied(np.array(applied), state)
    wanted = stride * torch.tensor([[0.0, 0.0], [0.01, 0.0], [0.05, -0.02]])
    torch.testing.assert_close(torch.cat(planner.previous), wanted)


def test_every_candidate_of_the_search_counts_from_there() -> None:
    """Not the action sent alone: no evaluation is spent on what would be cut."""
    loop, robot = limited(RATE, reached=None), SpelledRobot()
    judged: list[tuple[np.ndarray, torch.Tensor]] = []
    state = ControllerState()
    for _ in range(6):
        seen, state = loop.see(robot.observe(), state)
        problem = loop.problem(seen, state)
        before = state.sent[-1] if state.sent else np.zeros(2)

        def watched(actions: torch.Tensor, problems: torch.Tensor, cost: Any = problem.cost, at: Any = before) -> Any:
            judged.append((at, actions.clone()))
            return cost(actions, problems)

        loop.planner.plan(
            watched, problem.init, budget=loop.settings.budget, generators=[loop.generator], **problem.earlier()
        )
        decision, state = loop.decide(seen, state)
        state = loop.applied(robot.apply(decision.action), state)
    limit = torch.tensor([change for _, change in RATE.rates]) + ROUNDING
    assert float(np.abs(judged[-1][0]).max()) > 0.05, "it is moving by now"
    for at, actions in judged:
        path = torch.cat([torch.from_numpy(at).float().expand(*actions.shape[:2], 1, 2), actions], dim=2)
        assert bool((path.diff(dim=2).abs() <= limit).all())


def test_a_held_action_does_not_keep_a_planned_step_from_ending() -> None:
    """Of three control steps held at 0.1 two thirds are left when the other action has done its share."""
    loop = limited(StepLimits(held=((1, 0.1),)), stride=3)
    plan = torch.tensor([[0.2, 0.3], [-0.4, 0.3], [0.0, 0.3]])
    state = loop.carried(np.array([0.2, 0.1]), ControllerState(plan=plan))
    assert state.plan is not None
    torch.testing.assert_close(state.plan[0], torch.tensor([-0.4, 0.3]))
    left = loop.carried(np.array([0.1, 0.1]), ControllerState(plan=plan))
    assert left.plan is not None and float(left.plan[0, 0]) == pytest.approx(0.1)


def test_at_the_goal_it_slows_down_as_fast_as_it_may() -> None:
    loop = limited(RATE)
    decision, _ = loop.step(view(GOAL), ControllerState(sent=(np.array([0.2, 0.0]),), plan=torch.zeros(3, 2)))
    np.testing.assert_allclose(decision.action, [0.16, 0.0], atol=1e-6)


def test_long_planned_steps_end_without_swinging_past_the_goal() -> None:
    """As fast as can be, and slowed down in time: neither a crawl nor a swing."""
    robot = SpelledRobot()
    limits = StepLimits(rates=((0, 0.05), (1, 0.05)))
    run_episode(limited(limits, stride=15, horizon=1), robot, max_steps=40, stop_when_reached=False)
    path = np.cumsum(robot.asked, axis=0)
    assert float(path[:, 0].max()) < GOAL[0] + 0.03
    # 1.1 rad at changes of 0.05: 0.05 + 0.1 + ... + 0.2 + 0.2 + ... + 0.05 are 8 steps, and 0.1 is left.
    assert int(np.argmax(path[:, 0] > GOAL[0] - 0.03)) + 1 <= 10


@pytest.mark.parametrize("late", [0, 2])
@pytest.mark.parametrize("stride", [1, 3])
def test_a_fixed_rate_keeps_them_too(stride: int, late: int) -> None:
    robot = SpelledRobot()
    loop = FixedRate(limited(BOTH, stride=stride), lambda work: After(late, work))
    for _ in range(25):
        loop.applied(robot.apply(loop.tick(robot.observe()).action))
    assert broken(BOTH, robot.asked) < ROUNDING and np.abs(robot.asked).max() > 0.06


@pytest.mark.parametrize("stride", [1, 3])
def test_problems_of_a_batch_each_count_from_their_own_action(stride: int) -> None:
    """Three robots in one search move as each does alone."""
    starts = (0.0, 0.0), (1.1, 0.6), (2.2, -0.7)
    robots, loops = [SpelledRobot(start) for start in starts], [limited(BOTH, stride=stride) for _ in starts]
    states = [ControllerState() for _ in starts]
    for loop in loops[1:]:
        loop.model, loop.planner = loops[0].model, loops[0].planner
    for _ in range(8):
        seen = see_together(loops, [robot.observe() for robot in robots], states)
        decided = decide_together(loops, [one for one, _ in seen], [state for _, state in seen])
        states = [
            loop.applied(robot.apply(decision.action), state)
            for loop, robot, (decision, state) in zip(loops, robots, decided, strict=True)
        ]
    for robot, start in zip(robots, starts, strict=True):
        assert broken(BOTH, robot.asked) < ROUNDING
        alone = SpelledRobot(start)
        run_episode(limited(BOTH, stride=stride), alone, max_steps=7, stop_when_reached=False)
        np.testing.assert_allclose(robot.asked[:7], alone.asked[:7], atol=1e-4)


def test_another_goal_within_an_episode_goes_on_from_what_was_sent() -> None:
    loop = limited(RATE)
    policy = PlannedPolicy(loop.model, loop.planner, loop.settings)
    robot = SpelledRobot()
    policy.begin(picture(GOAL), GOAL, 0)
    for step in range(8):
        if step == 5:
            policy.turn(picture(-GOAL), -GOAL, 1)
        policy.note(robot.apply(policy.act(robot.observe())))
    assert broken(RATE, robot.asked) < ROUNDING and robot.asked[4][0] > 0.1 > robot.asked[7][0]
    policy.begin(picture(GOAL), GOAL, 0)  # another episode
    assert abs(float(policy.act(SpelledRobot().observe())[0])) <= 0.04 + ROUNDING


def test_with_the_guardrail_of_changes_both_are_kept() -> None:
    change = ChangeLimits((0.06, 0.03), (np.inf, np.inf))
    robot = SpelledRobot()
    run_episode(limited(RATE, stride=3, guards=Guards((), (change,))), robot, max_steps=20)
    assert broken(RATE, robot.asked) < ROUNDING
    assert broken(StepLimits(rates=((0, 0.06), (1, 0.03))), robot.asked) < ROUNDING


def test_what_cannot_be_kept_together_is_refused() -> None:
    with pytest.raises(InputError, match=r"rate-limit.*leave it or --legs out"):
        settings(legs=2, limits=RATE)
    with pytest.raises(InputError, match="lead out of a --ball"):
        limited(BALL, guards=Guards((), (ChangeLimits((1.0, 1.0), (np.inf, np.inf)),)))
    with pytest.raises(InputError, match="do not change"):
        StepLimits(rates=((1, 0.1),), held=((1, 0.0),))


# ---- from the command line ---------------------------------------------------------------------------


def test_words_become_limits() -> None:
    robot = solvable_model().config.robot
    first, second = robot.action_names
    found = step_limits(robot, ball=[f"{first},{second}=0.2"], rate_limit=[f"{second}=0.07", f"{first}=0.04"])
    assert found == BOTH and not step_limits(robot)
    assert step_limits(robot, [f"{first}=0.1"], [f"{first},{second}=0.1"]).held == ((0, 0.1),)
    for ball, words in (
        ("shouldr_delta=1", f"did you mean '{first}'"), (first, "has no number; write it as"),
        (f"{first}=0", "positive and finite"), (f"{first}=nan", "positive and finite"),
        (f"{first}={first}", "has no number"), (f"{first},{first}=1", "in a ball already"), ("=1", "action of"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            step_limits(robot, ball=[ball])
    for rate, words in (
        ("wing=1", "action of"), (first, "has no number"), (f"{first}=-1", "positive and finite"),
        (f"{first}=inf", "positive and finite"), (f"{first},{second}=1", "action of"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            step_limits(robot, rate_limit=[rate])
    with pytest.raises(InputError, match="in a ball already"):
        step_limits(robot, ball=[f"{first}=1", f"{second},{first}=1"])
    with pytest.raises(InputError, match=r"norm of 0\.2 already"):
        step_limits(robot, [f"{first}=0.2"], [f"{first},{second}=0.1"])
    with pytest.raises(InputError, match="held by --fix"):
        step_limits(robot, [f"{first}=0.2"], rate_limit=[f"{first}=0.1"])
    spaced = step_limits(robot, [f" {first} = 0.1"], [f" {first} , {second} = 0.2"], [f"{second} = 0.07 "])
    assert spaced == step_limits(robot, [f"{first}=0.1"], [f"{first},{second}=0.2"], [f"{second}=0.07"])
    with pytest.raises(InputError, match=rf"--fix {first} = 0.1: {first} has a value already; name each action once"):
        step_limits(robot, [f"{first}=0", f"{first} = 0.1"])
    with pytest.raises(InputError, match=r"--rate-limit .*has a value already"):
        step_limits(robot, rate_limit=[f"{first}=0.1", f"{first}=0.1"])
    mixed = replace(robot, action_units=("m", "rad"))
    with pytest.raises(InputError, match=r"in m, .* in rad have no norm in common"):
        step_limits(mixed, ball=[f"{first},{second}=0.1"])
    step_limits(replace(robot, action_units=("m", "")), ball=[f"{first},{second}=0.1"])  # not known: not refused


def test_a_preset_and_limits_are_refused_together(tiny_model: Path) -> None:
    world = WorldModel.from_pretrained(tiny_model)
    given: dict[str, Any] = {"horizon": 1, "samples": None, "iterations": None, "elites": None, "settings": []}
    with pytest.raises(InputError, match="--ball, --rate-limit"):
        planner_and_control(world, "vjepa2-ac", "cem", limits=BALL, **given)
    planner, control = planner_and_control(world, None, "cem", limits=BOTH, **given)
    assert isinstance(planner.bounds, Limits) and control.limits == BOTH


def test_settings_never_mix_and_old_ones_are_what_they_were(tiny_model: Path) -> None:
    world = WorldModel.from_pretrained(tiny_model)
    stage = Stage(SpelledRobot, "spelled")

    def played(**more: Any) -> dict[str, Any]:
        return planning(world, stage, "one", PlannerOptions(**more), 256).played

    plain = played()
    assert not {"ball", "rate_limit", "fix", "limits"} & (plain.keys() | plain["control"].keys())
    first, second = world.config.robot.action_names
    for name, said in (("ball", f"{first},{second}=0.2"), ("rate_limit", f"{first}=0.1"), ("fix", f"{first}=0.1")):
        assert played(**{name: (said,)}) == plain | {name: [said]}
    with pytest.raises(InputError, match="lead out"):
        guards = Guards((), (ChangeLimits((1.0, 1.0), (np.inf, np.inf)),))
        planning(world, stage, "one", PlannerOptions(ball=(f"{first}=0.2",)), 256, guards=guards)
