"""`train --init`: going on from a world model, less memory by recomputing, and the memory that is said beforehand."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from moving_dot import ENCODER, PREDICTOR, make_store, training
from typer.testing import CliRunner

from vjepa_mpc.cli.main import build_app
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.clips import Clip
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.log_fit import check_numbers, check_period
from vjepa_mpc.pretrain.data import ClipBatches
from vjepa_mpc.pretrain.memory import training_memory
from vjepa_mpc.pretrain.predictor import PredictorLearner
from vjepa_mpc.pretrain.run import pretrain_encoder, train_world_model
from vjepa_mpc.pretrain.source import Source
from vjepa_mpc.pretrain.starting import continued_model, continued_settings
from vjepa_mpc.vjepa2_ac import franka_spec
from vjepa_mpc.world_model import WorldModel

CPU = torch.device("cpu")
LEARNING: dict[str, Any] = {"rollout_steps": 2, "l2": False, "shorter": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and a finished run of training on it."""
    place = tmp_path_factory.mktemp("init")
    store = make_store(place / "dots.zarr")
    pretrain_encoder(Source(store), place / "encoder", ENCODER, training(2), CPU)
    train_world_model(Source(store), place / "run", str(place / "encoder"), PREDICTOR, training(20, lr=3e-3), CPU)
    return place


def test_training_goes_on_from_a_model(place: Path, tmp_path: Path) -> None:
    """The predictor moves by a step; encoder, latent space and shape stay; thresholds are measured anew."""
    before = WorldModel.from_pretrained(place / "run" / "model")
    start = WorldModel.from_pretrained(place / "run" / "model")
    other = make_store(tmp_path / "mine.zarr", episodes=5, robot="mine", cameras={"top": (16, 16)})
    settings = continued_settings(start.config, frames=None, **LEARNING)
    assert (settings.frames, settings.stride, settings.history) == (3, 2, 1)
    result = train_world_model(Source(other), tmp_path / "out", start, settings, training(2, lr=1e-4), CPU)
    assert result.finished
    after = WorldModel.from_pretrained(tmp_path / "out" / "model")
    assert after.config.robot.name == "mine" and after.config.calibration is not None
    history = after.config.training
    known = [{**record, "sha256": ""} for record in (history["encoder"], before.config.training["encoder"])]
    assert known[0] == known[1] and len(known[0]) > 1 and len(history["init"]["sha256"]) == 64
    assert history["init"]["encoder"] == before.config.training["encoder"] and history["init"]["steps"] == 20
    assert after.config.predictor == before.config.predictor
    old, new = before.state_dict(), after.state_dict()
    assert after.config.familiar > before.config.familiar > 0  # what pictures are like is learned anew
    kept = [name for name in old if not name.startswith("familiarity.")]
    moved = {name for name in kept if not torch.equal(old[name], new[name])}
    assert moved and all(name.startswith("predictor.") for name in moved)
    assert max(float((old[name] - new[name]).abs().max()) for name in moved) < 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_units": ("deg", "deg")}, r"action_units = ('rad', 'rad'), and the store ('deg', 'deg')"),
        ({"state_names": ("y", "x")}, "state_names = ('x', 'y'), and the store ('y', 'x')"),
        ({"action_names": ("dy", "dx")}, "action_names = ('dx', 'dy'), and the store ('dy', 'dx')"),
        ({"state_periodic": (False, False)}, "state_periodic = (True, False), and the store (False, False)"),
        ({"control_period_s": 1 / 15}, "control_period_s = 0.1, and the store 0.06667: import the logs at its rate "
            "(`data import --rate 10`), or say --other-period"),
        ({"state_high": (4.0, 4.0)}, "state_high = [2.0, 2.0], and the store [4.0, 4.0]"),
        ({"action_low": (-0.2, -0.3)}, "action_low = [-0.3, -0.3], and the store [-0.2, -0.3], and joints are fed to "
            "the predictor in units of these: say --keep-limits"),
    ],
)  # fmt: skip
def test_another_kind_of_log_is_refused(place: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """What stays unsaid would change the predictor's inputs, or what they mean."""
    start = WorldModel.from_pretrained(place / "run" / "model")
    other = ZarrStore.open(make_store(tmp_path / "mine.zarr", episodes=1, **change))
    with pytest.raises(InputError, match=re.escape(message)):
        continued_model(start, other, "top")


def test_a_chosen_difference_is_gone_on_with(place: Path, tmp_path: Path) -> None:
    """Another period when allowed; limits that the model's enclose, whose features then stay as they were."""
    start = WorldModel.from_pretrained(place / "run" / "model")
    within = {"action_low": (-0.2, -0.3), "state_high": (1.5, 2.0), "state_low": (-2.0, -1.0)}
    other = ZarrStore.open(make_store(tmp_path / "a.zarr", episodes=1, control_period_s=0.2, **within))
    state, action = torch.tensor([[0.4, 0.9]]), torch.tensor([[0.1, -0.1]])
    before = start.states.action_features(action, state)
    model = continued_model(start, other, "top", other_period=True, keep_limits=True)
    assert torch.equal(model.states.action_features(action, state), before)
    assert model.config.robot.control_period_s == 0.2 and model.config.robot.action_low == (-0.3, -0.3)
    beyond = ZarrStore.open(make_store(tmp_path / "b.zarr", episodes=1, state_low=(-2.0, -2.5), state_high=(1.0, 1.0)))
    with pytest.raises(InputError, match=r"and the store \[-2.0, -2.5\].*leave logs beyond"):
        continued_model(model, beyond, "top", other_period=True, keep_limits=True)


def test_poses_are_the_same_by_either_name_and_whatever_their_limits() -> None:
    """Imports call the displacement of x d_x, and say of a pose's pitch that it does not wrap."""
    own = franka_spec()
    imported = replace(
        own, action_names=tuple(f"d_{name}" for name in own.state_names),
        state_periodic=tuple(name in ("roll", "yaw") for name in own.state_names), action_high=(0.01,) * 7,
    )  # fmt: skip
    check_numbers(own, imported, "or not")
    with pytest.raises(InputError, match=r"control_period_s = 0\.25, and the store 0\.06667"):
        check_period(own, replace(imported, control_period_s=1 / 15), "or not")
    swapped = ("d_y", "d_x", *imported.action_names[2:])
    with pytest.raises(InputError, match=r"and the store .'d_y', 'd_x'"):
        check_numbers(own, replace(imported, action_names=swapped), "or not")


def test_clips_longer_than_the_model_are_refused(place: Path) -> None:
    start = WorldModel.from_pretrained(place / "run" / "model")
    with pytest.raises(InputError, match="4 frames are longer than the 3"):
        continued_settings(start.config, frames=4, **LEARNING)


def step_of(model: WorldModel, recompute: bool) -> tuple[int, list[torch.Tensor]]:
    """What autograd keeps of one loss on this machine, bytes, and the gradients."""
    model = copy.deepcopy(model)
    model.predictor.requires_grad_(True)
    model.predictor.recompute = recompute
    g = torch.Generator().manual_seed(0)
    clip = Clip(
        torch.randn(8, 3, model.config.latent.positions, model.config.latent.dim, generator=g),
        0.3 * torch.randn(8, 3, 2, generator=g),
        0.3 * torch.randn(8, 2, 2, generator=g),
    )
    learner = PredictorLearner(model, replace(PREDICTOR, l2=False), _Nothing(), CPU)
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss, _ = learner.loss(clip, 0)
    loss.backward()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    size = sum(nbytes for place, (nbytes, _) in kept.items() if place not in weights)
    return size, [p.grad for p in model.predictor.parameters() if p.grad is not None]


class _Nothing(ClipBatches):
    """Batches that are never drawn."""

    def __init__(self) -> None:
        pass


def test_recomputing_changes_no_gradient(place: Path) -> None:
    model = WorldModel.from_pretrained(place / "run" / "model")
    (plain, wanted), (less, found) = step_of(model, False), step_of(model, True)
    assert less < 0.7 * plain and len(wanted) == len(found) > 10
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_the_memory_said_is_the_memory_kept(place: Path) -> None:
    model = WorldModel.from_pretrained(place / "run" / "model")
    need = training_memory(model.config, PREDICTOR, 8)
    weights = sum(4 * parameter.numel() for parameter in model.predictor.parameters())
    assert (need.weights, need.gradients, need.optimiser) == (weights, weights, 2 * weights)
    assert need.encoder == sum(4 * parameter.numel() for parameter in model.encoder.parameters())
    assert need.activations == pytest.approx(step_of(model, False)[0], rel=0.3)
    assert training_memory(model.config, PREDICTOR, 16).activations == pytest.approx(2 * need.activations, rel=0.1)
    less = training_memory(model.config, PREDICTOR, 8, recompute=True)
    assert less.activations < 0.8 * need.activations and less.weights == need.weights


def test_the_command_says_the_need_and_refuses_what_does_not_go_together(place: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> Any:
        given = ["train", str(place / "dots.zarr"), *map(str, arguments), "--out", str(tmp_path / "out")]
        return CliRunner().invoke(build_app(), given)

    said = run("--init", place / "run", "--need", "--batch", 8, "--json")
    assert said.exit_code == 0, said.output
    rows = json.loads(said.stdout)
    assert rows["total"] == sum(rows[name] for name in ("encoder", "weights", "gradients", "optimiser", "activations"))
    assert "GiB" in run("--init", place / "run", "--need").output
    for arguments, message in (
        (("--encoder", "pixels", "--init", place / "run"), "either --encoder"),
        ((), "either --encoder"),
        (("--init", place / "run", "--width", 64), "--width is part of the model"),
        (("--encoder", "pixels", "--need"), "--need counts for a model"),
        (("--encoder", "pixels", "--keep-limits"), "are for going on from a model"),
        (("--init", place / "run", "--lr", 0), "learning rate must be positive, got 0"),
        (("--encoder", "pixels", "--lr", 0), "learning rate must be positive, got 0"),
    ):
        refused = run(*arguments)
        assert isinstance(refused.exception, InputError) and message in str(refused.exception)
    assert not (tmp_path / "out").exists()
