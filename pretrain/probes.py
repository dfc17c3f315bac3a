"""What can be read from a frozen encoder: states and velocities, by a linear and by an attentive probe.

Both are trained on the training episodes' frames and judged on held-out ones, of which an encoder trained on this very
store has seen nothing either. A linear probe is ridge regression on all tokens of a picture at once; an attentive one a
cross-attention with a query for each target, as V-JEPA's frozen evaluation has it (Bardes et al. 2024, section 4.1).
An angle that wraps is read as its cosine and sine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError

WIDTH, HEADS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 128, 4, 256, 1e-3, 0.05
RIDGES = tuple(10.0**power for power in range(-4, 4))
"""Candidates for the ridge, in units of the mean eigenvalue of the features' Gram matrix."""


@dataclass(frozen=True)
class Target:
    """Something to be read: its name, unit, and whether it wraps at 2 pi."""

    name: str
    unit: str
    periodic: bool = False

    @property
    def width(self) -> int:
        return 2 if self.periodic else 1

    def encode(self, values: Float[Tensor, "n"]) -> Float[Tensor, "n w"]:
        """What a probe is asked for."""
        return torch.stack((values.cos(), values.sin()), dim=-1) if self.periodic else values[:, None]

    def error(self, read: Float[Tensor, "n w"], values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Absolute errors in the target's unit."""
        if not self.periodic:
            return (read[:, 0] - values).abs()
        apart = torch.atan2(read[:, 1], read[:, 0]) - values
        return torch.remainder(apart + math.pi, 2 * math.pi).sub(math.pi).abs()


@dataclass(frozen=True)
class Score:
    """`r2`: share of the variance explained (1 perfect, 0 as good as the mean; None where nothing varies).
    `error`: median absolute error, in the target's unit."""

    r2: float | None
    error: float


def score(target: Target, read: Float[Tensor, "n w"], values: Float[Tensor, "n"]) -> Score:
    """`1 - sum |read - true|^2 / sum |true - mean|^2`, over cosine and sine together for an angle that wraps."""
    true = target.encode(values)
    spread = float((true - true.mean(dim=0)).square().sum())
    left = float((read - true).square().sum())
    return Score(1 - left / spread if spread > 0 else None, float(target.error(read, values).median()))


@dataclass(frozen=True)
class Examples:
    """Tokens of frames [n, p, d], the `values` of all targets [n, t], and the `episode` that each is of."""

    tokens: Float[Tensor, "n p d"]
    values: Float[Tensor, "n t"]
    episode: Int[Tensor, "n"]


@dataclass(frozen=True)
class Standardised:
    """Examples for training and for judging, by the training ones' mean and deviation per position and channel; what
    is asked for, encoded and standardised alike."""

    train: Float[Tensor, "n p d"]
    held: Float[Tensor, "m p d"]
    asked: Float[Tensor, "n w"]
    mean: Float[Tensor, "w"]
    std: Float[Tensor, "w"]


def standardised(targets: tuple[Target, ...], train: Examples, held: Examples) -> Standardised:
    mean, std = train.tokens.mean(dim=0), train.tokens.std(dim=0)
    std = torch.where(std > 1e-3 * std.mean(), std, torch.ones_like(std))  # what never varies is not blown up
    asked = torch.cat([target.encode(train.values[:, i]) for i, target in enumerate(targets)], dim=-1)
    centre, scale = asked.mean(dim=0), asked.std(dim=0).clamp(min=1e-6)
    return Standardised(
        (train.tokens - mean) / std, (held.tokens - mean) / std, (asked - centre) / scale, centre, scale
    )


def ridge(
    features: Float[Tensor, "n f"], asked: Float[Tensor, "n w"], wanted: Float[Tensor, "m f"], strength: float
) -> Float[Tensor, "m w"]:
    """Ridge regression's answers for `wanted`, in the smaller of its two forms (features or examples); `strength` is in
    units of the Gram matrix's mean eigenvalue."""
    mean = features.mean(dim=0)
    rows, others = features - mean, wanted - mean
    level = asked.mean(dim=0)
    primal = rows.shape[0] >= rows.shape[1]
    gram = (rows.T @ rows if primal else rows @ rows.T).double()
    gram.diagonal().add_(max(strength * float(gram.diagonal().mean()), 1e-12))
    factor = torch.linalg.cholesky(gram)
    if primal:
        weights = torch.cholesky_solve((rows.T @ (asked - level)).double(), factor)
        return (others.double() @ weights + level).float()
    weights = torch.cholesky_solve((asked - level).double(), factor)
    return ((others @ rows.T).double() @ weights + level).float()


def linear_probe(data: Standardised, episode: Int[Tensor, "n"], generator: np.random.Generator) -> Float[Tensor, "m w"]:
    """What a linear probe reads from the held-out tokens. The ridge is the best on a fifth of the training episodes,
    taken by `generator`, for a probe trained on the rest."""
    judged = _aside(episode, generator)
    features, held = data.train.flatten(1), data.held.flatten(1)
    errors = []
    for strength in RIDGES:
        read = ridge(features[~judged], data.asked[~judged], features[judged], strength)
        errors.append(float((read - data.asked[judged]).square().mean()))
    return ridge(features, data.asked, held, RIDGES[int(np.argmin(errors))])


def _aside(episode: Int[Tensor, "n"], generator: np.random.Generator) -> Bool[Tensor, "n"]:
    """The examples of a fifth of the episodes; half of the examples where there is but one episode."""
    numbers = episode.unique().numpy()
    if len(numbers) == 1:
        return torch.arange(len(episode)) >= len(episode) // 2
    return torch.from_numpy(np.isin(episode.numpy(), generator.permutation(numbers)[: max(1, len(numbers) // 5)]))


class AttentiveProbe(nn.Module):
    """One query a target, which attends to all tokens (with a learned vector for each position: encoders with rotary
    positions hold no place), a two-layer perceptron, and a linear reading."""

    def __init__(self, positions: int, dim: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = widths
        self.embed = nn.Linear(dim, WIDTH)
        # as large as the embedded tokens: from small ones it takes thousands of steps to attend to a place
        self.place = nn.Parameter(0.5 * torch.randn(positions, WIDTH))
        self.query = nn.Parameter(torch.randn(len(widths), WIDTH))
        self.norm_tokens, self.norm_query, self.norm_out = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.keys_values = nn.Linear(WIDTH, 2 * WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.read = nn.ModuleList(nn.Linear(WIDTH, width) for width in widths)

    def forward(self, tokens: Float[Tensor, "n p d"]) -> Float[Tensor, "n w"]:
        kept = self.keys_values(self.norm_tokens(self.embed(tokens) + self.place))
        keys, values = kept.unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        query = self.query.expand(len(tokens), -1, -1)
        asked = query.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        found = query + F.scaled_dot_product_attention(asked, keys, values).transpose(1, 2).flatten(2)
        found = self.norm_out(found + self.mlp(self.norm_query(found)))
        return torch.cat([read(found[:, i]) for i, read in enumerate(self.read)], dim=-1)


def attentive_probe(
    data: Standardised, widths: tuple[int, ...], episode: Int[Tensor, "n"], steps: int, seed: int,
    progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "m w"]:  # fmt: skip
    """What an attentive probe reads from the held-out tokens: `steps` of AdamW on batches of 256, the rate falling by a
    cosine; ten times on the way it is judged on a fifth of the training episodes, which it does not learn from, and its
    best state counts. `progress` is told of every step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = AttentiveProbe(data.train.shape[1], data.train.shape[2], widths)
    optimiser = torch.optim.AdamW(probe.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    generator = np.random.default_rng((seed, 1))
    judged = _aside(episode, generator)
    learned = np.flatnonzero(~judged.numpy())
    best, answers = math.inf, data.mean.new_zeros(len(data.held), len(data.mean))
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = torch.from_numpy(generator.choice(learned, BATCH))
        loss = (probe(data.train[rows]) - data.asked[rows]).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if (step + 1) % max(1, steps // 10) == 0 or step + 1 == steps:
            error = float((_answers(probe, data.train[judged]) - data.asked[judged]).square().mean())
            if error < best:
                best, answers = error, _answers(probe, data.held)
        if progress is not None:
            progress(1)
    return answers


@torch.no_grad()
def _answers(probe: AttentiveProbe, tokens: Float[Tensor, "m p d"]) -> Float[Tensor, "m w"]:
    return torch.cat([probe(part) for part in tokens.split(BATCH)])


def scores(
    targets: tuple[Target, ...],
    data: Standardised,
    read: Float[Tensor, "m w"],
    held: Examples,
    groups: Mapping[str, Int[Tensor, "k"]],
) -> dict[str, dict[str, Score]]:
    """Score of each target over the held-out examples of each group (rows of them)."""
    answers = (read * data.std + data.mean).split([target.width for target in targets], dim=-1)
    return {
        group: {
            target.name: score(target, answers[i][rows], held.values[rows, i]) for i, target in enumerate(targets)
        }
        for group, rows in groups.items()
    }


def check_numbers(examples: Examples) -> None:
    """`InputError` where tokens are not finite: such an encoder has nothing to be read."""
    if not bool(torch.isfinite(examples.tokens).all()):
        raise InputError("The encoder's tokens hold NaN or infinity; pretrain it anew with a lower --lr.")
