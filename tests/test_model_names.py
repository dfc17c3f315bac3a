"""How world models are named on the command line: folders, runs, the shipped one by its name or by none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vjepa_mpc.cli import building
from vjepa_mpc.cli.building import SHIPPED_MODEL, model_folder, shipped_models
from vjepa_mpc.cli.main import main
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.episode import Episode, StoreSpec
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.robots.reacher import reacher_spec
from vjepa_mpc.world_model import read_config

LENGTH, SIZE = 20, 32
SHARED = (
    "state_names", "state_units", "state_low", "state_high", "state_periodic",
    "action_names", "action_units", "action_low", "action_high", "control_period_s", "state_model",
)  # fmt: skip


def leave(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return (left.value.code, *capsys.readouterr())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, and joint moves that have nothing to do with it, as the shipped model's robot would log them."""
    path = tmp_path_factory.mktemp("noise") / "logs.zarr"
    rng, robot = np.random.default_rng(0), reacher_spec()
    shared = {name: getattr(robot, name) for name in SHARED}
    spec = StoreSpec(robot=robot.name, cameras={"top": (SIZE, SIZE)}, renderer="none", **shared)
    with ZarrStore.create(path, spec) as writer:
        for _ in range(2):
            actions = rng.uniform(-0.1, 0.1, (LENGTH - 1, 2)).astype(np.float32)
            writer.append(Episode(
                images={"top": rng.integers(0, 256, (LENGTH, SIZE, SIZE, 3), dtype=np.uint8)},
                states=np.concatenate([np.zeros((1, 2)), actions.cumsum(0)]).astype(np.float32),
                actions=actions, times=robot.control_period_s * np.arange(LENGTH), metadata={},
            ))  # fmt: skip
    return path


def test_the_shipped_model_has_a_name_and_needs_none() -> None:
    assert "reacher" in shipped_models()
    assert model_folder(None) == model_folder("reacher") == SHIPPED_MODEL
    assert building.is_shipped(model_folder("reacher"))


def test_a_folder_without_a_model_is_told_for_what_it_is(store: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder_run" / "encoder").mkdir(parents=True)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "settings.json").write_text("{}")
    (tmp_path / "pictures").mkdir()
    for folder, words in {
        store: "is a trajectory store; train a model",
        tmp_path / "encoder_run": "train LOGS --encoder",
        tmp_path / "unfinished": "go on to its end",
        tmp_path / "pictures": "holds no world model",
    }.items():
        with pytest.raises(InputError, match=words):
            model_folder(str(folder))


def test_a_folder_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reacher" / "model").mkdir(parents=True)
    (tmp_path / "reacher" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert model_folder("reacher") == Path("reacher/model")
    assert not building.is_shipped(model_folder("reacher"))


def test_what_does_not_exist_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "arm" / "model").mkdir(parents=True)
    (tmp_path / "arm" / "model" / "config.json").write_text("{}")
    for name, near in (("reachr", "reacher"), (str(tmp_path / "amr"), str(tmp_path / "arm"))):
        told = f"{name} does not exist .did you mean '{near}'.*shipped model: {', '.join(shipped_models())}"
        with pytest.raises(InputError, match=told):
            model_folder(name)
    with pytest.raises(InputError, match="zzzzzzzz does not exist; give"):
        model_folder("zzzzzzzz")


def test_validate_model_defaults_to_the_shipped_one(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--clips", 2, "--candidates", 16, "--threads", 1, "--json")
    code, out, err = leave(capsys, "validate-model", store, *few)
    assert code == 0, err
    unnamed = json.loads(out)
    assert unnamed["model"] == "shipped" and unnamed["stride"] == read_config(SHIPPED_MODEL).stride
    code, out, err = leave(capsys, "validate-model", "reacher", store, *few)
    assert code == 0, err
    named = json.loads(out)
    assert named.pop("model") == "reacher" and unnamed.pop("model")
    assert named == unnamed
    code, out, err = leave(capsys, "validate-model", "reacher", "reacher", store)
    assert code == 2 and out == "" and "One model is validated at a time, got reacher, reacher" in err


def test_training_can_go_on_from_the_shipped_one_by_name(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = leave(capsys, "train", store, "--init", "reacher", "--need", "--json")
    assert code == 0 and json.loads(out)["total"] > 1e6, err
    code, out, err = leave(capsys, "train", store, "--init", "reachers", "--need")
    assert code == 2 and "did you mean 'reacher'" in err


def test_nothing_is_written_into_the_installed_package(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(SHIPPED_MODEL.iterdir())
    code, out, err = leave(capsys, "calibrate", store)
    assert code == 2 and out == "" and "--out guardrails.json" in err and str(SHIPPED_MODEL) not in err
    assert sorted(SHIPPED_MODEL.iterdir()) == before


def test_threads_that_would_crowd_are_told_of_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(building.os, "getloadavg", lambda: (5.8, 0.0, 0.0))
    assert "busy (load 5.8 on 2 cores): --threads 1 may be faster than 2" in str(building.crowded(2))
    assert building.crowded(1) is None
    monkeypatch.setattr(building.os, "getloadavg", lambda: (1.2, 9.0, 9.0))
    assert building.crowded(2) is None
