"""How sure a number is: proportions with their n and a 95 % interval, pass@k, the bootstrap, paired proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

RESAMPLES = 2000


@dataclass(frozen=True)
class Proportion:
    """A proportion with its n: prints as 0.42 [0.36, 0.48] n=300, the 95 % Wilson interval."""

    hits: float
    n: int

    @property
    def value(self) -> float:
        return self.hits / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2f} [{low:.2f}, {high:.2f}] n={self.n}"


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927): never leaves 0 … 1, and is honest at 0 and n."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples is right, from n samples of which `correct` were (Chen et al. 2021, eq. 1).

    n=4, correct=1, k=2: 1 − C(3,2)/C(4,2) = 1 − 3/6 = 0.5"""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def bootstrap(totals: Sequence[Sequence[float]], weights: Sequence[Sequence[float]], *, seed: int = 0) -> numpy.ndarray:
    """RESAMPLES draws of n items with replacement -> [RESAMPLES, R], of each of the R ratios Σ total / Σ weight.

    totals, weights: R lists over the same n items, which are drawn *together*: two models on one prompt stay a pair,
    the samples of one prompt, or the tokens of one document, stay a cluster. Percentile intervals (Efron 1979)."""
    top, bottom = numpy.asarray(totals, float), numpy.asarray(weights, float)  # [R, n]
    n, draw = top.shape[1], numpy.random.default_rng(seed)
    out, at_once = [], max(1, 2**21 // n)
    for start in range(0, RESAMPLES, at_once):
        chosen = draw.integers(0, n, size=(min(at_once, RESAMPLES - start), n))
        out.append([t[chosen].sum(-1) / b[chosen].sum(-1) for t, b in zip(top, bottom, strict=True)])
    return numpy.concatenate([numpy.stack(part, axis=1) for part in out])


def percentiles(draws: numpy.ndarray) -> tuple[float, float]:
    """The middle 95 % of the draws."""
    low, high = numpy.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def mcnemar(only_a: int, only_b: int) -> float:
    """p of "A and B are right equally often", from the questions that only one of them got right (McNemar 1947, exact
    and two-sided: under it each is a coin toss).

    1 and 7: 2 · (C(8,0) + C(8,1)) / 2^8 = 18/256 = 0.0703"""
    tosses, fewer = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(tosses, i) for i in range(fewer + 1)) / 2**tosses)


def paired_difference(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """95 % interval of (share of B) − (share of A) on the same questions (Newcombe 1998, method 10: two Wilson
    intervals, and how much A and B go together)."""
    n = both + only_a + only_b + neither
    a, b = (both + only_a) / n, (both + only_b) / n
    (low_a, high_a), (low_b, high_b) = wilson(both + only_a, n), wilson(both + only_b, n)
    together = both * neither - only_a * only_b
    if together > 0:
        together = max(together - n / 2, 0)  # his correction for continuity
    spread = math.sqrt((both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither))
    phi = together / spread if spread else 0.0
    down, up = (b - low_b, high_a - a), (high_b - b, a - low_a)
    below, above = (math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y)) for x, y in (down, up))
    return b - a - below, b - a + above
