"""What a world model says of its own search: taken where nothing else is said, and kept with the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import save_tiny_model

from vjepa_mpc.cli.building import CEM_DEFAULTS, leg_bounds, planner_and_control
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.world_model import SearchDefaults, WorldModel

SAID = SearchDefaults(samples=40, iterations=3, horizon=2, running=0.0, nearest=0.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WorldModel:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    WorldModel.from_pretrained(save_tiny_model(folder)).searched(SAID).save_pretrained(folder)
    return WorldModel.from_pretrained(folder)


def chosen(model: WorldModel, planner: str = "cem", **said: Any) -> tuple[Any, Any]:
    given = {"horizon": None, "samples": None, "iterations": None, "elites": None, "settings": (), **said}
    made, control = planner_and_control(model, None, planner, **given)
    return made.settings, control


def test_it_is_taken_where_nothing_else_is_said(model: WorldModel) -> None:
    assert model.config.search == SAID
    settings, control = chosen(model)
    assert (settings.samples, settings.iterations, settings.elites) == (40, 3, CEM_DEFAULTS["elites"])
    assert (control.horizon, control.running, control.nearest) == (2, 0.0, 0.5)


def test_what_is_said_goes_before_it(model: WorldModel) -> None:
    settings, control = chosen(model, samples=9, horizon=3, elites=4)
    assert (settings.samples, settings.iterations, settings.elites, control.horizon) == (9, 3, 4, 3)
    settings, _ = chosen(model, elites=4, settings=("samples=11",))
    assert settings.samples == 11


def test_it_is_of_straight_steps_and_of_cem(model: WorldModel) -> None:
    bent, _ = chosen(model, legs=2, leg_steps=1)
    icem, _ = chosen(model, planner="icem")
    assert bent.samples != 40 and icem.samples != 40


def test_model_steps_can_be_planned_short(model: WorldModel) -> None:
    """As said, or as the model is used to; ways of several legs share a model step out as ever."""
    whole = model.action_bounds
    strided = WorldModel(replace(model.config, stride=4, search=SearchDefaults(leg_steps=2)), model.encoder)
    wide = strided.action_bounds
    for said, share in ((None, 0.5), (1, 0.25), (4, 1.0)):
        bounds = leg_bounds(strided, 1, said)
        assert torch.equal(bounds.high, share * wide.high) and torch.equal(bounds.low, share * wide.low)
        assert chosen(strided, leg_steps=said)[1].leg_steps == (said or 2)
    assert torch.equal(leg_bounds(strided, 2).high, 0.5 * wide.high)
    assert torch.equal(leg_bounds(model, 1).high, whole.high)


def test_what_it_cannot_be_is_refused(model: WorldModel) -> None:
    with pytest.raises(InputError, match="samples of 1 or more, not 0"):
        SearchDefaults(samples=0)
    with pytest.raises(InputError, match="running weight"):
        SearchDefaults(running=-1.0)
    with pytest.raises(InputError, match="nearest frame"):
        SearchDefaults(nearest=2.0)
    with pytest.raises(InputError, match="7 steps ahead is beyond the 6"):
        replace(model.config, search=SearchDefaults(horizon=7))


def test_a_folder_with_another_search_is_refused_by_name(model: WorldModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    text = (tmp_path / "m" / "config.json").read_text()
    (tmp_path / "m" / "config.json").write_text(text.replace('"samples": 40', '"samples": 0'))
    with pytest.raises(InputError, match="samples of 1 or more"):
        WorldModel.from_pretrained(tmp_path / "m")
