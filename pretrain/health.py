"""Whether an encoder in training still tells pictures apart: figures of its features, and when to stop.

Features [b, n, d] are layer-normed tokens (overall deviation 1) of b pictures or clips at n positions. Position alone
can fill them, and it says nothing; so most figures are of their content, what is left of a position's tokens when their
mean over the batch is taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.pretrain import ranks

COLLAPSED_SPREAD = 0.02
"""Mean standard deviation over a batch, per position and channel, of layer-normed latents (whose overall
deviation is 1) below which every picture looks the same to the encoder."""

COLLAPSED_RANK = 1.5
"""Effective rank of the content below which pictures differ along a single direction."""

FIRST_CHECK = 100  # steps: before that anything may happen


class CollapseError(InputError):
    """The features no longer tell pictures apart: training on would be rubbish."""


def effective_rank(matrix: Float[Tensor, "n d"]) -> float:
    """exp of the entropy of the singular values' shares (Roy & Vetterli 2007, definition 1): 1 for a line, d when all
    directions count alike, 0 for a matrix of zeros. The rows are those of all ranks."""
    rows = matrix.detach().double()
    tall = rows.shape[0] >= rows.shape[1] or ranks.count() > 1
    gram = ranks.average(rows.T @ rows) if tall else rows @ rows.T
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    # squared, singular values lose half of their digits: what is below is rounding
    values = torch.where(values > 1e-7 * values.max(), values, torch.zeros_like(values))
    if float(values.sum()) == 0.0:
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def health(features: Callable[[], Float[Tensor, "b n d"]]) -> dict[str, Callable[[], float]]:
    """Figures of the features, each computed when it is asked for (and the features then, once).

    `spread`: standard deviation over the batch, mean over positions and channels; `spread_least` and `spread_most`: of
    the positions where its mean over channels is least and most; `places`: deviation over the positions of a picture,
    mean over pictures and channels; `rank`: effective rank of the content. The batch is that of all ranks; what is a
    mean over pictures is this rank's, and the trainer averages it.
    """
    given = cache(lambda: features().detach().float())

    def by_position() -> Float[Tensor, "n"]:
        return _deviation(given()).mean(dim=-1)

    return {
        "spread": lambda: float(_deviation(given()).mean()),
        "spread_least": lambda: float(by_position().min()),
        "spread_most": lambda: float(by_position().max()),
        "places": lambda: float(given().std(dim=1, correction=0).mean()),
        "rank": lambda: effective_rank(_content(given().double())),
    }


def _deviation(features: Float[Tensor, "b n d"]) -> Float[Tensor, "n d"]:
    return features.std(dim=0) if ranks.count() == 1 else ranks.variance(features).sqrt()


def _content(features: Float[Tensor, "b n d"]) -> Float[Tensor, "m d"]:
    """Tokens without their position's mean; in double precision, or equal ones would leave their rounding."""
    return (features - ranks.average(features.mean(dim=0))).flatten(0, 1)


def check_health(figures: Mapping[str, float], remedy: str) -> None:
    """Raise `CollapseError` for a logged row of a collapsed encoder; the sentence ends in the `remedy`."""
    if figures["step"] < FIRST_CHECK:
        return
    collapsed = f"The encoder collapsed at step {figures['step']:.0f}:"
    if figures["spread"] < COLLAPSED_SPREAD:
        raise CollapseError(
            f"{collapsed} the spread of its features over the batch "
            f"fell to {figures['spread']:.4f} (below {COLLAPSED_SPREAD}); {remedy}."
        )
    if figures["rank"] < COLLAPSED_RANK:
        raise CollapseError(
            f"{collapsed} pictures differ along one direction only, the effective rank of their features "
            f"fell to {figures['rank']:.2f} (below {COLLAPSED_RANK}); {remedy}."
        )
