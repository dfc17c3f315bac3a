"""Gaussian noise over action sequences, one generator a problem, optionally correlated in time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


def colour_filter(horizon: int, exponent: float, like: Tensor) -> Float[Tensor, "h h"]:
    """The matrix that turns white noise [h] into noise of unit variance with power spectrum 1/f^exponent.

    Power-law noise as in iCEM (Pinneri et al. 2020, arXiv:2008.06389, section 3.1; spectrum after Timmer
    and Koenig 1995): each frequency's amplitude is f^(-exponent/2), the constant part's that of the
    lowest frequency 1/h. Exponent 0 is white, 1 pink, 2 red; large ones move all steps together.
    """
    return _colour(horizon, exponent).to(like)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept here serves gradient planners, too
def _colour(horizon: int, exponent: float) -> Float[Tensor, "h h"]:
    frequency = torch.fft.rfftfreq(horizon, dtype=torch.float64).clamp(min=1.0 / horizon)
    spectrum = torch.fft.rfft(torch.eye(horizon, dtype=torch.float64), dim=0)
    matrix = torch.fft.irfft(spectrum * frequency[:, None] ** (-exponent / 2), n=horizon, dim=0)
    return matrix / matrix.square().sum(dim=1, keepdim=True).sqrt()


def draw(
    n: int, like: Float[Tensor, "b h a"], generators: Sequence[torch.Generator], exponent: float = 0.0
) -> Float[Tensor, "b n h a"]:
    """`n` sequences a problem of unit variance at every step, in the type and on the device of `like`.

    Problem i draws from `generators[i]` alone and in shapes that do not depend on how many problems there
    are, so that its noise is the same, to the bit, alone and in a batch.
    """
    _, horizon, size = like.shape
    matrix = colour_filter(horizon, exponent, like) if exponent and horizon > 1 else None
    drawn = []
    for generator in generators:
        white = torch.randn(n, horizon, size, generator=generator, dtype=like.dtype, device=generator.device)
        white = white.to(like.device)
        drawn.append(white if matrix is None else matrix @ white)
    return torch.stack(drawn)
