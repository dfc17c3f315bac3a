"""What "near" and "unlike anything seen" mean in a model's latent space, measured on held-out episodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import latent_distance
from vjepa_mpc.world_model import Calibration, WorldModel

NEAR_FRACTION = 1 / 3  # of the largest single action: states this close count as the same place
SCORE_QUANTILE, RARE = 0.99, 0.001
LEAST = 1e-4  # contrast and grain lie between 0 and 1, which logarithms do not reach
DEVIATIONS = 3.09  # of a normal distribution, which `RARE` of it lies beyond
MOST_PAIRS = 20_000
ROUNDING = 1e-5  # in a state's unit: what a difference of equal states comes to in float32, and a margin
LONGEST = 1_000  # frames of an episode that are paired: their pairs grow with the square


def calibrate(
    model: WorldModel,
    episodes: Sequence[tuple[Float[Tensor, "t p d"], Float[Tensor, "t s"]]],
    scores: Float[Tensor, "n"],
    contrast: Float[Tensor, "m"],
    grain: Float[Tensor, "m"],
) -> Calibration:
    """Measure thresholds on held-out episodes, each given as (latents, states), and on the scores, the contrast and
    the grain of held-out pictures (`Likeness`).

    `reached_cost`: median latent distance between frames of one episode whose states differ by no more than a
    third of the largest action in any component, and by more than half of that in one. `goal_score`: a quantile;
    `contrast` and `grain`: what one picture in a thousand lies beyond. `InputError` when no two frames are that close.
    """
    near = near_distances(model, episodes)
    if not near:
        raise InputError(
            "No two held-out frames show nearly the same state, so that 'goal reached' cannot be calibrated; "
            "collect more or longer episodes."
        )
    return Calibration(
        reached_cost=float(torch.cat(near).median()),
        goal_score=float(scores.quantile(SCORE_QUANTILE)),
        state_radius=float(NEAR_FRACTION * torch.tensor(model.config.robot.action_high).max()),
        contrast=float((-_rarely_above(-contrast.clamp(min=LEAST).log())).exp()),
        grain=float(_rarely_above(grain.clamp(LEAST, 1 - LEAST).logit()).sigmoid()),
    )


def _rarely_above(values: Float[Tensor, "m"]) -> Float[Tensor, ""]:
    """What one value in a thousand exceeds: their quantile, or that of the normal distribution with their mean and
    deviation where it is further out. Few values reach less far than the many to come, and end at their own largest."""
    normal = values.mean() + DEVIATIONS * values.std(correction=0)
    return torch.maximum(values.quantile(1 - RARE), normal)


def near_distances(
    model: WorldModel, episodes: Sequence[tuple[Float[Tensor, "t p d"], Float[Tensor, "t s"]]]
) -> list[Float[Tensor, "k"]]:
    """Latent distances between frames of one episode that show nearly the same state, see `calibrate`."""
    limit = torch.tensor(model.config.robot.action_high)
    radius = (NEAR_FRACTION * limit).clamp(min=ROUNDING)  # what never moves must be the same
    near: list[Tensor] = []
    space = model.states.to("cpu")
    for latents, states in episodes:
        if sum(map(len, near)) > MOST_PAIRS:
            break
        first, second = _pairs(len(states))
        apart = space.difference(states[first], states[second]).abs() / radius
        chosen = np.flatnonzero(((apart <= 1).all(-1) & (apart.amax(-1) >= 0.5)).numpy())
        if len(chosen):
            near.append(latent_distance(latents[first[chosen]], latents[second[chosen]]).cpu())
    model.states.to(model.device)
    return near


def _pairs(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of an episode's frames; of a long episode, of evenly spread ones."""
    rows = np.arange(0, frames, -(-frames // LONGEST))
    first, second = np.triu_indices(len(rows), k=1)
    return rows[first], rows[second]
