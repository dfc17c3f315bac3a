"""A world model's folder: what goes in comes out, and nothing else is let in."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_world import save_tiny_model

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.settings import from_plain, to_plain
from vjepa_mpc.encoder import PixelPatches
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.latents import LatentConfig
from vjepa_mpc.rollout import Context
from vjepa_mpc.world_model import WorldModel, WorldModelConfig, build_world_model


def pictures(n: int = 3, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def imagine(model: WorldModel) -> torch.Tensor:
    latents = model.encode(pictures(2))[None]
    context = Context(latents, torch.tensor([[[0.1, 0.2], [0.2, 0.4]]]), torch.tensor([[[0.1, 0.2]]]))
    actions = 0.2 * torch.randn(1, 5, 3, 2, generator=torch.Generator().manual_seed(0))
    return model.rollout(context, actions).latents


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> WorldModel:
    return WorldModel.from_pretrained(tiny_model)


@pytest.mark.parametrize("half", [True, False])
def test_saved_and_loaded_it_imagines_the_same(model: WorldModel, tmp_path: Path, half: bool) -> None:
    model = build_world_model(model.config)  # weights that float16 cannot hold exactly
    model.latent_space.fit(torch.randn(30, 4, 48, generator=torch.Generator().manual_seed(0)), torch.zeros(30).long())
    model.save_pretrained(tmp_path / "model", half=half)
    again = WorldModel.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert torch.equal(again.latent_space.std, model.latent_space.std)  # statistics keep all their bits
    pairs = ((again.encode(pictures()), model.encode(pictures())), (imagine(again), imagine(model)))
    for loaded, kept in pairs:
        assert loaded.dtype == torch.float32
        torch.testing.assert_close(loaded, kept, atol=2e-2 if half else 0, rtol=1e-2 if half else 0)
    assert half != torch.equal(*pairs[1])
    assert not again.training and not any(parameter.requires_grad for parameter in again.parameters())


def test_saving_again_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    WorldModel.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "model" / name).read_bytes() == (tiny_model / name).read_bytes()


def test_the_configuration_survives_json(model: WorldModel) -> None:
    plain = json.loads(json.dumps(to_plain(model.config)))
    assert from_plain(WorldModelConfig, plain, "here") == model.config


def test_a_misspelt_setting_is_named_and_refused(model: WorldModel, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m")
    plain = json.loads((folder / "config.json").read_text())
    plain["latent"]["grod"] = 3
    (folder / "config.json").write_text(json.dumps(plain))
    with pytest.raises(InputError, match=r"unknown field latent\.grod"):
        WorldModel.from_pretrained(folder)


def test_without_calibration_there_is_none(tmp_path: Path) -> None:
    assert WorldModel.from_pretrained(save_tiny_model(tmp_path / "m", calibration=None)).config.calibration is None


def test_a_model_on_raw_pixels_is_a_folder_too(model: WorldModel, tmp_path: Path) -> None:
    encoder = PixelPatches(64, 16)
    config = dataclasses.replace(
        model.config,
        encoder=encoder.describe(),
        latent=LatentConfig(4, 2, encoder.dim),
        predictor=dataclasses.replace(model.config.predictor, latent_dim=encoder.dim),
    )
    built = build_world_model(config)
    built.save_pretrained(tmp_path / "model")
    again = WorldModel.from_pretrained(tmp_path / "model")
    assert torch.equal(again.encode(pictures()), built.encode(pictures()))


def test_encoding_is_one_picture_at_a_time(model: WorldModel) -> None:
    together = model.encode(pictures())
    for index in range(3):
        torch.testing.assert_close(model.encode(pictures()[index : index + 1])[0], together[index], atol=1e-5, rtol=0)
    assert torch.equal(model.standardise(model.pooled(pictures())), together)


def test_bfloat16_planning_stays_near(tiny_model: Path, model: WorldModel) -> None:
    fast = WorldModel.from_pretrained(tiny_model).for_planning()
    assert {parameter.dtype for parameter in fast.predictor.parameters()} == {torch.bfloat16}
    assert torch.equal(fast.encode(pictures()), model.encode(pictures()))
    torch.testing.assert_close(imagine(fast), imagine(model), atol=0.05, rtol=0.05)
    assert imagine(fast).dtype == torch.float32
    slow = WorldModel.from_pretrained(tiny_model).for_planning(bf16=False)
    torch.testing.assert_close(imagine(slow), imagine(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stride", [1, 4])
def test_action_bounds_are_what_the_robot_can_do_in_one_model_step(tmp_path: Path, stride: int) -> None:
    model = WorldModel.from_pretrained(save_tiny_model(tmp_path / "m", stride=stride))
    torch.testing.assert_close(model.action_bounds.high, torch.tensor([0.3, 0.3]) * stride)
    torch.testing.assert_close(model.action_bounds.low, torch.tensor([-0.3, -0.3]) * stride)


def test_what_is_familiar_is_saved_with_the_model(tmp_path: Path) -> None:
    model = WorldModel.from_pretrained(save_tiny_model(tmp_path / "m"))
    assert model.likeness(pictures(1)[0]).score is None  # it never learned what pictures are like
    model.get_familiar(model.pooled(pictures(80)))
    model.save_pretrained(tmp_path / "n")
    again = WorldModel.from_pretrained(tmp_path / "n")
    assert again.config.familiar == 10
    wanted, found = (one.likeness(pictures(1)[0]) for one in (model, again))
    assert found.contrast == wanted.contrast and found.score == pytest.approx(wanted.score, rel=1e-2)


def test_models_may_share_an_encoder_that_lies_beside_them(tmp_path: Path) -> None:
    first = save_tiny_model(tmp_path / "reacher")
    model = WorldModel.from_pretrained(first)
    model.save_pretrained(tmp_path / "other", encoder_in="reacher")
    size = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("reacher", "other")}
    assert size["other"] < 0.8 * size["reacher"]
    again = WorldModel.from_pretrained(tmp_path / "other")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    again.save_pretrained(tmp_path / "whole")  # in memory it is as complete as any
    (tmp_path / "reacher").rename(tmp_path / "gone")
    with pytest.raises(InputError, match="keep both folders side by side"):
        WorldModel.from_pretrained(tmp_path / "other")
    assert torch.equal(WorldModel.from_pretrained(tmp_path / "whole").encode(pictures(2)), model.encode(pictures(2)))
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1.0)
    model.save_pretrained(tmp_path / "reacher")
    with pytest.raises(InputError, match="is another than the one"):
        WorldModel.from_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="is another than this model's"):
        again.save_pretrained(tmp_path / "third", encoder_in="reacher")
    with pytest.raises(InputError, match=r"give its name, not '\.\./reacher'"):
        replace(again.config, encoder_in="../reacher")
    assert not (tmp_path / "third").exists()


def _pixel_config() -> WorldModelConfig:
    from vjepa_mpc.predictor import PredictorConfig
    from vjepa_mpc.robots.reacher import CAMERA, reacher_spec

    encoder = PixelPatches(64, 16)
    return WorldModelConfig(
        robot=reacher_spec(), camera=CAMERA, preparation=ImagePreparation(64), encoder=encoder.describe(),
        latent=LatentConfig(4, 2, encoder.dim), history=1,
        predictor=PredictorConfig(
            grid_height=2, grid_width=2, latent_dim=encoder.dim, width=24, depth=1, heads=1, max_frames=3,
            action_dim=27, state_dim=25,
        ),
    )  # fmt: skip


FIRST = "predictor.predictor_embed.weight"


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def _config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        change(values)
        (folder / "config.json").write_text(json.dumps(values))

    return damage


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(_Bomb(folder / "ran")))


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "folder gone": (shutil.rmtree, "does not exist"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "does not exist"),
    "half a configuration": (lambda folder: (folder / "config.json").write_text('{"robot": {'), "not readable JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "not a world model of format 1"),
    "another format": (_config(lambda v: v.update(format_version=2)), "not a world model of format 1"),
    "an encoder's folder": (_config(lambda v: v.pop("format_version")), "not a world model of format 1"),
    "a field gone": (_config(lambda v: v.pop("camera")), "not valid at camera"),
    "a wrong type": (_config(lambda v: v["predictor"].update(width="wide")), "not valid at predictor.width"),
    "an impossible grid": (_config(lambda v: v["latent"].update(grid=3)), "choose a divisor"),
    "a stride of none": (_config(lambda v: v.update(stride=0)), "at least one control step"),
    "a history too long": (_config(lambda v: v.update(history=99)), "history of 99 frames"),
    "another camera": (_config(lambda v: v.update(camera="nosuch")), "no camera of reacher named 'nosuch'"),
    "another grid of the predictor": (_config(lambda v: v["predictor"].update(grid_width=7)), "takes latents of"),
    "a threshold that is no number": (_config(lambda v: v["calibration"].update(reached_cost=float("nan"))), "finite"),
    "an odd preparation": (_config(lambda v: v["preparation"].update(resample="cubic")), "not valid at preparation"),
    "an unknown state model": (_config(lambda v: v["robot"].update(state_model="x")), "'joints' or 'pose'"),
    "an encoder of another shape": (_config(lambda v: v["encoder"].update(hidden_size=96)), "has shape"),
    "a broken encoder": (_config(lambda v: v["encoder"].update(hidden_size="x")), "restore config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights at"),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "not a whole safetensors file"),
    "truncated weights": (_truncate, "not a whole safetensors file"),
    "a pickle": (_pickle, "not a whole safetensors file"),
    "a tensor gone": (_tensors(lambda t: t.pop(FIRST)), f"lacks {FIRST}"),
    "statistics gone": (_tensors(lambda t: t.pop("latent_space.mean")), "lacks latent_space.mean"),
    "another shape": (_tensors(lambda t: t.update({FIRST: torch.zeros(3, 3)})), "has shape [3, 3]"),
    "NaN": (_tensors(lambda t: t[FIRST].view(-1)[5:6].fill_(torch.nan)), "holds NaN or infinity"),
    "infinity": (_tensors(lambda t: t[FIRST].view(-1)[5:6].fill_(torch.inf)), "holds NaN or infinity"),
    "one tensor more": (_tensors(lambda t: t.update(extra=torch.zeros(1))), "holds extra"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_folder_is_refused_in_a_sentence(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    damage, words = DAMAGES[kind]
    damage(folder)
    with pytest.raises(InputError) as caught:
        WorldModel.from_pretrained(folder)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "ran").exists()


OTHERS: dict[str, Any] = {
    "name": "crane",
    "action_low": (-0.3, -0.2),
    "action_high": (0.3, 0.5),
    "action_units": ("deg", "deg"),
    "action_names": ("wrist_delta", "shoulder_delta"),
    "state_high": (3.0, 2.0),
    "state_periodic": (True, True),
    "control_period_s": 0.1,
    "state_model": "pose",
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_robot_is_refused_with_both_values(model: WorldModel, name: str) -> None:
    own = model.config.robot
    model.check_fits(own)
    with pytest.raises(InputError) as caught:
        model.check_fits(dataclasses.replace(own, **{name: OTHERS[name]}))
    for value in (getattr(own, name), OTHERS[name]):
        assert str(value) in str(caught.value)


def test_a_robot_without_its_camera_is_refused(model: WorldModel) -> None:
    own = model.config.robot
    with pytest.raises(InputError, match="camera 'top'; reacher has wrist"):
        model.check_fits(dataclasses.replace(own, cameras={"wrist": own.cameras["top"]}))


def test_limits_written_to_a_few_digits_fit(model: WorldModel) -> None:
    own = model.config.robot
    model.check_fits(dataclasses.replace(own, state_high=tuple(round(value, 7) for value in own.state_high)))


def test_building_and_loading_leave_the_global_generator_alone(tiny_model: Path, model: WorldModel) -> None:
    before = torch.random.get_rng_state()
    build_world_model(model.config)
    WorldModel.from_pretrained(tiny_model)
    assert torch.equal(torch.random.get_rng_state(), before)
