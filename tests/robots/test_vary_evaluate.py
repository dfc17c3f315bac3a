"""`evaluate --vary`: every pair in a world of its own, the same one again for the same pair."""

from __future__ import annotations

import numpy as np

from vjepa_mpc.evaluation import ArenaSetup, run_pair
from vjepa_mpc.policies import NoOpPolicy
from vjepa_mpc.robots.push_t import PushT, PushTTask
from vjepa_mpc.robots.tasks import load_manifest


class Seeing(NoOpPolicy):
    """Keeps the goal's picture."""

    def begin(self, goal: np.ndarray, goal_state: np.ndarray, seed: int) -> None:
        super().begin(goal, goal_state, seed)
        self.goal = goal.astype(int)


def test_pairs_are_varied_by_their_numbers() -> None:
    task = PushTTask(step_budget=3)
    pair = load_manifest("push-t-dev").pairs[0]
    with PushT(camera_size=32) as robot:

        def goal(index: int, levels: dict[str, float] | None) -> tuple[np.ndarray, np.ndarray]:
            policy = Seeing(task.spec)
            run_pair(ArenaSetup(lambda: robot, lambda: policy, task, 0, levels)(), (index, pair))
            return policy.goal, robot._model.body_mass.copy()

        plain, mass = goal(0, None)
        varied, varied_mass = goal(0, {"colors": 1.0, "mass": 1.0})
        other, _ = goal(1, {"colors": 1.0, "mass": 1.0})
        again, again_mass = goal(0, {"colors": 1.0, "mass": 1.0})
        heavier, _ = goal(0, {"mass": 1.0})
    assert np.abs(varied - plain).max() > 20 and np.abs(varied - other).max() > 20
    assert np.array_equal(varied, again) and np.array_equal(varied_mass, again_mass)
    assert not np.array_equal(varied_mass, mass) and np.array_equal(heavier, plain)
