"""`vjepa-mpc train`: an action-conditioned world model on a frozen encoder."""

from __future__ import annotations

from pathlib import Path

import typer


def train(
    store: Path = typer.Argument(..., help="Trajectory store (logs.zarr)."),
    encoder: str = typer.Option(
        ..., help="Encoder: a run of `pretrain`, a VJEPA2Model folder or Hugging Face id; 'untrained', 'pixels'."
    ),
    out: Path = typer.Option(Path("runs/model"), help="Run folder; an interrupted run in it is resumed."),
    steps: int | None = typer.Option(None, help="Optimiser steps."),
    minutes: float | None = typer.Option(None, help="Instead of --steps: about how long; 30 when neither is given."),
    batch: int = typer.Option(256, help="Clips a step."),
    optimizer: str = typer.Option("muon", help="muon (for the matrices of hidden layers) or adamw."),
    lr: float = typer.Option(3e-3, help="Peak learning rate."),
    warmup: int = typer.Option(50, help="Steps of linear warm-up."),
    seed: int = typer.Option(0, min=0, max=2**32, help="Seed of weights and clips."),
    grid: int = typer.Option(4, help="Latents are pooled to grid x grid."),
    width: int = typer.Option(128, help="Predictor width."),
    depth: int = typer.Option(4, help="Predictor layers."),
    heads: int = typer.Option(2, help="Predictor heads."),
    stride: int = typer.Option(15, help="Control steps a model step spans (their displacements add up)."),
    shorter: bool = typer.Option(True, "--shorter/--exact", help="Also learn from spans shorter than the stride."),
    frames: int = typer.Option(2, help="Frames a clip: bounds history and horizon, in model steps."),
    history: int = typer.Option(1, help="Past frames the model sees when planning."),
    rollout: int = typer.Option(0, help="Steps of the rollout loss; 0 for none."),
    l2: bool = typer.Option(True, "--l2/--l1", help="Squared or absolute error."),
    residual: bool = typer.Option(True, "--residual/--absolute", help="Predict the change of the latents, or them."),
    centre: bool = typer.Option(True, "--centre/--as-is", help="Take each picture's mean out of its latents."),
    camera: str | None = typer.Option(None, help="Camera, when the store has several."),
    cache: Path | None = typer.Option(None, help="Folder for the caches (default: beside the store)."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    bf16: bool = typer.Option(True, "--bf16/--fp32", help="Compute in bfloat16."),
    checkpoint_every: int = typer.Option(500, help="Steps between checkpoints."),
    json_output: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Train the action-conditioned predictor on a frozen encoder; the result, OUT/model, is ready to plan with.

    Latents are encoded once into a cache. Ctrl-C saves; the same command goes on from there, to the bit.
    """
    from vjepa_mpc.cli.building import choose_device
    from vjepa_mpc.cli.training import report, training_progress
    from vjepa_mpc.pretrain.predictor import PredictorSettings
    from vjepa_mpc.pretrain.run import MODEL_FOLDER, Source, train_world_model
    from vjepa_mpc.pretrain.trainer import TrainSettings

    if steps is None and minutes is None:
        minutes = 30.0
    settings = PredictorSettings(
        grid=grid, width=width, depth=depth, heads=heads, stride=stride, shorter=shorter, frames=frames,
        history=history, rollout_steps=rollout, l2=l2, residual=residual, centre=centre,
    )  # fmt: skip
    training = TrainSettings(
        steps=steps, minutes=minutes, batch=batch, optimizer=optimizer, lr=lr, warmup=warmup, seed=seed, bf16=bf16,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip
    with training_progress("training") as (progress, caching):
        result = train_world_model(
            Source(store, camera, cache), out, encoder, settings, training, choose_device(device),
            progress=progress, caching=caching,
        )  # fmt: skip
    report(result, out, out / MODEL_FOLDER, "plan with `vjepa-mpc plan --model`", json_output)
