"""Guardrails from the command line's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from solvable_world import solvable_model

from vjepa_mpc.cli.building import SHIPPED_MODEL, control_settings, leg_bounds
from vjepa_mpc.cli.guarding import GuardOptions, make_guards, task_regions
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.governors import ChangeLimits, Watchdog
from vjepa_mpc.guardrails import KeepOut, PoseBox, Workspace
from vjepa_mpc.robots.keep_out import KeepOutTask

HERE = Path(__file__).parent


def test_words_become_guardrails_with_names_of_their_own() -> None:
    options = GuardOptions(
        keep_out=("0.14,0,0.06", "0 0 0.01"), margin=0.02, workspace="-1,-1,1,1", pose_box="-3,-1,3,1",
        change="0.1,0.2", watchdog=7,
    )  # fmt: skip
    assert options.any and not GuardOptions().any
    guards = make_guards(options, solvable_model(), HERE)
    first, second, workspace, box = guards.rails
    assert isinstance(first, KeepOut) and (first.centre, first.radius, first.margin) == ((0.14, 0.0), 0.06, 0.02)
    assert (first.name, second.name) == ("keep_out_1", "keep_out_2")
    assert isinstance(workspace, Workspace) and workspace.high == (1.0, 1.0)
    assert isinstance(box, PoseBox) and box.low == (-3.0, -1.0)
    assert guards.governors == (Watchdog(7), ChangeLimits((0.1, 0.2), (float("inf"),) * 2))
    assert options.record()["watchdog"] == 7 and "surprise" not in options.record()


def test_a_tasks_regions_are_what_keep_out_takes() -> None:
    (words,) = task_regions(KeepOutTask())
    (rail,) = make_guards(GuardOptions(keep_out=(words,)), solvable_model(), HERE).rails
    assert isinstance(rail, KeepOut) and rail.centre == (0.14, 0.0) and rail.radius == 0.06


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_out": ("0.1,0.2,0.3,0.05",)}, "has 4 of 3 numbers: the region's centre, then its radius, in m"),
        ({"keep_out": ("0.1,0.2",)}, "has 2 of 3 numbers: the region's centre, then its radius, in m"),
        ({"keep_out": ("",)}, "has 0 of 3 numbers"),
        ({"workspace": "0,0,0,1,1,1"}, "has 6 of 4 numbers: the low corner, then the high one"),
        ({"keep_out": ("a,b",)}, "not a list of numbers"),
        ({"keep_out": ("0,0,-1",)}, "positive radius"),
        ({"workspace": "0,0,1"}, "has 3 of 4 numbers: the low corner, then the high one"),
        ({"pose_box": "0,1"}, "takes 4 numbers"),
        ({"change": "0.1"}, "takes 2"),
        ({"surprise": True}, "vjepa-mpc calibrate"),
    ],
)
def test_what_cannot_be_guarded_is_refused_in_a_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_guards(GuardOptions(**options), solvable_model(), HERE)


def test_the_shipped_models_thresholds_are_not_looked_for_in_the_package() -> None:
    for options in (GuardOptions(surprise=True), GuardOptions(avoid=(HERE.parent / "examples" / "goal.png",))):
        with pytest.raises(InputError, match=r"--out guardrails.json`, and give --thresholds g") as refused:
            make_guards(options, solvable_model(), SHIPPED_MODEL)
        assert str(SHIPPED_MODEL) not in str(refused.value)
    with pytest.raises(InputError, match=r"no thresholds at mine\.json"):
        make_guards(GuardOptions(surprise=True, thresholds=Path("mine.json")), solvable_model(), SHIPPED_MODEL)


def test_legs_share_a_model_steps_bounds_and_deadlines_are_times() -> None:
    model = solvable_model(stride=6)
    assert leg_bounds(model, 1).high.tolist() == model.action_bounds.high.tolist()
    assert leg_bounds(model, 3).high.tolist() == pytest.approx([0.6, 0.6])
    assert control_settings(model, horizon=2, running=1.0, deadline_s=0.5).budget.deadline_s == 0.5
    with pytest.raises(InputError, match="no time to plan"):
        control_settings(model, horizon=2, running=1.0, deadline_s=0.0)
