"""`vjepa-mpc pretrain`: an encoder from a store's video, by one of several objectives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.cli.starting_points import PRESET_HELP, RESUME_HELP, Context, preset, resume
from vjepa_mpc.cli.workers import WORKERS_HELP, launches, train_in_workers, training_worker
from vjepa_mpc.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from vjepa_mpc.pretrain.objective import ObjectiveSettings
    from vjepa_mpc.pretrain.source import Source

OPTIONS = {
    "still": "still", "ema": "ema", "sigreg_weight": "sigreg", "sigreg_on": "sigreg-on",
    "context_weight": "context-loss", "inverse_weight": "inverse",
}  # fmt: skip
"""Settings of objectives that have an option, and how it is called."""


def pretrain(
    context: Context,
    store: Path = typer.Argument(..., help="Trajectory store (logs.zarr)."),
    objective: str = typer.Option("vjepa", help="vjepa, ijepa, lejepa or vicreg (see docs/pretraining.md)."),
    out: Path = typer.Option(Path("runs/encoder"), help="Run folder; an interrupted run in it is resumed."),
    steps: int | None = typer.Option(None, help="Optimiser steps."),
    minutes: float | None = typer.Option(None, help="Instead of --steps: about how long; 60 when neither is given."),
    batch: int = typer.Option(64, help="Clips a step."),
    accumulate: int = typer.Option(1, help="Batches whose gradients make one step: a larger batch in the same memory."),
    preset_name: str | None = typer.Option(None, "--preset", help=PRESET_HELP, is_eager=True, callback=preset),
    resumed: Path | None = typer.Option(None, "--resume", help=RESUME_HELP, is_eager=True, callback=resume),
    optimizer: str = typer.Option("adamw", help="muon (for the matrices of hidden layers) or adamw."),
    lr: float = typer.Option(1e-3, help="Peak learning rate."),
    warmup: int = typer.Option(100, help="Steps of linear warm-up."),
    cooldown: float = typer.Option(0.3, help="Share of the steps, the last ones, over which the rate falls to 0."),
    clip: float = typer.Option(1.0, help="Largest norm of the gradient."),
    seed: int = typer.Option(0, min=0, max=2**32, help="Seed of weights, clips and masks."),
    init: str | None = typer.Option(
        None,
        help="An encoder to go on from, of its own shape: a VJEPA2Model folder or Hugging Face id, a run, a world "
        "model's (a folder, a shipped one's name).",
    ),
    picture: int | None = typer.Option(
        None, help="Pixels along a side that the encoder sees (default: the store's pictures', or those of --init)."
    ),
    width: int | None = typer.Option(None, help="Encoder width (default: 128)."),
    depth: int | None = typer.Option(None, help="Encoder layers (default: 6)."),
    heads: int | None = typer.Option(None, help="Encoder heads (default: 2)."),
    patch: int | None = typer.Option(None, help="Patch size, pixels (default: 8)."),
    frames: int = typer.Option(4, help="Frames a clip."),
    stride: int = typer.Option(2, help="Control steps between the frames of a clip."),
    contrast: str | None = typer.Option(
        None, help="Normalise by each picture's own contrast (picture; default), or dataset (default: as --init does)."
    ),
    still: float | None = typer.Option(
        None, help="Share of steps on single frames doubled, as planning encodes them (vjepa; default: 0.5)."
    ),
    ema: float | None = typer.Option(None, help="Momentum of the target encoder (vjepa, ijepa; default: 0.996)."),
    sigreg: float | None = typer.Option(
        None, help="Weight of SIGReg, which keeps the encoder from collapsing (vjepa 0.3, ijepa 0, lejepa 0.05)."
    ),
    sigreg_on: str | None = typer.Option(
        None, help="What SIGReg acts on in vjepa: all tokens (default), or content, what each picture is beyond places."
    ),
    context_loss: float | None = typer.Option(
        None, help="Weight of V-JEPA 2.1's loss on kept patches (vjepa; default: 0)."
    ),
    inverse: float | None = typer.Option(
        None, help="Weight of reading the action between two pictures (default: 0; vicreg 1)."
    ),
    other: list[str] = typer.Option(
        [], "--set", help="Another setting of the objective, NAME=VALUE; may be repeated."
    ),
    mix: list[str] = typer.Option([], help="Another store and its share of the clips, STORE=SHARE; may be repeated."),
    camera: str | None = typer.Option(None, help="Camera, when the store has several."),
    cache: Path | None = typer.Option(None, help="Folder for the decoded-frame cache (default: beside the store)."),
    cache_most: float | None = typer.Option(
        None, min=0, help="Gigabytes that all caches there may take; those used longest ago go (see data caches)."
    ),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    workers: int | None = typer.Option(None, help=WORKERS_HELP),
    ray: bool = typer.Option(False, "--ray", help="With --workers: by Ray Train, on a Ray started on this machine."),
    ray_address: str | None = typer.Option(None, help="The same on the Ray cluster at this address, or auto."),
    bf16: bool = typer.Option(True, "--bf16/--fp32", help="Compute in bfloat16."),
    checkpoint_every: int = typer.Option(500, help="Steps between checkpoints."),
    keep: int = typer.Option(1, help="Checkpoints to keep; older ones are OUT/checkpoint-STEP.pt."),
    wandb: str | None = typer.Option(None, help="Also send the curves to this project of Weights & Biases."),
    json_output: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Pretrain an encoder by masked latent prediction, or another objective; the result is OUT/encoder.

    Ctrl-C saves; the same command goes on from there, to the bit. Curves: tensorboard --logdir OUT; a run that
    collapses stops and draws them in OUT/health.png.
    """
    if workers is None and (ray or ray_address):
        raise InputError("--ray and --ray-address are for several workers; say how many with --workers.")
    if workers is not None and launches(workers, on_ray=bool(ray or ray_address)):
        return train_in_workers(workers, context.obj, ray=ray, ray_address=ray_address, device=device)
    from vjepa_mpc.cli.building import choose_device, encoder_source, limit_threads
    from vjepa_mpc.cli.training import report, training_progress
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.pretrain.objective import EncoderSize
    from vjepa_mpc.pretrain.objectives import find_objective
    from vjepa_mpc.pretrain.optimising import TrainSettings
    from vjepa_mpc.pretrain.run import pretrain_encoder
    from vjepa_mpc.pretrain.source import Source, picture_size
    from vjepa_mpc.pretrain.starting import ENCODER_FOLDER, encoder_to_go_on_from

    find_objective(objective)
    if steps is None and minutes is None:
        minutes = 60.0
    shape = {name: value for name, value in (
        ("patch", patch), ("width", width), ("depth", depth), ("heads", heads)
    ) if value is not None}  # fmt: skip
    seen = picture_size(ZarrStore.open(store), camera)
    start = None
    if init is None:
        size = EncoderSize(picture=picture or seen, **shape)
    elif shape:
        raise InputError(f"--{next(iter(shape))} is part of the encoder that --init goes on from; leave it out.")
    else:
        start, prepared = encoder_to_go_on_from(encoder_source(init))
        size, contrast = EncoderSize.of(start.config, picture), contrast or prepared.contrast
    given = {
        "still": still, "ema": ema, "sigreg_weight": sigreg, "sigreg_on": sigreg_on, "context_weight": context_loss,
        "inverse_weight": inverse,
    }  # fmt: skip
    settings = _settings(
        objective,
        {"size": size, "frames": frames, "stride": stride, "contrast": contrast or "picture"},
        {name: value for name, value in given.items() if value is not None},
        other,
    )
    training = TrainSettings(
        steps=steps, minutes=minutes, batch=batch, optimizer=optimizer, lr=lr, warmup=warmup, seed=seed, bf16=bf16,
        checkpoint_every=checkpoint_every, keep=keep, cooldown=cooldown, clip=clip, accumulate=accumulate,
    )  # fmt: skip
    limit_threads(None)
    most = None if cache_most is None else int(cache_most * 1e9)
    with (
        training_worker(choose_device(device)) as own,
        training_progress("pretraining", [settings, training]) as (progress, caching),
    ):
        result = pretrain_encoder(
            Source(store, camera, cache, most), out, settings, training, own,
            progress=progress, caching=caching, init=start, mixed=[_mixed(text, camera, cache, most) for text in mix],
            wandb=wandb, measure=True,
        )  # fmt: skip
    report(result, out, out / ENCODER_FOLDER, f"next: `vjepa-mpc train {store} --encoder {out}`", json_output)


def _settings(
    objective: str, common: dict[str, Any], given: dict[str, Any], other: list[str]
) -> ObjectiveSettings:
    """The objective's settings; what is `given` by an option or as NAME=VALUE has to be among them."""
    from typing import get_type_hints

    from vjepa_mpc.core.settings import from_text, split_settings
    from vjepa_mpc.pretrain.objectives import find_objective

    kind = find_objective(objective).settings
    types = {name: hint for name, hint in get_type_hints(kind).items() if name not in (*common, "masks")}
    for name in given:
        if name not in types:
            raise InputError(f"--{OPTIONS[name]} is no part of {objective}; leave it out.")
    texts = split_settings(other)
    for name in texts:
        if name not in types:
            raise unknown_name(f"setting of {objective}", name, types)
        if name in given:
            raise InputError(f"--{OPTIONS[name]} and --set {name} are the same; give one of them.")
    return kind(**common, **given, **{name: from_text(types[name], name, text) for name, text in texts.items()})


def _mixed(text: str, camera: str | None, cache: Path | None, most: int | None) -> tuple[Source, float]:
    """A store and its share of the clips from `STORE=SHARE`. The camera's name counts where the store has it."""
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.pretrain.source import Source

    place, _, share = text.rpartition("=")
    try:
        value = float(share)
    except ValueError as error:
        raise InputError(f"--mix {text!r} is not STORE=SHARE, for example other.zarr=0.3.") from error
    there = camera in ZarrStore.open(place).spec.cameras
    return Source(Path(place), camera if there else None, cache, most), value
