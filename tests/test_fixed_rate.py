"""At a fixed rate no plan is waited for: what is sent instead, what is recorded, and how late the ticks are."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from solvable_world import SpelledRobot, picture, settings, solvable_model
from test_controller import GOAL, GivenPlans, cem, controller

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.fixed_rate import FixedRate, Metronome, run_at_fixed_rate
from vjepa_mpc.loop import run_episode
from vjepa_mpc.planning import GoalController, reach


class After:
    """A plan that is done once it has been asked about so often."""

    def __init__(self, ticks: int, work: Callable[[], Any]) -> None:
        self.left, self.work = ticks, work

    def done(self) -> bool:
        self.left -= 1
        return self.left < 0

    def result(self) -> Any:
        return self.work()


def play(planner: Any, model: Any, robot: SpelledRobot, ticks: int, late: int) -> list[Any]:
    """Ticks of a loop whose plans come `late` ticks after their view (0: at once)."""
    loop = FixedRate(controller(planner, model), lambda work: After(late, work))
    seen = []
    for _ in range(ticks):
        seen.append(loop.tick(robot.observe()))
        loop.applied(robot.apply(seen[-1].action))
    return seen


@pytest.mark.parametrize("stride", [1, 3])
def test_with_plans_that_are_there_at_once_it_is_the_waiting_controller_to_the_bit(stride: int) -> None:
    model, waiting, ticking = solvable_model(stride=stride), SpelledRobot(), SpelledRobot()
    run_episode(controller(cem(model), model), waiting, max_steps=7, stop_when_reached=False)
    ticks = play(cem(model), model, ticking, 7, late=0)
    np.testing.assert_array_equal(waiting.asked, ticking.asked)
    assert {tick.executed for tick in ticks} == {"planned"} and {tick.age for tick in ticks} == {0}


def test_it_holds_the_pose_before_the_first_plan_and_then_goes_on_with_the_last_one() -> None:
    plan = [[0.1, 0.0], [0.2, 0.1], [0.3, -0.2]]
    robot = SpelledRobot()
    ticks = play(GivenPlans(plan), solvable_model(), robot, 7, late=2)
    assert [tick.executed for tick in ticks] == ["held", "held", "planned", "carried", "planned", "carried", "planned"]
    assert [tick.age for tick in ticks] == [None, None, 2, 3, 2, 3, 2]
    np.testing.assert_allclose(robot.asked[:2], 0.0)
    # The plan was made for two ticks ago: its third action is due, then nothing is left of it but to hold.
    np.testing.assert_allclose(robot.asked[2:4], [plan[2], [0.0, 0.0]], atol=1e-6)


def test_what_was_sent_meanwhile_is_taken_off_a_late_plan_of_long_steps() -> None:
    robot = SpelledRobot()
    ticks = play(GivenPlans([[0.7, -0.5], [0.0, 0.0], [0.0, 0.0]]), solvable_model(stride=3), robot, 4, late=1)
    # From rest 0.7 is begun at the second tick; at the third the next plan (0.7 from then) has 0.3 done already.
    np.testing.assert_allclose(robot.asked[:3], [[0.0, 0.0], [0.3, -0.3], [0.3, -0.2]], atol=1e-6)
    assert ticks[2].executed == "planned" and ticks[2].age == 1


def test_late_plans_reach_the_goal_too() -> None:
    model, robot = solvable_model(stride=3), SpelledRobot()
    ticks = play(cem(model), model, robot, 20, late=1)
    assert ticks[-1].reached and float(np.abs(robot.state - GOAL).mean()) < 0.02


class Slow(GivenPlans):
    """Takes its time over every plan, on the processor or asleep."""

    def plan(self, *parts: Any, **named: Any) -> Any:
        time.sleep(0.6)
        return super().plan(*parts, **named)


def test_actions_go_out_on_time_while_a_plan_takes_much_longer() -> None:
    model, robot = solvable_model(), SpelledRobot()
    loop = GoalController(
        model, Slow([[0.01, 0.0]] * 3), picture(GOAL), settings(), torch.Generator().manual_seed(0)
    )
    began = time.perf_counter()
    outcome = reach(loop, robot, max_steps=40, period_s=0.03)
    took = time.perf_counter() - began
    assert outcome.ended == "max_steps" and robot.calls[-1] == "stop" and robot.calls.count("apply") == 40
    assert took < 40 * 0.6 / 2, "plans were waited for"
    assert took > 40 * 0.03 * 0.9, "ticks were not a period apart"
    kinds = [record.executed for record in outcome.records]
    assert kinds[0] == "held" and "planned" in kinds and "carried" in kinds
    assert kinds.count("planned") < kinds.count("carried"), "as many plans as actions"
    assert all(record.late_ms >= 0 for record in outcome.records)


def test_an_error_of_the_planner_stops_the_robot() -> None:
    class Broken(GivenPlans):
        def plan(self, *parts: Any, **named: Any) -> Any:
            raise RuntimeError("no memory left")

    robot = SpelledRobot()
    with pytest.raises(RuntimeError, match="no memory"):
        run_at_fixed_rate(controller(Broken(), solvable_model()), robot, period_s=0.01, max_steps=50)
    assert robot.calls[-1] == "stop"


def test_the_metronome_keeps_time_and_makes_up_for_nothing() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    ticks = Metronome(0.1, lambda: now[0], sleep)
    late = []
    for work in (0.02, 0.04, 0.13, 0.02, 0.5, 0.02):
        late.append(round(ticks.wait(), 6))
        now[0] += work
    assert late == [0.0, 0.0, 0.0, 0.03, 0.0, 0.4]
    with pytest.raises(InputError, match="positive"):
        Metronome(0.0)
