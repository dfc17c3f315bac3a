"""First plans in pictures: the episode's own plan, imagined frames by the likest of pictures that were really taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from solvable_world import SpelledRobot, settings, solvable_model

from vjepa_mpc.evaluation import Arena, run_pair
from vjepa_mpc.imagined import Gallery, draw, first_plan
from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.policies import PlannedPolicy
from vjepa_mpc.robots.base import Observation
from vjepa_mpc.robots.reacher import ReachTask
from vjepa_mpc.robots.tasks import Pair

TASK = ReachTask(step_budget=6)
PAIR = Pair((0.0, 0.5), (0.3, 0.8))


class Remembering(PlannedPolicy):
    """Keeps its first action."""

    first: np.ndarray | None = None

    def act(self, observation: Observation) -> np.ndarray:
        action = super().act(observation)
        self.first = action if self.first is None else self.first
        return action


@pytest.fixture(scope="module")
def policy() -> Remembering:
    model = solvable_model(reached=0.02, history=2)
    planner = CEM(model.action_bounds, CEMSettings(samples=64, elites=8, iterations=8))
    return Remembering(model, planner, settings(horizon=2, hold_steps=2))


def test_the_first_plan_is_the_episodes_own(policy: Remembering) -> None:
    robot = SpelledRobot()
    plan = first_plan(policy, robot, TASK, (3, PAIR), seed=5, places=8)
    run_pair(Arena(robot, TASK, policy, 5), (3, PAIR), steps=1)
    other = first_plan(policy, robot, TASK, (4, PAIR), seed=5, places=8)
    assert policy.first is not None and np.array_equal(plan.decision.action, policy.first)
    assert not np.array_equal(other.decision.action, policy.first)


def test_what_is_imagined_is_shown_by_the_place_that_looks_like_it(policy: Remembering) -> None:
    robot = SpelledRobot()
    plan = first_plan(policy, robot, TASK, (3, PAIR), seed=5, places=8)
    seen = robot.place(np.array(PAIR.goal)).images[policy.model.config.camera]
    assert np.array_equal(plan.goal, seen)
    assert np.array_equal(plan.shown[-1], seen)  # the plan ends at the goal, and no other place is nearer
    assert plan.costs[-1] < plan.decision.latent_cost and plan.away[-1] == pytest.approx(plan.costs[-1], rel=1e-5)


def test_the_likest_is_the_nearest_in_latent_space() -> None:
    latents = torch.arange(5.0)[:, None, None].expand(5, 2, 3)
    pictures = np.zeros((5, 4, 4, 3), np.uint8)
    some = Gallery(pictures, latents).likest(torch.tensor([3.2, 0.0])[:, None, None].expand(2, 2, 3))
    assert [number for number, _ in some] == [3, 0]
    assert [away for _, away in some] == pytest.approx([0.2, 0.0], abs=1e-6)


def test_it_is_drawn(policy: Remembering, tmp_path: Path) -> None:
    from PIL import Image

    plan = first_plan(policy, SpelledRobot(), TASK, (3, PAIR), seed=5, places=4)
    draw(plan, tmp_path / "plan.png")
    with Image.open(tmp_path / "plan.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10
