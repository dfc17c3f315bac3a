"""The world models of a training run's checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.pretrain.starting import MODEL_FOLDER
from vjepa_mpc.world_model import WorldModel


def models_of(run: Path) -> dict[int, Path]:
    """World models of a finished run, by step: `run/model`, the last, and for each earlier `checkpoint-STEP.pt` that it
    kept `run/model-STEP`, which is made where it is missing and takes its encoder from `run/model`.

    Training changes nothing but the predictor, so that is all that differs. `InputError` for a run without a result,
    and a checkpoint that does not fit it.
    """
    if not (run / MODEL_FOLDER / "config.json").is_file():
        raise InputError(f"{run} holds no finished run of `train`; let `vjepa-mpc train --resume {run}` end it first.")
    last = WorldModel.from_pretrained(run / MODEL_FOLDER)
    end = int(last.config.training.get("steps", 0))
    kept = [path.stem.removeprefix("checkpoint-") for path in run.glob("checkpoint-*.pt")]
    found = {}
    for step in sorted(int(text) for text in kept if text.isdecimal() and int(text) < end):
        found[step] = run / f"{MODEL_FOLDER}-{step}"
        if not found[step].is_dir():
            _write(last, run / f"checkpoint-{step}.pt", step, found[step])
    return {**found, end: run / MODEL_FOLDER}


def _write(model: WorldModel, checkpoint: Path, step: int, folder: Path) -> None:
    """Write the model with the checkpoint's predictor in it; `model` keeps that."""
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.predictor.load_state_dict(saved["modules"])
    except Exception as error:  # torch raises a dozen kinds for files that cannot be read
        raise InputError(
            f"{checkpoint} does not fit the run's model ({first_line(error)}); remove it to go on without it."
        ) from error
    told = model.config
    model.config = replace(told, training={**told.training, "steps": step, "run_steps": told.training.get("steps")})
    model.save_pretrained(folder, encoder_in=MODEL_FOLDER if model.encoder.state_dict() else "")  # pixels have none
    model.config = told
