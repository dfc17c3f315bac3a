"""`vjepa-mpc train-actor`: what to do to come to a goal, learned from logs."""

from __future__ import annotations

import math
from pathlib import Path

import typer

from vjepa_mpc.core.errors import InputError


def train_actor(
    model: str = typer.Argument(..., help="World model: a folder, a run of train, a shipped one's name."),
    store: Path = typer.Argument(..., help="Trajectory store of its robot (logs.zarr)."),
    out: Path = typer.Option(Path("runs/actor"), help="Run folder; an interrupted run in it is resumed."),
    steps: int | None = typer.Option(None, help="Optimiser steps."),
    minutes: float | None = typer.Option(None, help="Instead of --steps: about how long; 5 when neither is given."),
    batch: int = typer.Option(512, help="Pairs of frame and goal a step."),
    lr: float = typer.Option(1e-3, help="Peak learning rate."),
    weight_decay: float = typer.Option(0.1, min=0, help="AdamW's: against remembering the logs."),
    ahead: int | None = typer.Option(
        None, help="Control steps that the actor says (default: as many as a plan of the model takes, 4 to 8)."
    ),
    span: int = typer.Option(16, help="Control steps that a goal is away at most, in its frame's episode."),
    ends: float = typer.Option(
        0.0, min=0, max=1, help="Share of goals that are where what was done in one go ended: what was meant."
    ),
    ema: float = typer.Option(0.999, help="Momentum of the averaged weights, which are the ones kept; 0: no average."),
    components: int = typer.Option(4, help="Gaussians of the mixture: ways to a goal that differ."),
    channels: int = typer.Option(32, help="What is read at each position of the latents."),
    width: int = typer.Option(384, help="Width of the layers after that."),
    of: list[str] = typer.Option(
        [], help="Learn of this behaviour alone, as the logs' metadata names it (demonstration); may be repeated."
    ),
    object_: bool = typer.Option(
        False, "--object", help="Read the pose of what the task pushes, which the logs say, and act as seen from it."
    ),
    camera: str | None = typer.Option(None, help="Camera (default: the model's)."),
    cache: Path | None = typer.Option(None, help="Folder for the caches (default: beside the store)."),
    seed: int = typer.Option(0, min=0, max=2**32, help="Seed of weights and pairs."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    checkpoint_every: int = typer.Option(500, help="Steps between checkpoints."),
    propose: int | None = typer.Option(
        None, min=0, help="Proposals among the first candidates of plans (default: the model's, or 8)."
    ),
    actor_steps: int | None = typer.Option(
        None, min=1, help="Control steps that it does by itself before it looks again (default: the model's, or 1)."
    ),
    actor_drawn: bool | None = typer.Option(
        None, "--actor-drawn/--actor-likeliest",
        help="What it does by itself: what it draws of its mixture, or the likeliest (default: the model's, or that).",
    ),
    mode_1: bool | None = typer.Option(
        None, "--mode-1/--mode-2",
        help="plan and evaluate take the actor by itself, or plans (default: the model's, or plans).",
    ),
    json_output: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Train an actor for a world model: actions towards a goal picture; OUT/model is the model with it.

    It plays by itself (evaluate --planner actor), or its proposals are among the first candidates of plans
    (docs/actor.md). The weights kept are those under which episodes not learned from were likeliest. Ctrl-C saves; the
    same command goes on from there, to the bit.
    """
    from vjepa_mpc.cli.building import choose_device, limit_threads, model_folder
    from vjepa_mpc.cli.training import report, training_progress
    from vjepa_mpc.pretrain.actor import own_ahead
    from vjepa_mpc.pretrain.actor import train_actor as train
    from vjepa_mpc.pretrain.actor_data import ActorSettings
    from vjepa_mpc.pretrain.optimising import TrainSettings
    from vjepa_mpc.pretrain.source import Source
    from vjepa_mpc.pretrain.starting import MODEL_FOLDER
    from vjepa_mpc.world_model import WorldModel

    if steps is not None and minutes is not None:
        raise InputError("Give --steps or --minutes, not both.")
    if steps is None and minutes is None:
        minutes = 5.0
    training = TrainSettings(
        steps=steps, minutes=minutes, batch=batch, optimizer="adamw", lr=lr, weight_decay=weight_decay, seed=seed,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip
    limit_threads(None)
    own = choose_device(device)
    world = WorldModel.from_pretrained(model_folder(model), own)  # with its weights as they are stored
    settings = ActorSettings(
        ahead=own_ahead(world) if ahead is None else ahead, span=span, ends=ends, ema=ema, components=components,
        channels=channels, width=width, object=object_, behaviours=tuple(of),
    )  # fmt: skip
    with training_progress("training", [settings, training]) as (progress, caching):
        result, figures = train(
            world, Source(store, camera, cache, None, "fp16"), out, settings, training, own,
            propose=propose, steps=actor_steps, drawn=actor_drawn, alone=mode_1, progress=progress, caching=caching,
        )  # fmt: skip
    if figures and not json_output:
        typer.echo(
            f"Held-out episodes: an action's value is off by {figures['error']:.3f} of a step's limit (the mean "
            f"action: {figures['error_of_mean']:.3f}), log-likelihood {figures['likelihood']:.2f} "
            f"({figures['likelihood_of_mean']:.2f}); weights of step {figures['best_after_steps']:.0f}.", err=True,
        )  # fmt: skip
        if "place_m_median" in figures:
            typer.echo(
                f"The object is read to {100 * figures['place_m_median']:.1f} cm and "
                f"{math.degrees(figures['angle_rad_median']):.1f} degrees in the median (nine of ten within "
                f"{100 * figures['place_m_p90']:.1f} cm, {math.degrees(figures['angle_rad_p90']):.1f} degrees).",
                err=True,
            )  # fmt: skip
        if figures["likelihood"] <= figures["likelihood_of_mean"]:
            typer.echo(
                "It foretells them no better than the mean action does: give it more logs, of ways to goals, or steps.",
                err=True,
            )
    following = f"play it with `vjepa-mpc evaluate --model {out} --planner actor`"
    report(result, out, out / MODEL_FOLDER, following, json_output, figures)
