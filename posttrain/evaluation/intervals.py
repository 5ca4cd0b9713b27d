"""Proportions with their n and a 95 % interval, and pass@k: how sure a number is."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
