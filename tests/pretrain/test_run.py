"""The two trainings as whole runs: what lands in the folder, what is not touched, what is refused early."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_dot import ENCODER, LIMIT, PREDICTOR, SIZE, episode, make_store, spec, training

from vjepa_mpc.cli.building import encoder_source
from vjepa_mpc.controller import Controller, ControllerState, ControlSettings
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.cache import FrameCache
from vjepa_mpc.datasets.clips import split_episodes
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.encoder import encode_frames, load_encoder, weights_hash
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.pretrain import run_folder
from vjepa_mpc.pretrain.calibration import calibrate
from vjepa_mpc.pretrain.objective import EncoderSize
from vjepa_mpc.pretrain.run import pretrain_encoder, train_world_model
from vjepa_mpc.pretrain.run_folder import begin
from vjepa_mpc.pretrain.source import Source, picture_size
from vjepa_mpc.pretrain.starting import encoder_to_go_on_from, open_encoder, robot_of
from vjepa_mpc.robots.base import Observation
from vjepa_mpc.rollout import Context
from vjepa_mpc.world_model import WorldModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("dots") / "dots.zarr")


@pytest.fixture(scope="module")
def encoder(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of pretraining."""
    out = tmp_path_factory.mktemp("encoder")
    pretrain_encoder(Source(store), out, ENCODER, training(3), CPU)
    return out


@pytest.fixture(scope="module")
def trained(store: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of training, on clips whose frames are all as far apart."""
    out = tmp_path_factory.mktemp("model")
    settings = dataclasses.replace(PREDICTOR, shorter=False)
    train_world_model(Source(store), out, str(encoder), settings, training(30, lr=3e-3), CPU)
    return out


def test_every_kind_of_predictor_trains_is_saved_and_plans(store: Path, encoder: Path, tmp_path: Path) -> None:
    kind = dataclasses.replace(
        PREDICTOR, conditioning="adaptive_norm", rotary="interleaved", proprioception="predicted", pooling="concat"
    )
    source = Source(store, cache=tmp_path / "cache")
    train_world_model(source, tmp_path, str(encoder), kind, training(30, lr=3e-3), CPU)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    shares = [row["forced"] / row["copy"] for row in rows]
    assert sum(shares[-5:]) < sum(shares[:5])
    model = WorldModel.from_pretrained(tmp_path / "model")
    assert (model.config.predictor.conditioning, model.config.predictor.rotary) == ("adaptive_norm", "interleaved")
    assert (model.config.latent.pooling, model.config.latent.dim) == ("concat", 4 * 24)
    assert model.familiarity is not None and model.familiarity.mean.shape == (4, 24)
    latents = model.encode(np.zeros((1, SIZE, SIZE, 3), np.uint8))[:, None]
    context = Context(latents, torch.zeros(1, 1, 2), torch.zeros(1, 0, 2))
    actions = torch.tensor([[[[0.2, 0.0]], [[0.0, 0.2]]]])
    imagined = model.rollout(context, actions).latents
    assert imagined.isfinite().all() and not torch.equal(imagined[:, 0], imagined[:, 1])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pretraining_leaves_the_target_encoder_as_a_plain_hugging_face_folder(encoder: Path) -> None:
    from transformers import VJEPA2Model

    loaded = VJEPA2Model.from_pretrained(encoder / "encoder")
    assert loaded.config.crop_size == SIZE and loaded.config.pred_num_hidden_layers == 0
    saved = torch.load(encoder / "checkpoint.pt", weights_only=True)["modules"]
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, saved[f"target.{name}"])
    opened, preparation, about = open_encoder(str(encoder), 999, 0)
    assert weights_hash(opened) == weights_hash(open_encoder(str(encoder / "encoder"), 999, 0)[0])
    assert preparation == ImagePreparation(SIZE, contrast=ENCODER.contrast) and about["steps"] == 3
    assert {"settings.json", "log.jsonl", "checkpoint.pt", "tensorboard"} < {path.name for path in encoder.iterdir()}


def test_pretraining_goes_on_from_an_encoder_that_is_there(store: Path, encoder: Path, tmp_path: Path) -> None:
    """At a rate of next to nothing it stays what it was; a larger picture and longer clips are a cool-down phase."""
    start, preparation = encoder_to_go_on_from(str(encoder))
    assert preparation.contrast == ENCODER.contrast and EncoderSize.of(start.config) == ENCODER.size
    still = training(2, lr=1e-12, weight_decay=0.0)
    pretrain_encoder(Source(store), tmp_path / "a", ENCODER, still, CPU, init=start)
    for name, tensor in load_encoder(tmp_path / "a/encoder").state_dict().items():
        torch.testing.assert_close(tensor, start.state_dict()[name], rtol=0, atol=1e-6)
    note = json.loads((tmp_path / "a/encoder/vjepa_mpc.json").read_text())["training"]
    assert note["init"] == weights_hash(start.encoder)
    with pytest.raises(InputError, match=r"init: .* there, None asked for"):
        pretrain_encoder(Source(store), tmp_path / "a", ENCODER, still, CPU)
    larger = dataclasses.replace(ENCODER, size=EncoderSize.of(start.config, 2 * SIZE), frames=6)
    pretrain_encoder(Source(store), tmp_path / "b", larger, training(1), CPU, init=start)
    assert load_encoder(tmp_path / "b/encoder").config.crop_size == 2 * SIZE
    other = dataclasses.replace(ENCODER, size=dataclasses.replace(ENCODER.size, width=2 * ENCODER.size.width))
    with pytest.raises(InputError, match="of another shape: size mismatch"):
        pretrain_encoder(Source(store), tmp_path / "c", other, training(1), CPU, init=start)
    for name in ("untrained", "pixels"):
        with pytest.raises(InputError, match="nothing to go on from"):
            encoder_to_go_on_from(name)


def test_pretraining_on_a_mixture_records_it_and_goes_on_with_it_alone(store: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other.zarr")
    mixed = [(Source(other), 0.25)]
    pretrain_encoder(Source(store), tmp_path / "run", ENCODER, training(2), CPU, mixed=mixed)
    note = json.loads((tmp_path / "run/encoder/vjepa_mpc.json").read_text())["training"]
    assert note["mixed"] == [[ZarrStore.open(other).content_hash(), 0.25]]
    with pytest.raises(InputError, match="other settings"):
        pretrain_encoder(Source(store), tmp_path / "run", ENCODER, training(2), CPU)
    with pytest.raises(InputError, match="leave some for the first"):
        pretrain_encoder(Source(store), tmp_path / "b", ENCODER, training(2), CPU, mixed=[(Source(other), 1.0)])


def test_training_a_world_model_leaves_the_encoder_as_it_was(store: Path, encoder: Path, tmp_path: Path) -> None:
    before = bytes_of(encoder)
    train_world_model(Source(store), tmp_path, str(encoder), PREDICTOR, training(2), CPU)
    assert bytes_of(encoder) == before
    model = WorldModel.from_pretrained(tmp_path / "model")
    kept = load_encoder(encoder / "encoder")
    frames = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.encoder(frames), encode_frames(kept, frames), atol=2e-2, rtol=1e-2)  # float16


def test_latents_are_encoded_once(store: Path, encoder: Path, tmp_path: Path) -> None:
    rows: list[tuple[str, int, int]] = []

    def count(what: str, done: int, total: int) -> None:
        rows.append((what, done, total))

    source = Source(store, cache=tmp_path / "cache")
    train_world_model(source, tmp_path / "a", str(encoder), PREDICTOR, training(1), CPU, caching=count)
    assert ("latents", 48, 48) in rows and ("frames", 48, 48) in rows
    rows.clear()
    wider = dataclasses.replace(PREDICTOR, width=48)
    train_world_model(source, tmp_path / "b", str(encoder), wider, training(1), CPU, caching=count)
    assert rows == []
    finer = dataclasses.replace(PREDICTOR, grid=4)  # another latent space is another cache
    train_world_model(source, tmp_path / "c", str(encoder), finer, training(1), CPU, caching=count)
    assert {what for what, _, _ in rows} == {"latents"}


def test_statistics_are_of_whole_episodes_however_many_there_are(
    store: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame of each of many episodes has no variation within: the latents would not be scaled at all."""
    monkeypatch.setattr("vjepa_mpc.pretrain.source.STATISTICS_FRAMES", 4)
    train_world_model(Source(store), tmp_path, str(encoder), PREDICTOR, training(1), CPU)
    space = WorldModel.from_pretrained(tmp_path / "model").latent_space
    assert float((space.std == 1).float().mean()) < 0.1


def test_the_cached_latents_are_what_planning_will_see(store: Path, trained: Path) -> None:
    model = WorldModel.from_pretrained(trained / "model")
    pictures = episode(1).images["top"]
    (cache,) = (store.parent / "dots.zarr.cache").glob("latents-*.npy")
    torch.testing.assert_close(
        model.pooled(pictures), torch.from_numpy(np.load(cache)[12:24]).float(), atol=2e-2, rtol=2e-2
    )


def test_statistics_are_of_the_training_episodes(store: Path, trained: Path) -> None:
    model = WorldModel.from_pretrained(trained / "model")
    training_episodes, held_out = split_episodes(4)
    assert (training_episodes, held_out) == ([0, 1, 2], [3])
    pooled = model.pooled(np.concatenate([episode(seed).images["top"] for seed in training_episodes]))
    assert model.config.latent.centre
    centred = pooled - pooled.mean(1, keepdim=True)
    torch.testing.assert_close(model.latent_space.mean, centred.mean(0), atol=5e-3, rtol=1e-2)


def test_the_finished_folder_plans(trained: Path) -> None:
    model = WorldModel.from_pretrained(trained / "model").for_planning(bf16=False)
    config = model.config
    assert config.stride == 2 and config.history == 1 and config.camera == "top" and config.calibration is not None
    assert config.training["steps"] == 30 and config.training["encoder"]["steps"] == 3
    torch.testing.assert_close(model.action_bounds.high, torch.full((2,), 2 * LIMIT))
    pictures, states = episode(3).images["top"], episode(3).states
    planner = CEM(model.action_bounds, CEMSettings(samples=16, elites=4, iterations=2))
    controller = Controller(model, planner, pictures[-1], ControlSettings(horizon=2), torch.Generator().manual_seed(0))
    decision, _ = controller.step(Observation({"top": pictures[0]}, states[0], 0.0), ControllerState())
    assert float(np.abs(decision.action).max()) <= LIMIT and np.isfinite(decision.plan.cost.numpy()).all()
    with pytest.raises(InputError, match="plan at most 2 ahead"):
        Controller(model, planner, pictures[-1], ControlSettings(horizon=3), torch.Generator())


def test_training_teaches(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert np.mean([row["loss"] for row in rows[-5:]]) < 0.9 * np.mean([row["loss"] for row in rows[:3]])


def test_strided_actions_are_the_sums_the_model_is_trained_on(store: Path) -> None:
    from vjepa_mpc.datasets.clips import ClipDataset

    clips = ClipDataset(ZarrStore.open(store), 3, 2)
    clip = clips[4]
    torch.testing.assert_close(clip.states[:-1] + clip.actions, clip.states[1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("source", ["untrained", "pixels"])
def test_baselines_train_like_encoders(store: Path, tmp_path: Path, source: str) -> None:
    if source == "untrained":
        encoders = [open_encoder(source, SIZE, seed)[0] for seed in (0, 0, 1)]
        assert weights_hash(encoders[0]) == weights_hash(encoders[1]) != weights_hash(encoders[2])
        return
    assert train_world_model(Source(store), tmp_path, source, PREDICTOR, training(1), CPU).finished
    assert WorldModel.from_pretrained(tmp_path / "model").config.encoder["model_type"] == "pixel_patches"


def test_a_world_model_lends_its_encoder(store: Path, encoder: Path, tmp_path: Path) -> None:
    """By its folder, its run's, or the name of a shipped one; what sees pixels has none to pretrain further."""
    assert train_world_model(Source(store), tmp_path / "a", str(encoder), PREDICTOR, training(1), CPU).finished
    lent = [open_encoder(str(folder), 999, 0) for folder in (encoder, tmp_path / "a", tmp_path / "a/model")]
    of_pretraining, *of_training = (opened.state_dict() for opened, *_ in lent)
    for name, tensor in of_pretraining.items():  # a model's folder keeps half precision
        assert all(torch.equal(other[name], tensor.half().float()) for other in of_training)
    assert all((preparation, about) == lent[0][1:] for _, preparation, about in lent)
    shared = [encoder_source(name) for name in ("two-rooms", "jaco-reach")]
    assert len({weights_hash(open_encoder(name, 999, 0)[0]) for name in shared}) == 1
    assert encoder_source(str(encoder)) == str(encoder)
    assert train_world_model(Source(store), tmp_path / "b", "pixels", PREDICTOR, training(1), CPU).finished
    with pytest.raises(InputError, match="without an encoder to go on from"):
        encoder_to_go_on_from(str(tmp_path / "b"))


def test_an_unfinished_run_is_no_encoder(store: Path, tmp_path: Path) -> None:
    pretrain_encoder(Source(store), tmp_path, ENCODER, training(4), CPU, stop_at=1)
    with pytest.raises(InputError, match=r"has not finished; resume it"):
        open_encoder(str(tmp_path), SIZE, 0)


def refused(store: Path, out: Path, words: str, *, encoder: str = "pixels", **changes: Any) -> None:
    settings = dataclasses.replace(PREDICTOR, **changes)
    with pytest.raises(InputError, match=words) as caught:
        train_world_model(Source(store), out, encoder, settings, training(1), CPU)
    assert "\n" not in str(caught.value)
    assert not (out / "checkpoint.pt").exists() and not (out / "model").exists()


def test_what_cannot_be_trained_on_is_refused_in_a_sentence(store: Path, tmp_path: Path) -> None:
    short = make_store(tmp_path / "short.zarr", length=4)
    refused(short, tmp_path / "a", "no clip of 3 frames at stride 2")
    still = make_store(tmp_path / "still.zarr", length=1)  # one picture an episode: no actions at all
    refused(still, tmp_path / "b", "varies within any episode|no clip of")
    with pytest.raises(InputError, match="no clip of 4 frames"):
        pretrain_encoder(Source(still), tmp_path / "c", ENCODER, training(1), CPU)
    refused(make_store(tmp_path / "one.zarr", episodes=1), tmp_path / "d", "at least 2 episodes")
    refused(make_store(tmp_path / "none.zarr", episodes=0), tmp_path / "e", "no episodes")
    refused(store, tmp_path / "f", "choose a divisor of 4", grid=3)
    refused(store, tmp_path / "g", "does not divide into 5 heads", heads=5)
    poses = make_store(tmp_path / "poses.zarr", state_model="pose")
    refused(poses, tmp_path / "h", "Poses do not add up")


def test_what_cannot_be_calibrated_is_refused_before_training(tmp_path: Path) -> None:
    """Steps so long that no two frames are near: half an hour of training would end in the same sentence."""
    fast = make_store(tmp_path / "fast.zarr", action_low=(-1e-4, -1e-4), action_high=(1e-4, 1e-4))
    refused(fast, tmp_path / "out", "No two held-out frames")


@pytest.mark.parametrize(
    "changes",
    [{"history": 3}, {"history": 0}, {"rollout_steps": 3}, {"rollout_steps": -1}, {"stride": 0}, {"grid": 0},
     {"heads": 0}],
)  # fmt: skip
def test_impossible_settings_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(InputError):
        dataclasses.replace(PREDICTOR, **changes)


def test_a_run_stays_with_its_camera(tmp_path: Path) -> None:
    store = tmp_path / "two.zarr"
    one = episode(0)
    both = dataclasses.replace(one, images={"top": one.images["top"], "side": one.images["top"][:, ::-1]})
    with ZarrStore.create(store, spec(cameras={"top": (SIZE, SIZE), "side": (SIZE, SIZE)})) as writer:
        writer.extend([both] * 4)
    pretrain_encoder(Source(store, "top"), tmp_path / "run", ENCODER, training(4), CPU, stop_at=2)
    with pytest.raises(InputError, match="camera: top there, side asked for"):
        pretrain_encoder(Source(store, "side"), tmp_path / "run", ENCODER, training(4), CPU)


def test_calibration_by_hand(trained: Path) -> None:
    """Latents that are the states: the reached distance is the median error of states that are near."""
    model = WorldModel.from_pretrained(trained / "model")
    rng = np.random.default_rng(0)
    episodes, near = [], []
    for _ in range(3):
        states = torch.from_numpy(rng.uniform(-0.15, 0.15, (30, 2))).float()
        states[:, 0] += 3.14159  # across the seam of the periodic joint
        wrapped = torch.stack([(states[:, 0] + np.pi) % (2 * np.pi) - np.pi, states[:, 1]], -1)
        episodes.append((states[:, None].clone(), wrapped))
        for i in range(30):
            for j in range(i + 1, 30):
                apart = (states[i] - states[j]).abs()
                if 0.5 * LIMIT / 3 <= float(apart.max()) <= LIMIT / 3:
                    near.append(float(apart.mean()))
    spread = torch.linspace(-1, 1, 1001)
    found = calibrate(model, episodes, torch.arange(101.0), (0.1 * spread - 2).exp(), (0.1 * spread).sigmoid())
    assert found.reached_cost == pytest.approx(sorted(near)[(len(near) - 1) // 2], abs=2e-3)
    assert found.state_radius == pytest.approx(LIMIT / 3)
    assert found.goal_score == pytest.approx(99.0)
    normal = 3.09 * 0.1 * float(spread.std())  # even values end before a normal distribution does
    assert found.contrast == pytest.approx(np.exp(-2 - normal), rel=1e-3)
    assert found.grain == pytest.approx(1 / (1 + np.exp(-normal)), rel=1e-3)


def test_a_rare_picture_is_rarer_than_all_that_were_seen_only_where_many_were(trained: Path) -> None:
    """Among thousands of pictures a thousandth is a quantile; the least of a handful is no limit."""
    model = WorldModel.from_pretrained(trained / "model")
    states = torch.linspace(0, 0.15, 30)[:, None].repeat(1, 2)
    episodes, none = [(states[:, None].clone(), states)], torch.zeros(3)
    few = calibrate(model, episodes, none, torch.tensor([0.1, 0.11, 0.12]), torch.tensor([0.4, 0.42, 0.44]))
    assert few.contrast < 0.095 and few.grain is not None and few.grain > 0.45
    many = torch.cat([torch.full((9_950,), 0.1), torch.full((50,), 0.01)])
    assert calibrate(model, episodes, none, many, many).contrast == pytest.approx(0.01)


def test_a_trained_model_knows_its_pictures_and_what_is_none_of_them(trained: Path, store: Path) -> None:
    model = WorldModel.from_pretrained(trained / "model")
    limits, pictures = model.config.calibration, FrameCache.build(ZarrStore.open(store)).rows
    assert limits is not None and limits.goal_score is not None and model.config.familiar > 0
    scores = [model.likeness(np.asarray(picture)) for picture in pictures]
    assert np.median([float(one.score or 0) for one in scores]) <= limits.goal_score
    assert float(np.mean([one.contrast > limits.contrast for one in scores])) > 0.9
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    assert float(model.likeness(noise).score or 0) > limits.goal_score


def test_the_store_tells_the_robot(store: Path) -> None:
    opened = ZarrStore.open(store)
    robot = robot_of(opened)
    assert robot.name == "dot" and robot.action_high == (LIMIT, LIMIT) and robot.state_periodic == (True, False)
    assert (robot.cameras["top"].height, robot.cameras["top"].width) == (SIZE, SIZE)
    assert picture_size(opened, None) == SIZE
    assert spec(cameras={"a": (4, 6), "b": (2, 2)}).cameras["a"] == (4, 6)


def test_settings_are_written_once_with_where_they_come_from(tmp_path: Path) -> None:
    begin(tmp_path, "train", {"a": 1, "b": {"c": (2, 3)}})
    (tmp_path / "log.jsonl").touch()
    written = (tmp_path / "settings.json").read_bytes()
    assert "torch" in json.loads(written)["provenance"]["packages"]
    begin(tmp_path, "train", {"a": 1, "b": {"c": (2, 3)}})
    assert (tmp_path / "settings.json").read_bytes() == written
    for kind, settings, words in (
        ("train", {"a": 2, "b": {"c": (2, 3)}}, r"\(a: 1 there, 2 asked for\)"),
        ("train", {"a": 1, "b": {"c": (2, 4)}}, r"b\.c: \[2, 3\] there, \[2, 4\] asked for"),
        ("train", {"a": 1}, r"b: .* there, None asked for"),
        ("pretrain", {"a": 1, "b": {"c": (2, 3)}}, "kind: train there, pretrain asked for"),
    ):
        with pytest.raises(InputError, match=words):
            begin(tmp_path, kind, settings)
    (tmp_path / "settings.json").write_text("[1]")
    with pytest.raises(InputError):
        begin(tmp_path, "train", {"a": 1})


def test_every_version_that_went_on_with_a_run_is_noted(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for commit, stop_at in (("a", 1), ("a", 2), ("b", None)):
        monkeypatch.setattr(run_folder, "provenance", lambda now=commit: {"commit": now})
        pretrain_encoder(Source(store), tmp_path, ENCODER, training(3), CPU, stop_at=stop_at)
    assert json.loads((tmp_path / "settings.json").read_text())["provenance"] == {"commit": "a"}
    assert json.loads((tmp_path / "encoder/vjepa_mpc.json").read_text())["training"]["commits"] == ["a", "b"]


def test_predictor_runs_from_before_there_were_families_go_on(tmp_path: Path) -> None:
    begin(tmp_path, "train", {"predictor": {"grid": 4}})
    (tmp_path / "log.jsonl").touch()
    now = {"grid": 4, "conditioning": "tokens", "rotary": "tiled", "proprioception": "integrated"}
    begin(tmp_path, "train", {"predictor": now})
    with pytest.raises(InputError, match=r"predictor\.conditioning: tokens there, adaptive_norm asked for"):
        begin(tmp_path, "train", {"predictor": {**now, "conditioning": "adaptive_norm"}})
