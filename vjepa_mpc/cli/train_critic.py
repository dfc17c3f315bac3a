"""`vjepa-mpc train-critic`: how many control steps a goal is away, learned from logs."""

from __future__ import annotations

from pathlib import Path

import typer

from vjepa_mpc.core.errors import InputError


def train_critic(
    model: str = typer.Argument(..., help="World model: a folder, a run of train, a shipped one's name."),
    store: Path = typer.Argument(..., help="Trajectory store of its robot (logs.zarr)."),
    out: Path = typer.Option(Path("runs/critic"), help="Run folder; an interrupted run in it is resumed."),
    steps: int | None = typer.Option(None, help="Optimiser steps."),
    minutes: float | None = typer.Option(None, help="Instead of --steps: about how long; 5 when neither is given."),
    batch: int = typer.Option(512, help="Pairs of frame and goal a step."),
    lr: float = typer.Option(1e-3, help="Peak learning rate."),
    expectile: float = typer.Option(0.1, help="Below 0.5: the lower, the more the shortest ways of the logs count."),
    lookahead: int = typer.Option(8, help="Control steps between a frame and the one it learns from, at most."),
    elsewhere: float = typer.Option(0.5, help="Share of the goals that are frames of other episodes, alike in look."),
    most: int = typer.Option(150, help="Control steps that no goal counts for more than."),
    channels: int = typer.Option(32, help="What is read at each position of the latents."),
    width: int = typer.Option(384, help="Width of the layers after that."),
    camera: str | None = typer.Option(None, help="Camera (default: the model's)."),
    cache: Path | None = typer.Option(None, help="Folder for the caches (default: beside the store)."),
    seed: int = typer.Option(0, min=0, max=2**32, help="Seed of weights and pairs."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    checkpoint_every: int = typer.Option(500, help="Steps between checkpoints."),
    weight: float | None = typer.Option(
        None, min=0, help="What a foreseen control step costs in plans (default: the model's, or 0.3)."
    ),
    json_output: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Train a critic for a world model: control steps to a goal picture; OUT/model is the model with it.

    It sees walls where the latent distance sees none. Plans then minimise both (docs/critic.md). Ctrl-C saves; the
    same command goes on from there, to the bit.
    """
    from vjepa_mpc.cli.building import choose_device, limit_threads, model_folder
    from vjepa_mpc.cli.training import report, training_progress
    from vjepa_mpc.pretrain.critic import CriticSettings
    from vjepa_mpc.pretrain.critic import train_critic as train
    from vjepa_mpc.pretrain.optimising import TrainSettings
    from vjepa_mpc.pretrain.source import Source
    from vjepa_mpc.pretrain.starting import MODEL_FOLDER
    from vjepa_mpc.world_model import WorldModel

    if steps is not None and minutes is not None:
        raise InputError("Give --steps or --minutes, not both.")
    settings = CriticSettings(
        expectile=expectile, lookahead=lookahead, elsewhere=elsewhere, most=most, channels=channels, width=width
    )
    if steps is None and minutes is None:
        minutes = 5.0
    training = TrainSettings(
        steps=steps, minutes=minutes, batch=batch, optimizer="adamw", lr=lr, seed=seed,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip
    limit_threads(None)
    own = choose_device(device)
    world = WorldModel.from_pretrained(model_folder(model), own)  # with its weights as they are stored
    with training_progress("training", [settings, training]) as (progress, caching):
        result, figures = train(
            world, Source(store, camera, cache, None, "fp16"), out, settings, training, own,
            weight=weight, progress=progress, caching=caching,
        )  # fmt: skip
    if len(figures) == 2 and not json_output:
        typer.echo(
            f"Held-out episodes' later frames by the steps taken to them: rank correlation {figures['order']:.2f} "
            f"(latent distance: {figures['order_by_distance']:.2f}).", err=True,
        )  # fmt: skip
    following = f"plan with `vjepa-mpc plan --model {out} --goal PICTURE`"
    report(result, out, out / MODEL_FOLDER, following, json_output, figures)
