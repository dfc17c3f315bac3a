"""What guardrails compare latent distances with, measured on data: one file a model, made by `vjepa-mpc calibrate`.

It is bound to the weights it was measured with: another model's, or an older one's, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import read_json, write_json
from vjepa_mpc.core.settings import from_plain
from vjepa_mpc.costs import latent_distance
from vjepa_mpc.encoder import tensors_hash, weights_hash
from vjepa_mpc.rollout import Context
from vjepa_mpc.world_model import WorldModel

FILE = "guardrails.json"
SCHEMA = "vjepa-mpc-guardrails-1"
SLOW, STOP, SAME_PLACE = 0.99, 0.999, 0.95
"""Quantiles: of the prediction error that slows and that stops the robot; of the latent distance between views of
one place, so that so many of them are recognised as that place."""


@dataclass(frozen=True)
class Thresholds:
    """Latent distances. `surprise_slow`, `surprise_stop`: quantiles of the error of predictions one control step
    ahead; `same_place`: a quantile of the distance between views whose states differ by no more than a third of the
    largest action. `frames` and `pairs` measured; `data`: the store's hash; `weights`: the model's."""

    surprise_slow: float
    surprise_stop: float
    same_place: float
    frames: int
    pairs: int
    data: str
    weights: str


def load_thresholds(place: Path, world: WorldModel) -> Thresholds:
    """Read the file at `place` (or `guardrails.json` in a model's folder). `InputError` when there is none, or it is
    of other weights."""
    path = place / FILE if place.is_dir() else place
    if not path.is_file():
        raise InputError(
            f"There are no thresholds at {path}; measure them with `vjepa-mpc calibrate LOGS --model MODEL`, or say "
            "where they are with --thresholds."
        )
    content = read_json(path)
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise InputError(f"{path} is no {SCHEMA} file; make one with `vjepa-mpc calibrate`.")
    known: Thresholds = from_plain(Thresholds, content, path)
    if known.weights not in (_measured_weights(world), weights_hash(world)):
        raise InputError(f"{path} was measured with other weights; run `vjepa-mpc calibrate` for this model again.")
    return known


def _measured_weights(world: WorldModel) -> str:
    """The hash of what predictions and places are told by: a critic or an actor has no part in them."""
    parts = world.state_dict()
    return tensors_hash({name: part for name, part in parts.items() if not name.startswith(("critic.", "actor."))})


def save_thresholds(found: Thresholds, path: Path) -> None:
    """Write the file, atomically."""
    write_json(path, {"schema": SCHEMA, **asdict(found)})


@torch.no_grad()
def prediction_errors(
    model: WorldModel,
    latents: Float[Tensor, "t p d"],
    states: Float[Tensor, "t s"],
    actions: Float[Tensor, "u a"],
) -> Float[Tensor, "n"]:
    """Latent distance of every view of an episode to what was expected a control step before, as the controller
    expects it: `actions[i]` led from view i to view i + 1, and frames of the history are a stride apart."""
    history, stride = model.config.history, model.config.stride
    first = (history - 1) * stride
    rows = torch.arange(first, len(latents) - 1)
    if not len(rows):
        return latents.new_zeros(0)
    back = torch.arange(history - 1, -1, -1) * stride
    seen = rows[:, None] - back
    steps = torch.cat([actions.new_zeros(1, actions.shape[1]), actions.cumsum(0)])
    context = Context(latents[seen], states[seen], steps[seen[:, 1:]] - steps[seen[:, :-1]])
    expected = model.rollout(context, actions[rows][:, None, None]).latents[:, 0, 0]
    return latent_distance(expected, latents[rows + 1])


def measure_thresholds(
    model: WorldModel,
    episodes: Sequence[tuple[Float[Tensor, "t p d"], Float[Tensor, "t s"], Float[Tensor, "u a"]]],
    near: Sequence[Float[Tensor, "k"]],
    data: str,
) -> Thresholds:
    """Thresholds from episodes (latents, states, actions) and `near`, distances between views of one place."""
    errors = torch.cat([prediction_errors(model, *episode) for episode in episodes]).double().cpu().numpy()
    same = torch.cat(list(near)).double().cpu().numpy() if near else np.zeros(0)
    if len(errors) < 1 / (1 - STOP) or len(same) < 20:
        raise InputError(
            f"{len(errors)} predictions and {len(same)} pairs of views of one place are too few to measure thresholds; "
            f"give at least {round(1 / (1 - STOP))} steps of held-out episodes."
        )
    quantiles: Any = np.quantile
    return Thresholds(
        surprise_slow=float(quantiles(errors, SLOW)),
        surprise_stop=float(quantiles(errors, STOP)),
        same_place=float(quantiles(same, SAME_PLACE)),
        frames=len(errors),
        pairs=len(same),
        data=data,
        weights=_measured_weights(model),
    )
