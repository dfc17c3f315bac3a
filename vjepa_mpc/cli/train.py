"""`vjepa-mpc train`: an action-conditioned world model on a frozen encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.cli.starting_points import PRESET_HELP, RESUME_HELP, Context, preset, resume
from vjepa_mpc.cli.workers import WORKERS_HELP, launches, placed, train_in_workers, training_worker
from vjepa_mpc.core.errors import InputError

if TYPE_CHECKING:
    from vjepa_mpc.executor import Executor
    from vjepa_mpc.pretrain.optimising import TrainSettings
    from vjepa_mpc.pretrain.predictor import PredictorSettings


def train(
    context: Context,
    store: Path = typer.Argument(..., help="Trajectory store (logs.zarr)."),
    encoder: str | None = typer.Option(
        None,
        help="Encoder: a run of `pretrain`, a VJEPA2Model folder or Hugging Face id; a world model's (a folder, a "
        "shipped one's name); 'untrained', 'pixels'.",
    ),
    init: str | None = typer.Option(
        None, help="Instead: a world model to go on from, Meta's converted or reacher too; it keeps its own shape."
    ),
    out: Path = typer.Option(Path("runs/model"), help="Run folder; an interrupted run in it is resumed."),
    steps: int | None = typer.Option(None, help="Optimiser steps."),
    minutes: float | None = typer.Option(None, help="Instead of --steps: about how long; 30 when neither is given."),
    batch: int = typer.Option(256, help="Clips a step."),
    accumulate: int = typer.Option(1, help="Batches whose gradients make one step: a larger batch in the same memory."),
    preset_name: str | None = typer.Option(None, "--preset", help=PRESET_HELP, is_eager=True, callback=preset),
    resumed: Path | None = typer.Option(None, "--resume", help=RESUME_HELP, is_eager=True, callback=resume),
    optimizer: str | None = typer.Option(
        None, help="muon (for the matrices of hidden layers; default) or adamw (default with --init)."
    ),
    lr: float | None = typer.Option(None, help="Peak learning rate (default: 3e-3; 7.5e-5 with --init)."),
    warmup: int = typer.Option(50, help="Steps of linear warm-up."),
    cooldown: float = typer.Option(0.3, help="Share of the steps, the last ones, over which the rate falls to 0."),
    clip: float = typer.Option(1.0, help="Largest norm of the gradient."),
    seed: int = typer.Option(0, min=0, max=2**32, help="Seed of weights and clips."),
    grid: int | None = typer.Option(None, help="Latents are pooled to grid x grid (default: 4)."),
    pooling: str | None = typer.Option(
        None, help="Neighbours pooled by their mean (default), or concat: side by side, which keeps small things."
    ),
    width: int | None = typer.Option(None, help="Predictor width (default: 128)."),
    depth: int | None = typer.Option(None, help="Predictor layers (default: 4)."),
    heads: int | None = typer.Option(None, help="Predictor heads (default: 2)."),
    stride: int | None = typer.Option(None, help="Control steps a model step spans, summed (default: 15)."),
    shorter: bool = typer.Option(True, "--shorter/--exact", help="Also learn from spans shorter than the stride."),
    frames: int | None = typer.Option(None, help="Frames a clip: bound history and horizon (default: 2)."),
    history: int | None = typer.Option(None, help="Past frames the model sees when planning (default: 1)."),
    rollout: int = typer.Option(0, help="Steps of the rollout loss; 0 for none."),
    l2: bool = typer.Option(True, "--l2/--l1", help="Squared or absolute error (V-JEPA 2-AC's)."),
    residual: bool | None = typer.Option(
        None, "--residual/--absolute", help="Predict the change of the latents (default), or them."
    ),
    conditioning: str | None = typer.Option(
        None, help="Actions and states as tokens among patches (default), or by adaptive_norm."
    ),
    rotary: str | None = typer.Option(None, help="Rotary frequencies: tiled (default; V-JEPA 2-AC's) or interleaved."),
    proprioception: str | None = typer.Option(
        None, help="Imagined states: integrated from actions (default), or predicted, where walls hold the robot up."
    ),
    centre: bool | None = typer.Option(
        None, "--centre/--as-is", help="Take each picture's mean out of its latents (default)."
    ),
    other_period: bool = typer.Option(
        False, "--other-period", help="With --init: although the logs' control period is not the model's."
    ),
    keep_limits: bool = typer.Option(
        False, "--keep-limits", help="With --init: joint limits stay the model's where the logs' lie within them."
    ),
    recompute: bool = typer.Option(False, "--recompute", help="Activation checkpointing: less memory, more time."),
    need: bool = typer.Option(False, "--need", help="Say what memory this training needs, and train nothing."),
    camera: str | None = typer.Option(None, help="Camera, when the store has several."),
    cache: Path | None = typer.Option(None, help="Folder for the caches (default: beside the store)."),
    cache_most: float | None = typer.Option(
        None, min=0, help="Gigabytes that all caches there may take; those used longest ago go (see data caches)."
    ),
    latents: str = typer.Option("fp16", help="How latents are cached: fp16 or bf16."),
    encode_workers: int = typer.Option(1, min=1, help="Processes that encode the frames, or Ray actors with --ray."),
    ray: bool = typer.Option(
        False, "--ray", help="Encode on a Ray started here, a GPU an actor if any; with --workers: train there."
    ),
    ray_address: str | None = typer.Option(None, help="The same on the Ray cluster at this address, or auto."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    workers: int | None = typer.Option(None, help=WORKERS_HELP),
    bf16: bool = typer.Option(True, "--bf16/--fp32", help="Compute in bfloat16."),
    checkpoint_every: int = typer.Option(500, help="Steps between checkpoints."),
    keep: int = typer.Option(1, help="Checkpoints to keep; older ones are OUT/checkpoint-STEP.pt."),
    wandb: str | None = typer.Option(None, help="Also send the curves to this project of Weights & Biases."),
    json_output: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Train the action-conditioned predictor on a frozen encoder; the result, OUT/model, is ready to plan with.

    Latents are encoded once into a cache, by several --encode-workers if asked. Ctrl-C saves; the same command goes on
    from there, to the bit.
    """
    if workers is not None and launches(workers, on_ray=bool(ray or ray_address)):
        return train_in_workers(workers, context.obj, ray=ray, ray_address=ray_address, device=device)
    from vjepa_mpc.cli.training import report, training_progress
    from vjepa_mpc.pretrain.optimising import TrainSettings
    from vjepa_mpc.pretrain.run import train_world_model
    from vjepa_mpc.pretrain.source import Source
    from vjepa_mpc.pretrain.starting import MODEL_FOLDER

    if (encoder is None) == (init is None):
        raise InputError("Give either --encoder, for a new predictor, or --init, a world model to go on from.")
    if init is None and (other_period or keep_limits):
        raise InputError("--other-period and --keep-limits are for going on from a model; they go with --init.")
    if steps is None and minutes is None:
        minutes = 30.0
    shape = {
        "grid": grid, "pooling": pooling, "width": width, "depth": depth, "heads": heads, "stride": stride,
        "history": history, "residual": residual, "centre": centre, "conditioning": conditioning, "rotary": rotary,
        "proprioception": proprioception,
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in shape.items() if value is not None}
    learning: dict[str, Any] = {"rollout_steps": rollout, "l2": l2, "shorter": shorter}
    start, settings = _start(encoder, init, given, frames, learning, device, need)
    training = TrainSettings(
        steps=steps, minutes=minutes, batch=batch, optimizer=optimizer or ("muon" if init is None else "adamw"),
        lr=lr if lr is not None else (3e-3 if init is None else 7.5e-5), warmup=warmup, seed=seed, bf16=bf16,
        checkpoint_every=checkpoint_every, keep=keep, cooldown=cooldown, clip=clip, accumulate=accumulate,
    )  # fmt: skip
    if need:
        _say_need(start, settings, training, recompute, json_output)
        return
    from vjepa_mpc.cli.building import choose_device, limit_threads

    limit_threads(None)
    source = Source(store, camera, cache, None if cache_most is None else int(cache_most * 1e9), latents)
    with (
        training_worker(choose_device(device)) as own,
        training_progress("training", [settings, training]) as (progress, caching),
    ):
        result = train_world_model(
            source, out, start, settings, training, own, recompute=recompute, other_period=other_period,
            keep_limits=keep_limits, executor=_encoders(encode_workers, ray, ray_address, own.type),
            progress=progress, caching=caching, wandb=wandb, measure=True,
        )  # fmt: skip
    report(result, out, out / MODEL_FOLDER, f"plan with `vjepa-mpc plan --model {out} --goal PICTURE`", json_output)


def _encoders(workers: int, ray: bool, ray_address: str | None, device: str) -> Executor | None:
    """Who encodes the frames; None for this process, with all its threads."""
    from vjepa_mpc.executor import LocalExecutor, RayExecutor

    if (ray or ray_address) and not placed():
        return RayExecutor(workers, ray_address, num_gpus=int(device == "cuda"))
    return LocalExecutor(workers) if workers > 1 else None


def _start(
    encoder: str | None,
    init: str | None,
    shape: dict[str, Any],
    frames: int | None,
    learning: dict[str, Any],
    device: str,
    need: bool,
) -> tuple[Any, PredictorSettings]:
    """What is trained on (an encoder's name, or a world model; its configuration alone for --need), and how."""
    from vjepa_mpc.pretrain.predictor import PredictorSettings

    if encoder is not None:
        if need:
            raise InputError("--need counts for a model that is there: give it with --init.")
        from vjepa_mpc.cli.building import encoder_source

        length: dict[str, Any] = {} if frames is None else {"frames": frames}
        return encoder_source(encoder), PredictorSettings(**shape, **learning, **length)
    if shape:
        raise InputError(f"--{next(iter(shape))} is part of the model that --init goes on from; leave it out.")
    from vjepa_mpc.cli.building import choose_device, model_folder
    from vjepa_mpc.pretrain.starting import continued_settings
    from vjepa_mpc.world_model import WorldModel, read_config

    folder = model_folder(init)
    settings = continued_settings(read_config(folder), frames=frames, **learning)
    if need:
        return read_config(folder), settings
    return WorldModel.from_pretrained(folder, choose_device(device)), settings


def _say_need(
    config: Any, settings: PredictorSettings, training: TrainSettings, recompute: bool, as_json: bool
) -> None:
    """The memory of one step, part by part."""
    from dataclasses import asdict

    from vjepa_mpc.pretrain.memory import training_memory

    need = training_memory(
        config, settings, training.batch, recompute=recompute, muon=training.optimizer == "muon"
    )
    rows = {**asdict(need), "total": need.total}
    if as_json:
        import json

        typer.echo(json.dumps(rows))
        return
    for name, value in rows.items():
        typer.echo(f"{name:12} {value / 2**30:9.3f} GiB")
    typer.echo(
        f"Batch {training.batch}, {settings.frames} frames; activations in float32"
        f"{', recomputed on the way back' if recompute else ''}; with bfloat16 between half and all of them."
    )
