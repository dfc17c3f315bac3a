"""The reacher with a forbidden disc: pairs, script, and what counts as having been inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.intervals import upper_bound
from vjepa_mpc.robots.factory import find_task
from vjepa_mpc.robots.keep_out import KeepOutTask
from vjepa_mpc.robots.reacher import ReachTask, fingertips
from vjepa_mpc.robots.tasks import load_manifest

NAME = "vjepa_mpc.robots.keep_out:KeepOutTask"


def test_the_place_is_the_fingertip_and_the_intrusion_its_depth_in_the_disc() -> None:
    task = KeepOutTask()
    for state in np.random.default_rng(0).uniform(-2, 2, (5, 2)):
        np.testing.assert_allclose(task.place(torch.tensor(state)).numpy(), ReachTask().fingertip(state)[:2])
        np.testing.assert_allclose(fingertips(state), ReachTask().fingertip(state)[:2])
    bent = np.array([-np.arccos(0.07 / 0.12), 2 * np.arccos(0.07 / 0.12)])  # the fingertip at (0.14, 0)
    assert task.intrusion(bent) == pytest.approx(0.06, abs=1e-9)
    assert task.intrusion(np.array([np.pi / 2, 0.0])) == 0.0
    assert ReachTask().intrusion(bent) == 0.0


@pytest.mark.parametrize("name", ["keep-out-dev", "keep-out-test"])
def test_frozen_pairs_lead_through_the_disc_and_the_script_round_it(name: str) -> None:
    task = find_task(NAME)
    assert isinstance(task, KeepOutTask)
    manifest = load_manifest(name, task)
    assert len(manifest.pairs) == (20 if "dev" in name else 100)
    for pair in manifest.pairs[:3]:
        start, goal = np.array(pair.start), np.array(pair.goal)
        assert task._direct_intrusion(start, goal) > 0.01
        script, state, distances = task.script(goal), start, []
        for _ in range(task.step_budget):
            action = script(state)
            assert np.abs(action).max() <= 0.3 + 1e-9
            assert all(task.intrusion(state + share * action) == 0 for share in np.linspace(0, 1, 9))
            state = state + action
            distances.append(task.distance(state, goal))
        assert task.held(distances)


def test_tasks_that_do_not_say_where_their_hand_is_are_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="does not say where"):
        find_task("push-t").place(torch.zeros(2))


def test_upper_bounds_are_clopper_and_pearsons() -> None:
    assert upper_bound(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100), abs=1e-9)
    assert upper_bound(3, 50) == pytest.approx(0.147837, abs=1e-5)  # the beta distribution's quantile
    assert upper_bound(5, 5) == 1.0
    with pytest.raises(InputError):
        upper_bound(2, 1)
