"""The shifted plan."""

from __future__ import annotations

import pytest
import torch

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.testing import check_shift
from vjepa_mpc.planners.warm_start import shift_plan


def test_shift_drops_the_first_and_holds_at_the_end() -> None:
    check_shift(shift_plan)
    actions = torch.tensor([[[1.0], [2.0], [3.0]]])
    assert shift_plan(actions, torch.tensor([9.0])).flatten().tolist() == [2.0, 3.0, 9.0]
    assert actions.flatten().tolist() == [1.0, 2.0, 3.0]


def test_shift_keeps_the_plans_type() -> None:
    shifted = shift_plan(torch.zeros(1, 2, 1, dtype=torch.float64), torch.ones(1))
    assert shifted.dtype == torch.float64


def test_a_hold_of_another_size_is_refused() -> None:
    # The type checks of the tests hear it first, as a TypeError.
    with pytest.raises((InputError, TypeError)):
        shift_plan(torch.zeros(1, 2, 3), torch.zeros(1))
