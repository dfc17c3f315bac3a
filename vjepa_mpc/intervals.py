"""Intervals and bounds of proportions, and tests on pairs: what a number of episodes allows to say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), 95 % by default."""
    if n < 1:
        raise InputError("An interval needs at least one episode.")
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def proportion(count: int, n: int) -> dict[str, float]:
    """A count of n episodes, its rate and its Wilson interval, as results are kept."""
    low, high = wilson_interval(count, n)
    return {"count": count, "rate": count / n, "wilson_low": low, "wilson_high": high}


def upper_bound(count: int, n: int, confidence: float = 0.95) -> float:
    """One-sided upper bound of a proportion of which `count` of `n` were seen, exact (Clopper and Pearson 1934): the
    rate at which so few would be seen with probability 1 - confidence."""
    if n < 1 or not 0 <= count <= n:
        raise InputError(f"A bound needs episodes, and no more cases than episodes; got {count} of {n}.")
    if count == n:
        return 1.0
    low, high = count / n, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        few = sum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(count + 1))
        low, high = (rate, high) if few > 1 - confidence else (low, rate)
    return high


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value of so many wins and losses of pairs, ties left out, were both equally likely: the
    binomial's tails. Of successes on the same pairs it is McNemar's exact test (McNemar 1947)."""
    if min(wins, losses) < 0:
        raise InputError(f"Wins and losses are counts, got {wins} and {losses}.")
    n, fewer = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n)


def signed_rank_test(differences: Float[np.ndarray, "n"]) -> float:
    """Two-sided exact p-value that paired differences lie symmetrically about 0 (Wilcoxon 1945): zeros are left out,
    equal sizes share their mean rank, and the distribution is that of these ranks under all choices of signs."""
    kept = differences[differences != 0]
    if not np.isfinite(kept).all():
        raise InputError("A difference is not a finite number; these episodes cannot be compared.")
    if not len(kept):
        return 1.0
    _, which, counts = np.unique(np.abs(kept), return_inverse=True, return_counts=True)
    doubled = (2 * np.cumsum(counts) - counts + 1)[which]  # twice the mean ranks: whole numbers
    chances = np.zeros(int(doubled.sum()) + 1)
    chances[0] = 1.0
    for rank in doubled:  # each rank counts, or does not, with chance 1/2
        moved = np.zeros_like(chances)
        moved[rank:] = chances[:-rank]
        chances = (chances + moved) / 2
    seen = int(doubled[kept > 0].sum())
    return float(min(1.0, 2 * min(chances[: seen + 1].sum(), chances[seen:].sum())))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values raised so that all of them together keep their level (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    raised, most = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        most = max(most, min(1.0, (len(p_values) - place) * p_values[index]))
        raised[index] = most
    return raised


def bootstrap_interval(
    values: Float[np.ndarray, "n"], generator: np.random.Generator, draws: int = 10_000
) -> tuple[float, float]:
    """95 % percentile interval of the mean by drawing anew from the values (Efron 1979)."""
    if not len(values):
        raise InputError("An interval needs at least one value.")
    means = np.concatenate(
        [generator.choice(values, (min(1000, draws - done), len(values))).mean(1) for done in range(0, draws, 1000)]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's `rho` of `n` pairs with its 95 % interval, and the two-sided `p` of no association at all."""

    rho: float
    low: float
    high: float
    p: float
    n: int


def spearman(
    first: Float[np.ndarray, "n"], second: Float[np.ndarray, "n"], generator: np.random.Generator, draws: int = 20_000
) -> RankCorrelation | None:
    """Correlation of the ranks (Spearman 1904), equal values sharing their mean rank; None where one side is all equal.

    The interval is Fisher's, with Bonett and Wright's (2000) variance (1 + rho^2 / 2) / (n - 3). Where all ranks agree,
    it is that of the value half-way to the next smaller one, up to 1: a handful of pairs is no certainty.
    `p` is exact, over all orders, for up to 8 pairs, and from so many drawn ones beyond. `InputError` below 4 pairs.
    """
    n = len(first)
    if n < 4:
        raise InputError(f"A rank correlation takes at least 4 pairs, got {n}.")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("A value is not a finite number; no rank correlation can be taken.")
    one, other = _centred_ranks(first), _centred_ranks(second)
    scale = math.sqrt(float((one * one).sum() * (other * other).sum()))
    if scale == 0:
        return None
    rho = max(-1.0, min(1.0, float(one @ other) / scale))
    most = 1 - 6 / (n * (n * n - 1))  # of two neighbours exchanged: 1 - 12 / ...
    z = math.atanh(max(-most, min(most, rho)))
    half = 1.959964 * math.sqrt((1 + min(abs(rho), most) ** 2 / 2) / (n - 3))
    low, high = math.tanh(z - half), math.tanh(z + half)
    if n <= 8:
        orders = np.array(list(itertools.permutations(other)))
        chance = float((np.abs(orders @ one) >= abs(one @ other) - 1e-9 * scale).mean())
    else:
        orders = generator.permuted(np.tile(other, (draws, 1)), axis=1)
        chance = float((1 + (np.abs(orders @ one) >= abs(one @ other) - 1e-9 * scale).sum()) / (1 + draws))
    return RankCorrelation(rho, -1.0 if rho < -most else low, 1.0 if rho > most else high, chance, n)


def _centred_ranks(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which] - (len(values) + 1) / 2
