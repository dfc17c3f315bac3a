"""The world models that come with the package: each fits its task, says where it comes from, is small, and plans."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch

from vjepa_mpc.cli.building import SHIPPED_MODELS, load_model, planner_and_control, shipped_models
from vjepa_mpc.controller import Controller, ControllerState
from vjepa_mpc.robots.factory import find_task, make_robot
from vjepa_mpc.robots.tasks import load_manifest

CPU = torch.device("cpu")
WITH_ENCODER = {"reacher": 15e6, "two-rooms": 6e6}
SHARING = 4e6  # bytes of a model whose encoder is another's


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_fits_its_task_and_plans(name: str) -> None:
    weights = (SHIPPED_MODELS / name / "model.safetensors").stat().st_size
    assert weights <= WITH_ENCODER.get(name, SHARING)
    model, task = load_model(name, CPU), find_task(name)
    model.check_fits(task.spec)
    told = model.config.training
    assert told["steps"] > 0 and told["encoder"]["objective"] and model.config.calibration is not None
    planner, control = planner_and_control(
        model, None, "cem", horizon=None, samples=12, iterations=1, elites=4, settings=()
    )
    if task.missing:
        pytest.skip(task.missing)
    pair = load_manifest("dev", task).pairs[0]
    with closing(make_robot(name, camera_size=model.config.robot.cameras[model.config.camera].height)) as robot:
        robot.set_appearance(pair.appearance)
        goal = robot.place(np.asarray(pair.goal)).images[model.config.camera]
        seen = robot.place(np.asarray(pair.start))
        controller = Controller(model, planner, goal, control, torch.Generator().manual_seed(0))
        decision, _ = controller.step(seen, ControllerState())
    assert np.isfinite(decision.action).all() and decision.latent_cost > model.config.calibration.reached_cost


