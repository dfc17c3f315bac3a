"""The two trainings as whole runs: from a store to an encoder, from a store and an encoder to a world model.

A run folder holds settings, curves, log and checkpoint; the result appears in it, whole, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.core.files import atomic_folder, write_json
from vjepa_mpc.datasets.cache import FrameCache, only_camera
from vjepa_mpc.datasets.clips import ClipDataset, split_episodes
from vjepa_mpc.datasets.sampling import ClipMixture
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.encoder import weights_hash, without_bars
from vjepa_mpc.executor import Executor
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.pretrain import ranks
from vjepa_mpc.pretrain.caching import cache_frames, cache_latents
from vjepa_mpc.pretrain.calibration import calibrate
from vjepa_mpc.pretrain.data import ClipBatches, MixtureBatches
from vjepa_mpc.pretrain.health import CollapseError
from vjepa_mpc.pretrain.health_figure import HEALTH, save_health
from vjepa_mpc.pretrain.objective import ObjectiveSettings
from vjepa_mpc.pretrain.objectives import find_objective, name_of, plain
from vjepa_mpc.pretrain.optimising import TrainSettings
from vjepa_mpc.pretrain.predictor import PredictorLearner, PredictorSettings
from vjepa_mpc.pretrain.run_folder import begin, commits, note_version
from vjepa_mpc.pretrain.run_log import LOG
from vjepa_mpc.pretrain.source import (
    CacheProgress,
    Source,
    even_rows,
    fit_latent_space,
    held_out_episodes,
    likeness,
    picture_size,
    pooled,
)
from vjepa_mpc.pretrain.starting import (
    ENCODER_FOLDER,
    MODEL_FOLDER,
    PREPARATION,
    continued_model,
    encoder_record,
    new_world_model,
    open_encoder,
)
from vjepa_mpc.pretrain.trainer import Progress, Trainer, TrainResult
from vjepa_mpc.world_model import WorldModel

if TYPE_CHECKING:
    from transformers import VJEPA2Model



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
    init: VJEPA2Model | None = None,
    wandb: str | None = None,
    measure: bool = False,
) -> TrainResult:
    """Learn an encoder from the store's frames into `out/encoder` (a Hugging Face `VJEPA2Model` folder).

    Several ranks (`ranks.joined`) each call it alike, with one `out` that they share; so for `train_world_model`.
    The objective is the one that `settings` are of. A collapse (`CollapseError`) or a number that is no longer finite
    (`NotFiniteError`) ends the run with a plot of its curves, `out/health.png`.
    `wandb`: a project of Weights & Biases to send the curves to. `measure`: see `Trainer.measured`.
    `init`: an encoder of `settings.size` whose weights are begun with. `mixed`: other stores, each with its share
    (0 to 1) of the clips; the rest are the first one's.
    """
    ranks.share(training.batch)  # refused before anything takes time
    store = ZarrStore.open(source.store)
    camera = only_camera(store, source.camera)
    asked: dict[str, Any] = {"objective": plain(settings), "training": asdict(training), "camera": camera}
    others = [[ZarrStore.open(other.store).content_hash(), share] for other, share in mixed]
    if others:
        asked["mixed"] = others
    if init is not None:
        asked["init"] = weights_hash(init.encoder)
    begin(out, "pretrain", {**asked, "data": store.content_hash()})
    preparation = ImagePreparation(size=settings.size.picture, contrast=settings.contrast)
    data = _pretraining_data([(source, 1.0), *mixed], settings, training, caching)
    learner = find_objective(name_of(settings)).learner(settings, data, preparation, device, training.seed)
    if init is not None:
        learner.begin_with(init)
    trainer = Trainer(learner, training, out, device, wandb)
    if trainer.goes_on:
        note_version(out)
    try:
        result = trainer.run(progress, stop_at=stop_at)
    except (CollapseError, NotFiniteError) as error:
        if not (ranks.first() and save_health(out / LOG, out / HEALTH)):
            raise
        raise type(error)(f"{str(error).rstrip('.')} (its curves: {out / HEALTH}).") from error
    if result.finished and ranks.first():
        with without_bars(), atomic_folder(out / ENCODER_FOLDER) as folder:
            learner.product.save_pretrained(folder)
            write_json(
                folder / PREPARATION,
                {
                    "preparation": preparation.to_dict(),
                    "training": {
                        "data": store.content_hash(),
                        **{key: asked[key] for key in ("mixed", "init") if key in asked},
                        "objective": plain(settings),
                        "trainer": asdict(training),
                        "steps": result.step,
                        "seconds": round(result.seconds, 1),
                        "commits": commits(out),
                    },
                },
            )
    return trainer.measured(result) if measure else result


def _pretraining_data(
    sources: Sequence[tuple[Source, float]], settings: ObjectiveSettings, training: TrainSettings,
    caching: CacheProgress | None,
) -> ClipBatches | MixtureBatches:  # fmt: skip
    """Batches of the training clips of one store, or of several; the shares of all but the first are given."""
    parts = []
    for source, _ in sources:
        store = ZarrStore.open(source.store)
        camera = only_camera(store, source.camera)
        with ranks.first_before_the_others():
            frames = cache_frames(source, store, camera, caching)
        episodes = split_episodes(len(store))[0]
        parts.append(ClipDataset(store, settings.frames, settings.stride, camera, episodes=episodes, frames=frames))
    if len(parts) == 1:
        return ClipBatches(parts[0], training.batch, training.seed)
    shares = [share for _, share in sources[1:]]
    if min(shares) <= 0 or sum(shares) >= 1:
        raise InputError(f"The shares of the mixed stores must be positive and leave some for the first, got {shares}.")
    return MixtureBatches(ClipMixture(parts, [1 - sum(shares), *shares]), training.batch, training.seed)


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
    executor: Executor | None = None,
    progress: Progress | None = None,
    caching: CacheProgress | None = None,
    stop_at: int | None = None,
    wandb: str | None = None,
    measure: bool = False,
) -> TrainResult:
    """Train a predictor on the frozen encoder's latents of the store; the world model lands in `out/model`.

    `start`: the encoder's name, for a fresh predictor; or a world model to go on from, which is changed. The
    encoder is in memory once, and what is trained is the predictor alone. `recompute`: with activation checkpointing.
    `other_period`, `keep_limits`: see `continued_model`. `executor`: where frames are encoded (None: here).
    """
    ranks.share(training.batch)  # refused before anything takes time
    store = ZarrStore.open(source.store)
    camera = only_camera(store, source.camera)
    if isinstance(start, WorldModel):
        history: dict[str, Any] = {"init": {"sha256": weights_hash(start), **start.config.training}}
        about = encoder_record(start.config)
        model = continued_model(start.to(device), store, camera, other_period=other_period, keep_limits=keep_limits)
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
            **({"latents": source.numbers} if source.numbers != "fp16" else {}),
        },
    )
    with ranks.first_before_the_others():
        latents = cache_latents(source, store, camera, model, encoder_hash, training.bf16, executor, caching)
    train_episodes, held_out = split_episodes(len(store))
    if not isinstance(start, WorldModel):  # the statistics of a trained predictor are part of what it was trained on
        fit_latent_space(model.latent_space, latents, store, train_episodes)
        ranks.follow_first(model.latent_space)
    model.get_familiar(pooled(model, latents, even_rows(store, train_episodes)))
    frames = FrameCache.build(store, camera, source.cache)
    alike = likeness(model, latents, frames, even_rows(store, held_out))
    episodes = held_out_episodes(model, store, latents, held_out)
    calibration = calibrate(model, episodes, *alike)  # fails early if at all
    clips = ClipDataset(
        store, settings.frames, settings.stride, camera, episodes=train_episodes, frames=latents,
        shorter=settings.shorter,
    )  # fmt: skip
    model.predictor.recompute = recompute
    learner = PredictorLearner(model, settings, ClipBatches(clips, training.batch, training.seed), device)
    trainer = Trainer(learner, training, out, device, wandb)
    if trainer.goes_on:
        note_version(out)
    result = trainer.run(progress, stop_at=stop_at)
    if weights_hash(model.encoder) != encoder_hash:
        raise AssertionError("the frozen encoder's weights changed during training")
    if result.finished and ranks.first():
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
                "commits": commits(out),
            },
        )
        model.save_pretrained(out / MODEL_FOLDER)
    return trainer.measured(result) if measure else result
