"""Intervals and bounds of proportions, and tests on pairs: what a number of episodes allows to say."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
