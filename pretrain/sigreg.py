"""SIGReg: pushes a cloud of embeddings towards an isotropic Gaussian, which rules out collapse.

LeJEPA (Balestriero & LeCun 2025): by Cramer-Wold a distribution is the standard Gaussian exactly when all
its one-dimensional projections are; each of a few random projections is compared with it through the
Epps-Pulley statistic, the weighted squared distance of characteristic functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.pretrain import ranks


def epps_pulley(
    samples: Float[Tensor, "n slices"], *, knots: int = 17, limit: float = 5.0
) -> Float[Tensor, "slices"]:
    """Epps-Pulley distance of each column to N(0, 1), per sample (not multiplied by n).

    `integral |phi_n(t) - exp(-t^2/2)|^2 exp(-t^2/2) dt` over [-limit, limit] by the trapezoid rule, with
    phi_n the empirical characteristic function, of the samples of all ranks. 0 for a perfect fit; 0.41 for samples
    that are all zero.
    """
    t = torch.linspace(0.0, limit, knots, device=samples.device, dtype=torch.float32)
    gauss = torch.exp(-0.5 * t**2)
    weight = torch.full_like(t, 2 * limit / (knots - 1))
    weight[[0, -1]] *= 0.5  # half the line, doubled: the integrand is even
    phase = samples.float()[..., None] * t
    real, imaginary = ranks.average(phase.cos().mean(0)), ranks.average(phase.sin().mean(0))
    error = (real - gauss).square() + imaginary.square()
    return error @ (weight * gauss)


def sigreg(
    embeddings: Float[Tensor, "n d"], *, slices: int, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Mean Epps-Pulley distance over `slices` random directions drawn from `generator` (a CPU generator)."""
    directions = torch.randn(embeddings.shape[1], slices, generator=generator)
    directions = (directions / directions.norm(dim=0)).to(embeddings.device)
    with torch.autocast(embeddings.device.type, enabled=False):  # bf16 phases would blur the statistic
        return epps_pulley(embeddings.float() @ directions).mean()


COLLAPSED_STATISTIC = math.sqrt(2 * math.pi) * (1 - 2 / math.sqrt(2) + 1 / math.sqrt(3))
"""`epps_pulley` of all-zero samples: the integral of (1 - exp(-t^2/2))^2 exp(-t^2/2), about 0.409."""


def all_tokens(
    tokens: Float[Tensor, "b k d"], ids: Int[Tensor, "b k"], places: int
) -> Float[Tensor, "n d"]:
    """Every token as it is. Encoding its position alone satisfies most of it (n = b * k)."""
    return tokens.flatten(0, 1)


def content(tokens: Float[Tensor, "b k d"], ids: Int[Tensor, "b k"], places: int) -> Float[Tensor, "n d"]:
    """What each picture's tokens say beyond their positions, one vector a picture (n = b times the frames in `ids`).

    From each token the mean over the batch of the tokens at its flat position in `ids` (frame-major, `places` a frame)
    is taken away: kept patches differ between clips, and a mean over them would tell the mask. The rest is
    averaged over the picture, and each picture holds as many tokens. The batch is that of all ranks. LeJEPA regularises
    pooled embeddings too; per position, and per token without its mean, were tried before and planned badly.
    """
    width = tokens.shape[-1]
    flat, index = tokens.float().flatten(0, 1), ids.flatten()
    count = (int(ids.max()) // places + 1) * places  # whole frames: the same for every rank
    total = ranks.average(flat.new_zeros(count, width).index_add(0, index, flat))
    held = ranks.average(torch.bincount(index, minlength=count).float()).clamp(min=1 / ranks.count())
    own = (flat - (total / held[:, None])[index]).unflatten(0, ids.shape)
    frames = int((ids[0] // places).unique().numel())
    return own.unflatten(1, (frames, -1)).mean(dim=2).flatten(0, 1)


REGULARISED: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {"tokens": all_tokens, "content": content}
"""What SIGReg may act on inside masked prediction."""
