"""What a predictor's training starts from: an encoder by its name, a new world model, or one to go on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import read_json
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.encoder import FrameEncoder, PixelPatches, VJepaFrames, build_encoder, freeze, load_encoder
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.latents import LatentConfig
from vjepa_mpc.log_fit import SAME_PERIOD, check_numbers, check_period, with_limits_of
from vjepa_mpc.predictor import PredictorConfig
from vjepa_mpc.pretrain.predictor import PredictorSettings
from vjepa_mpc.pretrain.vjepa import VJepaSettings
from vjepa_mpc.robots.base import Camera, RobotSpec
from vjepa_mpc.states import state_space
from vjepa_mpc.world_model import WorldModel, WorldModelConfig

if TYPE_CHECKING:
    from transformers import VJEPA2Model

ENCODER_FOLDER = "encoder"
MODEL_FOLDER = "model"
PREPARATION = "vjepa_mpc.json"
UNTRAINED = "untrained"
PIXELS = "pixels"
OTHERWISE = "or train a new model with --encoder"


def robot_of(store: ZarrStore) -> RobotSpec:
    """The robot that a store was recorded with."""
    spec = store.spec
    return RobotSpec(
        name=spec.robot,
        action_names=spec.action_names,
        action_low=spec.action_low,
        action_high=spec.action_high,
        action_units=spec.action_units,
        state_names=spec.state_names,
        state_low=spec.state_low,
        state_high=spec.state_high,
        state_units=spec.state_units,
        state_periodic=spec.state_periodic,
        control_period_s=spec.control_period_s,
        cameras={name: Camera(*size) for name, size in spec.cameras.items()},
        state_model=spec.state_model,
    )


def open_encoder(
    source: str, preparation_size: int, seed: int
) -> tuple[FrameEncoder, ImagePreparation, dict[str, Any]]:
    """The encoder that `--encoder` names, its image preparation and what is known of its training.

    A `VJEPA2Model` folder, a run folder of `pretrain`, a Hugging Face id; a world model's folder or a run of `train`,
    whose encoder it is; or a baseline: "untrained" (the default shape with random weights) or "pixels" (patches as
    they are).
    """
    if source == PIXELS:
        preparation = ImagePreparation(size=preparation_size, contrast=VJepaSettings().contrast)
        return PixelPatches(preparation_size, preparation_size // 4), preparation, {}
    if source == UNTRAINED:
        settings = VJepaSettings()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = freeze(build_encoder(settings.size.config(settings.frames)))
        return VJepaFrames(model), ImagePreparation(size=settings.size.picture, contrast=settings.contrast), {}
    folder = Path(source)
    model_folder = _world_model(folder)
    if model_folder is not None:
        whole = WorldModel.from_pretrained(model_folder)
        return whole.encoder, whole.config.preparation, encoder_record(whole.config)
    if (folder / ENCODER_FOLDER / "config.json").is_file():
        folder = folder / ENCODER_FOLDER
        source = str(folder)
    elif (folder / "checkpoint.pt").is_file():
        raise InputError(f"The run in {folder} has not finished; resume it with the same command first.")
    encoder = VJepaFrames(load_encoder(source))
    if not (folder / PREPARATION).is_file():
        return encoder, ImagePreparation(size=encoder.size), {}
    notes = read_json(folder / PREPARATION)
    return encoder, ImagePreparation.from_dict(notes["preparation"]), notes.get("training", {})


def encoder_record(config: WorldModelConfig) -> dict[str, Any]:
    """What a world model knows of its encoder's training; that one's hash is of the weights before they were stored."""
    return {key: value for key, value in config.training.get("encoder", {}).items() if key != "sha256"}


def _world_model(folder: Path) -> Path | None:
    """The folder of the world model that `folder` is, or as a run of `train` holds; None where there is none."""
    for candidate in (folder / MODEL_FOLDER, folder):
        if (candidate / "config.json").is_file():
            values = read_json(candidate / "config.json")
            return candidate if isinstance(values, dict) and "latent" in values else None
    return None


def encoder_to_go_on_from(source: str) -> tuple[VJEPA2Model, ImagePreparation]:
    """A `VJEPA2Model` (folder, run of `pretrain`, Hugging Face id) to pretrain further, and how its pictures are
    prepared."""
    if source in (UNTRAINED, PIXELS):
        raise InputError(f"There is nothing to go on from in {source!r}; leave --init out to begin with fresh weights.")
    encoder, preparation, _ = open_encoder(source, 0, 0)
    if not isinstance(encoder, VJepaFrames):
        raise InputError(f"The world model {source} sees pixels, without an encoder to go on from.")
    return encoder.model, preparation


def new_world_model(
    store: ZarrStore, camera: str, encoder: FrameEncoder, preparation: ImagePreparation, settings: PredictorSettings,
    seed: int,
) -> WorldModel:  # fmt: skip
    """A world model around `encoder` whose predictor has fresh weights."""
    robot = robot_of(store)
    space = state_space(robot, settings.stride)
    parts = (encoder.grid // settings.grid) ** 2 if settings.pooling == "concat" else 1
    latent = LatentConfig(
        encoder.grid, settings.grid, encoder.dim * parts, centre=settings.centre, pooling=settings.pooling
    )
    config = WorldModelConfig(
        robot=robot,
        camera=camera,
        preparation=preparation,
        encoder=encoder.describe(),
        latent=latent,
        predictor=PredictorConfig(
            grid_height=settings.grid,
            grid_width=settings.grid,
            latent_dim=latent.dim,
            width=settings.width,
            depth=settings.depth,
            heads=settings.heads,
            max_frames=settings.frames,
            action_dim=space.action_dim,
            state_dim=space.state_dim,
            residual=settings.residual,
            conditioning=settings.conditioning,
            rotary=settings.rotary,
            displacements=len(robot.action_names) if settings.proprioception == "predicted" else 0,
        ),
        history=settings.history,
        stride=settings.stride,
        renderer=store.spec.renderer,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WorldModel(config, encoder)


def continued_settings(
    model: WorldModelConfig, *, frames: int | None, rollout_steps: int, l2: bool, shorter: bool
) -> PredictorSettings:
    """Settings of a training that goes on from a model: its shape, and clips of `frames` (None: its longest)."""
    predictor = model.predictor
    longest = predictor.max_frames
    if frames is not None and frames > longest:
        raise InputError(f"Clips of {frames} frames are longer than the {longest} this model was built for.")
    return PredictorSettings(
        grid=model.latent.grid, width=predictor.width, depth=predictor.depth, heads=predictor.heads,
        stride=model.stride, shorter=shorter and model.stride > 1, frames=frames or longest, history=model.history,
        rollout_steps=rollout_steps, l2=l2, residual=predictor.residual, centre=model.latent.centre,
        pooling=model.latent.pooling, conditioning=predictor.conditioning, rotary=predictor.rotary,
        proprioception="predicted" if predictor.displacements else "integrated",
    )  # fmt: skip


def continued_model(
    model: WorldModel, store: ZarrStore, camera: str, *, other_period: bool = False, keep_limits: bool = False
) -> WorldModel:
    """`model` for the robot and camera of a store, to be trained on: encoder, latent space and weights are its own.

    `other_period`: although the store's control period is another. `keep_limits`: joint limits that differ, and
    that the store's lie within, stay the model's. Critic and actor stay, but for another camera or period, and the
    actor for other limits of the actions. Raises `InputError` where the numbers of the store's states or actions would
    mean something else to the model, with both.
    """
    robot, own = robot_of(store), model.config.robot
    check_numbers(own, robot, OTHERWISE)
    if not other_period:
        check_period(own, robot, "or say --other-period to go on at the store's")
    if own.state_model != "pose":
        robot = with_limits_of(own, robot, keep_limits, OTHERWISE)
    if camera != model.config.camera or abs(robot.control_period_s / own.control_period_s - 1) > SAME_PERIOD:
        model.drop_critic()  # it counts control steps, and was shown another view
        model.drop_actor()  # which says them
    if (robot.action_low, robot.action_high) != (own.action_low, own.action_high):
        model.drop_actor()  # it says shares of the limits
    model.config = replace(
        model.config, robot=robot, camera=camera, renderer=store.spec.renderer, calibration=None, training={}
    )
    model.states = state_space(robot, model.config.stride).to(model.device)
    model.predictor.requires_grad_(True)
    return model
