"""The memory of what came to less than imagined: what it keeps, what it holds against, and a wall it leads around."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from solvable_world import SpelledRobot, picture, settings, solvable_model

from vjepa_mpc.controller import Controller, ControllerState
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import over_horizon
from vjepa_mpc.lockstep import decide_together, see_together
from vjepa_mpc.loop import StepRecord, run_episode
from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.robots.base import Observation
from vjepa_mpc.robots.panda import panda_spec
from vjepa_mpc.rollout import Rollout
from vjepa_mpc.short_term_memory import ALIKE, NEAR, Remembered, ShortTermMemory
from vjepa_mpc.states import JointStates, PoseStates
from vjepa_mpc.world_model import WorldModel

LIMITS = torch.tensor([0.3, 0.3])
GOAL = np.array([1.1, 0.0])
OWN = torch.zeros(1, dtype=torch.long)


class WalledRobot(SpelledRobot):
    """A wall at 0.45 from -0.5 to 0.5 that the model knows nothing of; what runs into it stays where it was."""

    def apply(self, action: np.ndarray) -> np.ndarray:
        before = self.state
        done = super().apply(action)
        if before[0] < 0.45 <= self.state[0] and abs(self.state[1]) < 0.5:
            self.state = before
        return done


def controller(model: WorldModel | None = None, **changes: Any) -> Controller:
    model = model or solvable_model()
    planner = CEM(model.action_bounds, CEMSettings(samples=48, elites=6, iterations=6))
    return Controller(model, planner, picture(GOAL), settings(**changes), torch.Generator().manual_seed(0))


def played(**changes: Any) -> list[StepRecord]:
    return run_episode(controller(**changes), WalledRobot((0.0, 0.05)), max_steps=60)


def test_a_wall_that_the_model_does_not_know_is_gone_around_once_it_is_felt() -> None:
    assert not any(record.reached for record in played())
    records = played(remember=1.0)
    assert records[-1].reached
    assert records[-1].terms["goal"] < 0.05
    assert any("remembered" in record.terms for record in records)


def test_without_disappointments_a_run_with_memory_is_the_run_without_to_the_bit() -> None:
    runs = []
    for weight in (0.0, 1.0):
        one = controller(remember=weight)
        decision, _ = one.step(SpelledRobot((1.0, 0.5)).observe(), ControllerState())
        runs.append((decision.action, decision.plan.cost))
        assert set(decision.terms) == {"goal", "state_box"}
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


def test_it_keeps_what_cost_more_than_imagined_with_state_action_and_loss() -> None:
    one, state = controller(remember=1.0), ControllerState()
    pushed = np.array([0.3, 0.0])
    for place in ([0.4, 0.05], [0.4, 0.05], [0.4, 0.05]):
        robot = SpelledRobot(tuple(place))
        _, state = one.see(robot.observe(), state)
        _, state = one.decide(one.see(robot.observe(), ControllerState())[0], state)
        state = one.applied(pushed, state)
    assert state.memory is not None and len(state.memory) == 2  # the first view follows nothing
    np.testing.assert_allclose(state.memory.states, [[0.4, 0.05]] * 2, atol=1e-3)
    np.testing.assert_allclose(state.memory.actions, [pushed] * 2)
    np.testing.assert_allclose(state.memory.losses, [0.15, 0.15], atol=1e-3)  # 0.3 rad nearer, of two joints


def test_what_goes_better_than_imagined_and_holding_still_leave_nothing() -> None:
    empty = ShortTermMemory.empty(torch.zeros(2), LIMITS)
    assert empty.with_outcome(torch.zeros(2), LIMITS, -0.1) is empty
    assert empty.with_outcome(torch.zeros(2), LIMITS, 0.0) is empty
    assert empty.with_outcome(torch.zeros(2), torch.zeros(2), 0.5) is empty
    assert len(empty.with_outcome(torch.zeros(2), LIMITS, 0.5)) == 1


def against(memory: ShortTermMemory, start: list[float], actions: Any, **changes: Any) -> torch.Tensor:
    space = solvable_model().states
    moves = torch.tensor(actions, dtype=torch.float32)[None]
    states = torch.tensor(start) + moves.cumsum(2)
    rollout = Rollout(states[..., None, :], states)
    return Remembered(memory, torch.tensor(start), space, LIMITS, **changes)(rollout, moves, OWN)[0]


def test_what_it_holds_against_a_future_by_its_formula() -> None:
    memory = ShortTermMemory.empty(torch.zeros(2), LIMITS).with_outcome(
        torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.0]), 0.5
    )
    again, half, double = [[0.3, 0.0]], [[0.15, 0.0]], [[0.6, 0.0]]
    askew, back, still = [[0.3, 0.3]], [[-0.3, 0.0]], [[0.0, 0.0]]
    found = against(memory, [0.1, 0.2], [again, half, double, askew, back, still])
    np.testing.assert_allclose(found, [0.5, 0.25, 0.5, 0.5 * math.cos(math.pi / 4) ** ALIKE, 0, 0], atol=1e-6)
    aside = against(memory, [0.1, 0.2 + 0.3 * NEAR], [again])
    np.testing.assert_allclose(aside, [0.5 * math.exp(-0.5)], atol=1e-6)


def test_losses_add_up_and_stay_for_the_frames_after() -> None:
    memory = ShortTermMemory.empty(torch.zeros(2), LIMITS)
    for _ in range(2):
        memory = memory.with_outcome(torch.zeros(2), torch.tensor([0.3, 0.0]), 0.5)
    first, later = [[0.3, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.3, 0.0]]
    found = against(memory, [0.0, 0.0], [first, later], weight=2.0, running=0.5)
    frames = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
    np.testing.assert_allclose(found, 2.0 * over_horizon(frames, 0.5, 0.0)[0], atol=1e-6)


def test_a_periodic_joint_is_near_across_its_seam() -> None:
    memory = ShortTermMemory.empty(torch.zeros(2), LIMITS).with_outcome(
        torch.tensor([math.pi - 0.01, 0.0]), torch.tensor([0.3, 0.0]), 1.0
    )
    space = solvable_model().states
    assert isinstance(space, JointStates) and space.periodic
    assert float(against(memory, [-math.pi + 0.01, 0.0], [[[0.3, 0.0]]])) > 0.9


def test_poses_are_compared_as_rigid_motions() -> None:
    space, limits = PoseStates(panda_spec()), torch.tensor(panda_spec().action_high)
    pose = torch.tensor([0.5, 0.0, 0.3, math.pi - 0.01, 0.0, 0.0, 0.5])
    other = pose.clone()
    other[3] = -math.pi + 0.01
    action = limits.clone()
    memory = ShortTermMemory.empty(pose, limits).with_outcome(pose, action, 1.0)
    moves = action.expand(1, 1, 1, 7)
    rollout = Rollout(torch.zeros(1, 1, 1, 1, 1), moves + pose)
    assert float(Remembered(memory, other, space, limits)(rollout, moves, OWN)) > 0.9


def test_episodes_in_lockstep_remember_each_their_own() -> None:
    robots = [WalledRobot((0.4, 0.05)), SpelledRobot((0.4, 0.05))]
    model = solvable_model()
    ones = [controller(model, remember=1.0) for _ in robots]
    states: list[ControllerState] = [ControllerState(), ControllerState()]
    for _ in range(3):
        views: list[Observation] = [robot.observe() for robot in robots]
        seen = see_together(ones, views, states)
        decided = decide_together(ones, [view for view, _ in seen], [state for _, state in seen])
        states = [
            one.applied(robot.apply(decision.action), state)
            for one, robot, (decision, state) in zip(ones, robots, decided, strict=True)
        ]
    kept = [float(state.memory.losses.sum()) for state in states if state.memory is not None]
    assert kept[0] > 0.1 > 0.001 > kept[1]


def test_a_weight_that_is_none_is_refused() -> None:
    for weight in (-0.1, math.inf, math.nan):
        with pytest.raises(InputError, match="remembered"):
            settings(remember=weight)
