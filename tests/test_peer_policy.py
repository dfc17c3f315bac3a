"""Our controller in stable-worldmodel's loop, which is imitated: every episode is its own, whatever the loop shows."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from peer_world import LIMIT, Loop, Wanderer
from solvable_world import SIZE, picture, settings, solvable_model

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.peer_policy import InfoNames, NoOpPeer, PlannedPeer, RandomPeer
from vjepa_mpc.peer_protocols import Recordings
from vjepa_mpc.planners.cem import CEM, CEMSettings

SETTERS: list[dict[str, Any]] = [
    {"method": "_set_state", "args": {"state": {"value": "proprio", "in_dataset": True}}},
    {"method": "_set_goal_state", "args": {"goal_state": {"value": "goal_proprio", "in_dataset": True}}},
]


def planned(seed: int = 0, **changes: Any) -> PlannedPeer:
    model = solvable_model(history=2)
    planner = CEM(model.action_bounds, CEMSettings(samples=16, elites=4, iterations=3))
    return PlannedPeer(model, planner, settings(horizon=2), seed=seed, **changes)


def world(count: int, policy: Any) -> Loop:
    made = Loop("spelled", count, (SIZE, SIZE))
    made.set_policy(policy)
    return made


@pytest.fixture(scope="module")
def data() -> Recordings:
    recordings = Recordings()
    world(3, Wanderer(0)).collect(recordings, 3, 5, False)
    return recordings


FROM_DATA: dict[str, Any] = {
    "episodes_idx": [0, 1, 2], "start_steps": [3, 0, 9], "goal_offset": 6, "eval_budget": 12, "callables": SETTERS,
}  # fmt: skip


def test_it_reaches_goals_that_floors_do_not_and_every_episode_has_its_own_memory() -> None:
    policy = planned()
    played = world(3, policy)
    found = played.evaluate(episodes=5, seed=1)
    assert found["episode_successes"].all() and len(played.sent) < 40
    assert 5 <= policy._begun <= 8  # not one a step, though the flag of new episodes stays up
    assert "_needs_flush" in played.infos
    for floor in (RandomPeer(0), NoOpPeer()):
        assert not world(3, floor).evaluate(episodes=3, seed=1)["episode_successes"].any()


def test_starts_and_goals_of_a_data_set(data: Recordings) -> None:
    policy = planned()
    played = world(3, policy)
    assert played.evaluate(data, **FROM_DATA)["episode_successes"].all()
    assert policy._begun == 3  # the data's count of steps, shown first, is no new episode
    assert played.evaluate(data, **FROM_DATA)["episode_successes"].all()  # told nothing in between
    assert policy._begun == 6


def test_actions_are_those_of_the_environment_alone(data: Recordings) -> None:
    together = world(3, planned(seed=4))
    together.evaluate(data, **FROM_DATA)
    for row in range(3):
        alone = world(1, planned(seed=4 + row))
        one = {**FROM_DATA, "episodes_idx": [row], "start_steps": [FROM_DATA["start_steps"][row]]}
        alone.evaluate(data, **one)
        mine = np.stack([sent[row] for sent in together.sent])
        np.testing.assert_allclose(mine[: len(alone.sent)], np.concatenate(alone.sent), atol=1e-4)
        assert not mine[len(alone.sent) :].any()  # over, and held


def info(count: int = 2, **changes: Any) -> dict[str, Any]:
    states = np.zeros((count, 1, 2))
    shown = np.stack([picture(state[0]) for state in states])[:, None]
    return {"pixels": shown, "goal": shown, "proprio": states, "step_idx": np.zeros((count, 1), int), **changes}


def environments(space: Any, count: int = 2) -> Any:
    return SimpleNamespace(num_envs=count, single_action_space=space)


def test_limits_map_onto_limits() -> None:
    policy = planned()
    policy.set_env(environments(gymnasium.spaces.Box(np.array([0.0, -3.0]), np.array([2.0, 3.0]), dtype=np.float64)))
    far = np.stack([picture(np.array([2.0, -2.0]))] * 2)[:, None]
    sent = policy.get_action(info(goal=far, terminated=np.array([[False], [True]])))
    player = policy._players[0]
    assert player.state.actions is not None and list(policy._players) == [0]
    share = player.state.actions[-1].numpy() / LIMIT  # as the model has it
    assert np.abs(share).max() > 0.2
    assert sent == pytest.approx(np.array([[1 + share[0], 3 * share[1]], [1.0, 0.0]]), abs=1e-5)  # the second is held
    assert policy.get_action(info(truncated=np.ones((2, 1), bool))) == pytest.approx(np.array([[1.0, 0.0]] * 2))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: {name: value for name, value in info().items() if name != "goal"}, r"no 'goal' \(World\.evaluate"),
        (lambda: info(pixels=np.zeros((2, 1, 4, 4, 3), np.uint8)), r"4 x 4 pixels.*image_shape=\(8, 8\)"),
        (lambda: info(pixels=np.zeros((2, 1, 8, 16, 3), np.uint8)), "8 x 16 pixels"),
        (lambda: info(goal=np.zeros((2, 1, 3, 8, 8), np.float32)), "without image_transform"),
        (lambda: info(pixels=np.zeros((3, 1, 8, 8, 3), np.uint8)), "of 2 environments"),
        (lambda: info(proprio=np.zeros((2, 1, 3))), "3 numbers, and this model's state has 2"),
        (lambda: info(proprio=np.full((2, 1, 2), math.nan)), "not finite"),
        (lambda: {name: value for name, value in info().items() if name != "step_idx"}, "no 'step_idx'"),
    ],
)
def test_what_it_cannot_take_is_said(given: Any, words: str) -> None:
    policy = planned()
    with pytest.raises(InputError, match=r"World\.set_policy"):
        policy.get_action(info())
    policy.set_env(environments(gymnasium.spaces.Box(-1.0, 1.0, (2,))))
    with pytest.raises(InputError, match=words):
        policy.get_action(given())


def test_actions_of_another_kind_are_refused() -> None:
    for space, words in (
        (gymnasium.spaces.Box(-1.0, 1.0, (5,)), "takes 5 action values and this model, trained for reacher, gives 2"),
        (gymnasium.spaces.Box(-math.inf, math.inf, (2,)), "bounded vector"),
        (gymnasium.spaces.Discrete(4), "bounded vector"),
    ):
        with pytest.raises(InputError, match=words):
            planned().set_env(environments(space))


def test_a_state_is_read_from_several_entries() -> None:
    policy = planned(names=InfoNames(state=("first", "second")))
    policy.set_env(environments(gymnasium.spaces.Box(-1.0, 1.0, (2,))))
    given = info(first=np.full((2, 1), 0.25), second=np.full((2, 1, 1), -0.5))
    policy.get_action(given)
    states = policy._players[1].state.states
    assert states is not None and states[-1].tolist() == [0.25, -0.5]
