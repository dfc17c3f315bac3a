"""`vjepa-mpc tasks check`: sound tasks pass, planted defects are found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.robots.task import Script
from vjepa_mpc.robots.tasks import make_manifest
from vjepa_mpc.robots.two_rooms import TwoRooms, TwoRoomsTask
from vjepa_mpc.sanity import check_task


class Crooked(TwoRooms):
    """Says twice what it did, takes NaN for nothing, draws from nobody's seed, and is not where it says it is."""

    def apply(self, action: np.ndarray) -> np.ndarray:
        return 2.0 * super().apply(np.nan_to_num(action, posinf=0.0))

    def reset(self, seed: int | None = None) -> Any:
        return super().reset(int(np.random.default_rng().integers(1 << 30)))

    def true_state(self) -> np.ndarray:
        return super().true_state() + 0.01


@dataclass(frozen=True)
class Idle(TwoRoomsTask):
    """Its script does nothing."""

    def script(self, goal: np.ndarray) -> Script:
        return lambda state: np.zeros(2)


def test_a_sound_task_has_no_faults() -> None:
    found = check_task(partial(TwoRooms, camera_size=16), TwoRoomsTask(), seed=5, steps=60, pairs=2)
    assert found.faults == () and found.repeats and found.held == 2 and found.unrest == 0.0
    assert found.as_told is not None and found.as_told > 0.6 and found.deepest_m is not None and found.deepest_m < 1e-3


def test_planted_defects_are_found() -> None:
    found = check_task(partial(Crooked, camera_size=16), Idle(), seed=5, steps=60, pairs=2)
    assert not found.repeats and found.held == 0
    faults = "; ".join(found.faults)
    for said in (
        "it is in", "[nan, nan] is not refused", "its units are not true", "ran differently", "holds 0 of 2 pairs",
    ):  # fmt: skip
        assert said in faults, said
    assert "[0.0, 0.0, 0.0] is not refused" not in faults


def test_distances_that_are_no_numbers_are_loud() -> None:
    with pytest.raises(NotFiniteError, match="two-rooms judges step 2 to be nan m"):
        TwoRoomsTask().held([0.1, float("nan"), 0.0])


def test_starts_inside_the_success_region_are_refused() -> None:
    class There(TwoRoomsTask):
        def sample_pair(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            start, _ = super().sample_pair(generator)
            return start, start

    with pytest.raises(InputError, match="inside the success region"):
        check_task(partial(TwoRooms, camera_size=16), There(), steps=24, pairs=1)
    with pytest.raises(InputError, match="inside the success region"):
        make_manifest("mine", 1, 0, task=There())  # a file that could not be loaded
