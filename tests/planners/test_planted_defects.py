"""The contract suite catches what it is for: each defect it ships makes the named check fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vjepa_mpc.planners import testing, warm_start
from vjepa_mpc.planners.testing.defects import DEFECTS, PLANNERS, Defect, goes_unseen

CASES = [
    pytest.param(defect, name, id=f"{name}-{defect.name}") for defect in DEFECTS for name in defect.planners
]


@pytest.mark.parametrize(("defect", "name"), CASES)
def test_a_planted_defect_is_caught(defect: Defect, name: str) -> None:
    # Without the defect the same check passes for the same planner: see test_contract.py.
    assert not goes_unseen(defect, PLANNERS[name])


def test_the_defects_that_must_be_caught_are_in_the_list() -> None:
    planted = {defect.plant.__name__ for defect in DEFECTS}
    assert {
        "dropped_clip", "nan_ranked_first", "forgotten_generator", "wrong_shift", "std_is_a_variance",
        "best_that_forgets",
    } <= planted  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        lambda actions, hold: torch.cat((actions[:, :-1], hold.expand_as(actions[:, :1])), dim=1),
        lambda actions, hold: torch.cat((hold.expand_as(actions[:, :1]), actions[:, :-1]), dim=1),
        lambda actions, hold: actions.roll(-1, dims=1),
        lambda actions, hold: torch.cat((actions[:, 1:], actions[:, -1:]), dim=1),
    ],
    ids=["drops-the-last", "wrong-way", "first-again", "repeats-the-last"],
)
def test_a_wrong_shift_is_caught(wrong: Callable[..., torch.Tensor]) -> None:
    testing.check_shift(warm_start.shift_plan)
    with pytest.raises(AssertionError):
        testing.check_shift(wrong)
