"""The two trainings as whole runs: from a store to an encoder, from a store and an encoder to a world model.

A run folder holds settings, curves, log and checkpoint; the result appears in it, whole, at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.core.files import atomic_folder, read_json, write_json
from vjepa_mpc.core.settings import provenance
from vjepa_mpc.datasets.cache import FrameCache, LatentCache, only_camera
from vjepa_mpc.datasets.clips import ClipDataset, split_episodes
from vjepa_mpc.datasets.sampling import ClipMixture
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.encoder import FrameEncoder, PixelPatches, VJepaFrames, build_encoder, freeze, load_encoder, weights_hash
from vjepa_mpc.familiarity import FRAMES
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.latents import LatentConfig, LatentSpace
from vjepa_mpc.log_fit import check_numbers, check_period, with_limits_of
from vjepa_mpc.predictor import PredictorConfig
from vjepa_mpc.pretrain.calibration import calibrate
from vjepa_mpc.pretrain.data import ClipBatches, MixtureBatches
from vjepa_mpc.pretrain.health import CollapseError
from vjepa_mpc.pretrain.health_figure import HEALTH, save_health
from vjepa_mpc.pretrain.objective import ObjectiveSettings
from vjepa_mpc.pretrain.objectives import find_objective, name_of, plain
from vjepa_mpc.pretrain.predictor import PredictorLearner, PredictorSettings
from vjepa_mpc.pretrain.trainer import LOG, Progress, Trainer, TrainResult, TrainSettings
from vjepa_mpc.pretrain.vjepa import VJepaSettings
from vjepa_mpc.robots.base import Camera, RobotSpec
from vjepa_mpc.states import state_space
from vjepa_mpc.world_model import WorldModel, WorldModelConfig

ENCODER_FOLDER = "encoder"
MODEL_FOLDER = "model"
PREPARATION = "vjepa_mpc.json"
UNTRAINED = "untrained"
PIXELS = "pixels"
OTHERWISE = "or train a new model with --encoder"

CacheProgress = Callable[[str, int, int], None]
"""Called as progress(what, rows done, rows in all) while a cache is made."""


@dataclass(frozen=True)
class Source:
    """Where trajectories come from: a store, one of its cameras, and where its caches lie (None: beside it)."""

    store: Path
    camera: str | None = None
    cache: Path | None = None


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


def picture_size(store: ZarrStore, camera: str | None) -> int:
    """Side of the encoder's square pictures for a camera: the shorter side of its frames, pixels."""
    return min(store.spec.cameras[only_camera(store, camera)])


UNNAMED = {"name": "vjepa", "context_weight": 0.0, "inverse_weight": 0.0, "sigreg_on": "tokens"}
"""What a run did whose settings are older than the objectives' names, and may be older than the other three."""


def begin(folder: Path, kind: str, settings: dict[str, Any]) -> None:
    """Write `settings.json` of a new run; for a run that is there already, refuse other settings. One that
    was refused before its first step (it has no log) leaves nothing to protect."""
    path = folder / "settings.json"
    record = json.loads(json.dumps({"kind": kind, "settings": settings}))
    if path.is_file() and any(folder.glob("*.jsonl")):
        before = read_json(path)
        if not isinstance(before, dict):
            raise InputError(f"{path} was altered; restore it, or choose another --out.")
        before = {key: before.get(key) for key in record}
        _name_objective(before["settings"])
        if before != record:
            changed = _differences(before, record).replace("settings.", "")
            raise InputError(
                f"{folder} holds a run with other settings ({changed}); resume it with those, or choose another --out."
            )
        return
    write_json(path, {**record, "provenance": provenance()})


def _name_objective(settings: Any) -> None:
    """Fill in what pretraining runs of earlier versions did not write down."""
    objective = settings.get("objective") if isinstance(settings, dict) else None
    if isinstance(objective, dict) and "name" not in objective:
        settings["objective"] = {**UNNAMED, **objective}


def _differences(before: Any, now: Any, name: str = "") -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        parts = (
            _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
            for key in sorted({*before, *now})
        )
        return ", ".join(part for part in parts if part)
    return "" if before == now else f"{name}: {before} there, {now} asked for"


def pretrain_encoder(
    source: Source,
    out: Path,
    settings: ObjectiveSettings,
    training: TrainSettings,
    device: torch.device,
    *,
    progress: Progress | None = None,
    caching: CacheProgress | None = None,
    stop_at: int | None = None,
    mixed: Sequence[tuple[Source, float]] = (),
) -> TrainResult:
    """Learn an encoder from the store's frames into `out/encoder` (a Hugging Face `VJEPA2Model` folder).

    The objective is the one that `settings` are of. A collapse (`CollapseError`) or a number that is no longer finite
    (`NotFiniteError`) ends the run with a plot of its curves, `out/health.png`.
    `mixed`: other stores, each with its share (0 to 1) of the clips; the rest are the first one's.
    """
    store = ZarrStore.open(source.store)
    camera = only_camera(store, source.camera)
    asked = {"objective": plain(settings), "training": asdict(training), "camera": camera}
    others = [[ZarrStore.open(other.store).content_hash(), share] for other, share in mixed]
    begin(out, "pretrain", {**asked, "data": store.content_hash(), **({"mixed": others} if mixed else {})})
    preparation = ImagePreparation(size=settings.size.picture, contrast=settings.contrast)
    data = _pretraining_data([(source, 1.0), *mixed], settings, training, caching)
    learner = find_objective(name_of(settings)).learner(settings, data, preparation, device, training.seed)
    trainer = Trainer(learner, training, out, device)
    try:
        result = trainer.run(progress, stop_at=stop_at)
    except (CollapseError, NotFiniteError) as error:
        if not save_health(out / LOG, out / HEALTH):
            raise
        raise type(error)(f"{str(error).rstrip('.')} (its curves: {out / HEALTH}).") from error
    if result.finished:
        with atomic_folder(out / ENCODER_FOLDER) as folder:
            learner.product.save_pretrained(folder)
            write_json(
                folder / PREPARATION,
                {
                    "preparation": preparation.to_dict(),
                    "training": {
                        "data": store.content_hash(),
                        **({"mixed": others} if mixed else {}),
                        "objective": plain(settings),
                        "trainer": asdict(training),
                        "steps": result.step,
                        "seconds": round(result.seconds, 1),
                        "commit": provenance()["commit"],
                    },
                },
            )
    return result


def _pretraining_data(
    sources: Sequence[tuple[Source, float]], settings: ObjectiveSettings, training: TrainSettings,
    caching: CacheProgress | None,
) -> ClipBatches | MixtureBatches:  # fmt: skip
    """Batches of the training clips of one store, or of several; the shares of all but the first are given."""
    parts = []
    for source, _ in sources:
        store = ZarrStore.open(source.store)
        camera = only_camera(store, source.camera)
        frames = FrameCache.build(store, camera, source.cache, _named(caching, "frames"))
        episodes = split_episodes(len(store))[0]
        parts.append(ClipDataset(store, settings.frames, settings.stride, camera, episodes=episodes, frames=frames))
    if len(parts) == 1:
        return ClipBatches(parts[0], training.batch, training.seed)
    shares = [share for _, share in sources[1:]]
    if min(shares) <= 0 or sum(shares) >= 1:
        raise InputError(f"The shares of the mixed stores must be positive and leave some for the first, got {shares}.")
    return MixtureBatches(ClipMixture(parts, [1 - sum(shares), *shares]), training.batch, training.seed)


def open_encoder(
    source: str, preparation_size: int, seed: int
) -> tuple[FrameEncoder, ImagePreparation, dict[str, Any]]:
    """The encoder that `--encoder` names, its image preparation and what is known of its training.

    A `VJEPA2Model` folder, a run folder of `pretrain`, a Hugging Face id; or a baseline: "untrained" (the
    default shape with random weights) or "pixels" (patches as they are).
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
    if (folder / ENCODER_FOLDER / "config.json").is_file():
        folder = folder / ENCODER_FOLDER
        source = str(folder)
    elif (folder / "checkpoint.pt").is_file():
        raise InputError(f"The run in {folder} has not finished; resume it with the same `pretrain` command first.")
    encoder = VJepaFrames(load_encoder(source))
    if not (folder / PREPARATION).is_file():
        return encoder, ImagePreparation(size=encoder.size), {}
    notes = read_json(folder / PREPARATION)
    return encoder, ImagePreparation.from_dict(notes["preparation"]), notes.get("training", {})


def new_world_model(
    store: ZarrStore, camera: str, encoder: FrameEncoder, preparation: ImagePreparation, settings: PredictorSettings,
    seed: int,
) -> WorldModel:  # fmt: skip
    """A world model around `encoder` whose predictor has fresh weights."""
    robot = robot_of(store)
    space = state_space(robot, settings.stride)
    config = WorldModelConfig(
        robot=robot,
        camera=camera,
        preparation=preparation,
        encoder=encoder.describe(),
        latent=LatentConfig(encoder.grid, settings.grid, encoder.dim, centre=settings.centre),
        predictor=PredictorConfig(
            grid_height=settings.grid,
            grid_width=settings.grid,
            latent_dim=encoder.dim,
            width=settings.width,
            depth=settings.depth,
            heads=settings.heads,
            max_frames=settings.frames,
            action_dim=space.action_dim,
            state_dim=space.state_dim,
            residual=settings.residual,
            conditioning=settings.conditioning,
            rotary=settings.rotary,
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
        conditioning=predictor.conditioning, rotary=predictor.rotary,
    )  # fmt: skip


def continued_model(
    model: WorldModel, store: ZarrStore, camera: str, *, other_period: bool = False, keep_limits: bool = False
) -> WorldModel:
    """`model` for the robot and camera of a store, to be trained on: encoder, latent space and weights are its own.

    `other_period`: although the store's control period is another. `keep_limits`: joint limits that differ, and
    that the store's lie within, stay the model's. Raises `InputError` where the numbers of the store's states or
    actions would mean something else to the model, with both.
    """
    robot, own = robot_of(store), model.config.robot
    check_numbers(own, robot, OTHERWISE)
    if not other_period:
        check_period(own, robot, "or say --other-period to go on at the store's")
    if own.state_model != "pose":
        robot = with_limits_of(own, robot, keep_limits, OTHERWISE)
    model.config = replace(
        model.config, robot=robot, camera=camera, renderer=store.spec.renderer, calibration=None, training={}
    )
    model.states = state_space(robot, model.config.stride).to(model.device)
    model.predictor.requires_grad_(True)
    return model


def train_world_model(
    source: Source,
    out: Path,
    start: str | WorldModel,
    settings: PredictorSettings,
    training: TrainSettings,
    device: torch.device,
    *,
    recompute: bool = False,
    other_period: bool = False,
    keep_limits: bool = False,
    progress: Progress | None = None,
    caching: CacheProgress | None = None,
    stop_at: int | None = None,
) -> TrainResult:
    """Train a predictor on the frozen encoder's latents of the store; the world model lands in `out/model`.

    `start`: the encoder's name, for a fresh predictor; or a world model to go on from, which is changed. The
    encoder is in memory once, and what is trained is the predictor alone. `recompute`: with activation checkpointing.
    `other_period`, `keep_limits`: see `continued_model`.
    """
    store = ZarrStore.open(source.store)
    camera = only_camera(store, source.camera)
    if isinstance(start, WorldModel):
        history: dict[str, Any] = {"init": {"sha256": weights_hash(start), **start.config.training}}
        about: dict[str, Any] = {}
        model = continued_model(start, store, camera, other_period=other_period, keep_limits=keep_limits)
    else:
        history = {}
        encoder, preparation, about = open_encoder(start, picture_size(store, camera), training.seed)
        model = new_world_model(store, camera, encoder, preparation, settings, training.seed).to(device)
    encoder_hash = weights_hash(model.encoder)
    begin(
        out,
        "train",
        {
            "predictor": asdict(settings),
            "training": asdict(training),
            "camera": camera,
            "preparation": model.config.preparation.to_dict(),
            "encoder": encoder_hash,
            "data": store.content_hash(),
            **({"init": history["init"]["sha256"]} if history else {}),
        },
    )
    latents = _cache_latents(source, store, camera, model, encoder_hash, training.bf16, caching)
    train_episodes, held_out = split_episodes(len(store))
    if not isinstance(start, WorldModel):  # the statistics of a trained predictor are part of what it was trained on
        _fit_latent_space(model.latent_space, latents, store, train_episodes)
    model.get_familiar(_pooled(model, latents, _even_rows(store, train_episodes)))
    frames = FrameCache.build(store, camera, source.cache)
    likeness = _likeness(model, latents, frames, _even_rows(store, held_out))
    episodes = held_out_episodes(model, store, latents, held_out)
    calibration = calibrate(model, episodes, *likeness)  # fails early if at all
    clips = ClipDataset(
        store, settings.frames, settings.stride, camera, episodes=train_episodes, frames=latents,
        shorter=settings.shorter,
    )  # fmt: skip
    model.predictor.recompute = recompute
    learner = PredictorLearner(model, settings, ClipBatches(clips, training.batch, training.seed), device)
    result = Trainer(learner, training, out, device).run(progress, stop_at=stop_at)
    if weights_hash(model.encoder) != encoder_hash:
        raise AssertionError("the frozen encoder's weights changed during training")
    if result.finished:
        model.calibrated(calibration)
        model.config = replace(
            model.config,
            training={
                "encoder": {"sha256": encoder_hash, **about},
                **history,
                "data": store.content_hash(),
                "frames": int(store.lengths().sum()),
                "predictor": asdict(settings),
                "trainer": asdict(training),
                "steps": result.step,
                "seconds": round(result.seconds, 1),
                "commit": provenance()["commit"],
            },
        )
        model.save_pretrained(out / MODEL_FOLDER)
    return result


def held_out_episodes(
    model: WorldModel, store: ZarrStore, latents: LatentCache, episodes: list[int]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(latents [t, p, d], states [t, s]) of each of `episodes`, on the CPU."""
    ends = store.lengths().cumsum()
    states, _ = store.states_and_actions()
    result = []
    for index in episodes:
        rows = slice(int(ends[index] - store.lengths()[index]), int(ends[index]))
        pooled = torch.from_numpy(latents.rows[rows].astype("float32")).to(model.device)
        result.append((model.standardise(pooled).cpu(), torch.from_numpy(states[rows])))
    return result


def _cache_latents(
    source: Source,
    store: ZarrStore,
    camera: str,
    model: WorldModel,
    encoder_hash: str,
    bf16: bool,
    caching: CacheProgress | None,
) -> LatentCache:
    frames = FrameCache.build(store, camera, source.cache, _named(caching, "frames"))
    made = {"grid": model.config.latent.grid, "device": model.device.type, "bf16": bf16}
    preparation = json.dumps({**model.config.preparation.to_dict(), **made}, sort_keys=True)

    def encode(pictures: torch.Tensor) -> torch.Tensor:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            return model.pooled(pictures)

    return LatentCache.build(
        frames,
        encode,
        encoder_hash=encoder_hash,
        preparation_hash=hashlib.sha256(preparation.encode()).hexdigest(),
        folder=source.cache,
        batch=256,
        progress=_named(caching, "latents"),
    )


STATISTICS_FRAMES = 20_000  # at most about so many give the latents' mean and deviation


def _fit_latent_space(space: LatentSpace, latents: LatentCache, store: ZarrStore, episodes: list[int]) -> None:
    """Statistics of whole episodes, evenly spread over the training ones: a frame or two of each would say
    little, or nothing, of the variation within them. Long episodes give frames spread over their whole length."""
    lengths, ends = store.lengths(), store.lengths().cumsum()
    share = max(STATISTICS_FRAMES // len(episodes), 100)  # of an episode
    every = max(1, -(-int(lengths[episodes].clip(max=share).sum()) // STATISTICS_FRAMES))
    spread = [torch.arange(int(ends[i] - lengths[i]), int(ends[i])) for i in episodes[::every]]
    rows = torch.cat([rows[:: max(1, -(-len(rows) // share))] for rows in spread])
    numbers = torch.from_numpy(ends.searchsorted(rows.numpy(), side="right")).to(space.mean.device)
    space.fit(torch.from_numpy(latents.take(rows.numpy()).astype("float32")).to(space.mean.device), numbers)


def _even_rows(store: ZarrStore, episodes: list[int]) -> Int64[np.ndarray, "n"]:
    """At most `FRAMES` rows of the given episodes, from as many of them as there are."""
    lengths, ends = store.lengths(), store.lengths().cumsum()
    rows = np.concatenate([np.arange(ends[i] - lengths[i], ends[i]) for i in episodes])
    return rows[np.linspace(0, len(rows) - 1, min(FRAMES, len(rows))).astype(np.int64)]


def _pooled(model: WorldModel, latents: LatentCache, rows: Int64[np.ndarray, "n"]) -> torch.Tensor:
    return torch.from_numpy(latents.take(rows).astype("float32")).to(model.device)


def _likeness(
    model: WorldModel, latents: LatentCache, frames: FrameCache, rows: Int64[np.ndarray, "n"]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Score, contrast and grain (`Likeness`) of each picture in `rows`."""
    assert model.familiarity is not None
    scores, contrast, grain = [], [], []
    for some in np.array_split(rows, -(-len(rows) // 256)):
        scores.append(model.familiarity(_pooled(model, latents, some)).cpu())
        contrast.append(model.config.preparation.deviation(frames.take(some)))
        grain.append(model.config.preparation.grain(frames.take(some)))
    return torch.cat(scores), torch.cat(contrast), torch.cat(grain)


def _named(caching: CacheProgress | None, what: str) -> Callable[[int, int], None] | None:
    if caching is None:
        return None
    return lambda done, total: caching(what, done, total)
