"""The objectives as a family: names, one footing, runs that resume, encoders in one format; what older runs left."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_dot import ENCODER, PREDICTOR, SIZE, make_store, training
from safetensors.torch import load_file

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.clips import ClipDataset
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.encoder import encode_frames, load_encoder
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.pretrain.data import ClipBatches
from vjepa_mpc.pretrain.ijepa import IJepaSettings
from vjepa_mpc.pretrain.lejepa import LeJepaSettings
from vjepa_mpc.pretrain.objective import EncoderLearner, ObjectiveSettings
from vjepa_mpc.pretrain.objectives import OBJECTIVES, find_objective, name_of, plain
from vjepa_mpc.pretrain.optimising import make_optimisers
from vjepa_mpc.pretrain.run import pretrain_encoder, train_world_model
from vjepa_mpc.pretrain.run_folder import begin
from vjepa_mpc.pretrain.source import Source
from vjepa_mpc.pretrain.starting import open_encoder
from vjepa_mpc.pretrain.vicreg import VicRegSettings

CPU = torch.device("cpu")
COMMON: dict[str, Any] = {"size": ENCODER.size, "frames": 4, "sigreg_slices": 8}
SETTINGS: dict[str, ObjectiveSettings] = {
    "vjepa": ENCODER,
    "ijepa": IJepaSettings(**COMMON, predictor_width=24, predictor_depth=1, predictor_heads=1),
    "lejepa": LeJepaSettings(**COMMON, projector_width=16, embedding=8, local_views=2),
    "vicreg": VicRegSettings(**COMMON),
}
NAMES = list(SETTINGS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("dots") / "dots.zarr")


def learner(store: Path, name: str, batch: int = 6, **changes: Any) -> EncoderLearner:
    clips = ClipDataset(ZarrStore.open(store), COMMON["frames"])
    settings = dataclasses.replace(SETTINGS[name], **changes)
    return find_objective(name).learner(settings, ClipBatches(clips, batch, 0), ImagePreparation(SIZE), CPU, 0)


def test_every_objective_is_found_by_its_name_and_by_its_settings() -> None:
    assert set(SETTINGS) == set(OBJECTIVES)
    for name, settings in SETTINGS.items():
        assert name_of(settings) == name and plain(settings)["name"] == name
        assert find_objective(name).settings is type(settings)
    with pytest.raises(InputError, match="did you mean 'lejepa'"):
        find_objective("lejpa")


@pytest.mark.parametrize("name", NAMES[1:])
def test_its_loss_falls(store: Path, name: str) -> None:
    one = learner(store, name, batch=12)
    (optimiser,) = make_optimisers(one.modules, training())
    losses = []
    for step in range(30):
        loss, _ = one.loss(one.batch(step), step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        one.after_step(step)
        losses.append(float(loss.detach()))
    assert np.mean(losses[-4:]) < 0.85 * np.mean(losses[:4])


@pytest.mark.parametrize("name", NAMES)
def test_it_moves_every_weight_that_it_trains(store: Path, name: str) -> None:
    one = learner(store, name, inverse_weight=0.5)
    for module in one.modules.modules():
        token = getattr(module, "mask_token", None)
        if token is not None:
            torch.nn.init.normal_(token, generator=torch.Generator().manual_seed(0))  # zeros give no direction
    loss, figures = one.loss(one.batch(3), 3)
    loss.backward()
    for key, parameter in one.modules.named_parameters():
        frozen = key.startswith(("target.", "encoder.predictor."))
        # a bias before batch norm does nothing, nor does one of keys before a softmax
        if frozen or key in ("projector.0.bias", "projector.3.bias") or key.endswith("key.bias"):
            continue
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, key
    assert "inverse" in figures and "inverse" not in learner(store, name, inverse_weight=0.0).loss(one.batch(3), 3)[1]


@pytest.mark.parametrize("name", NAMES)
def test_its_figures_hold_its_health(store: Path, name: str) -> None:
    one = learner(store, name)
    _, figures = one.loss(one.batch(0), 0)
    values = {key: float(value() if callable(value) else value) for key, value in figures.items()}
    assert {"spread", "spread_least", "spread_most", "places", "rank", "sigreg"} < set(values)
    assert 0 < values["spread_least"] <= values["spread"] <= values["spread_most"] < 2 and 1 < values["rank"] <= 24
    one.check({"step": 500.0, **values})


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_functions_of_the_step_alone(store: Path, name: str) -> None:
    one, other = learner(store, name, inverse_weight=1.0), learner(store, name, inverse_weight=1.0)
    other.batch(5)
    for step in (0, 3):
        left, right = one.batch(step), other.batch(step)
        assert repr(left) == repr(right)
        assert torch.equal(one.loss(left, step)[0], other.loss(right, step)[0])
    assert repr(one.batch(0)) != repr(one.batch(1))


@pytest.mark.parametrize("name", NAMES[1:])
def test_stopped_at_2_and_resumed_to_4_is_4_straight_and_is_an_encoder(store: Path, tmp_path: Path, name: str) -> None:
    settings, source = dataclasses.replace(SETTINGS[name], inverse_weight=0.5), Source(store)
    assert pretrain_encoder(source, tmp_path / "straight", settings, training(4), CPU).finished
    assert not pretrain_encoder(source, tmp_path / "halves", settings, training(4), CPU, stop_at=2).finished
    assert pretrain_encoder(source, tmp_path / "halves", settings, training(4), CPU).finished
    runs = [tmp_path / "straight", tmp_path / "halves"]
    tensors, others = (load_file(run / "encoder" / "model.safetensors") for run in runs)
    assert set(tensors) == set(others) and all(torch.equal(tensors[key], others[key]) for key in tensors)
    assert (runs[0] / "log.jsonl").read_bytes() == (runs[1] / "log.jsonl").read_bytes()
    encoder, preparation, about = open_encoder(str(runs[0]), 999, 0)
    assert preparation == ImagePreparation(SIZE, contrast="picture") and about["objective"]["name"] == name
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder(pixels), encode_frames(load_encoder(runs[1] / "encoder"), pixels))
    assert train_world_model(source, tmp_path / "model", str(runs[0]), PREDICTOR, training(1), CPU).finished
    with pytest.raises(InputError, match=f"name: {name} there, vjepa asked for"):
        pretrain_encoder(source, runs[0], ENCODER, training(4), CPU)


def test_a_run_of_before_there_were_names_goes_on(store: Path, tmp_path: Path) -> None:
    """Its settings.json knows neither the objective's name nor what was added since."""
    pretrain_encoder(Source(store), tmp_path / "straight", ENCODER, training(4), CPU)
    pretrain_encoder(Source(store), tmp_path / "old", ENCODER, training(4), CPU, stop_at=2)
    path = tmp_path / "old" / "settings.json"
    record = json.loads(path.read_text())
    for name in ("name", "sigreg_on", "context_weight", "inverse_weight"):
        del record["settings"]["objective"][name]
    path.write_text(json.dumps(record))
    changed = dataclasses.replace(ENCODER, sigreg_on="content")
    with pytest.raises(InputError, match=r"\(objective\.sigreg_on: tokens there, content asked for\)"):
        pretrain_encoder(Source(store), tmp_path / "old", changed, training(4), CPU)
    with pytest.raises(InputError, match="name: vjepa there, ijepa asked for"):
        pretrain_encoder(Source(store), tmp_path / "old", SETTINGS["ijepa"], training(4), CPU)
    assert pretrain_encoder(Source(store), tmp_path / "old", ENCODER, training(4), CPU).finished
    runs = [load_file(tmp_path / run / "encoder" / "model.safetensors") for run in ("straight", "old")]
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_settings_that_were_spoilt_are_refused(tmp_path: Path) -> None:
    for spoilt in ('{"kind": "pretrain", "settings": [1]}', '{"kind": "pretrain", "settings": {"objective": 3}}'):
        (tmp_path / "settings.json").write_text(spoilt)
        (tmp_path / "log.jsonl").touch()
        with pytest.raises(InputError, match="other settings"):
            begin(tmp_path, "pretrain", {"objective": plain(ENCODER)})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ijepa", {"ema": 1.5}), ("ijepa", {"targets": 0}), ("ijepa", {"target_scale": (0.3, 0.2)}),
        ("ijepa", {"context_scale": (0.5, 1.5)}), ("ijepa", {"target_aspect": (0.0, 1.0)}),
        ("ijepa", {"sigreg_weight": -1.0}),
        ("lejepa", {"sigreg_weight": 1.5}), ("lejepa", {"global_views": 0}), ("lejepa", {"local_scale": (0.0, 0.3)}),
        ("lejepa", {"global_views": 1, "local_views": 0}), ("lejepa", {"colour": 1.0}), ("lejepa", {"embedding": 0}),
        ("vicreg", {"variance_weight": -1.0}), ("vicreg", {"gamma": 0.0}), ("vicreg", {"frames": 2}),
        ("vicreg", {"inverse_weight": -0.1}),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        dataclasses.replace(SETTINGS[name], **changes)
