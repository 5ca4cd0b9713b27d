"""Two models on the same prompts: better, worse, or inconclusive.

Prompt by prompt, for what is hard for one model is mostly hard for the other: a paired test sees a difference that two
intervals side by side hide. Shares: McNemar's exact test. Everything else: both are drawn with the same prompts
(bootstrap; a score of the whole corpus is made again of each draw), and the interval of the difference has 0 in it or
not. Needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy

from posttrain.evaluation import corpus
from posttrain.evaluation.intervals import bootstrap, mcnemar, paired_difference, percentiles
from posttrain.evaluation.scores import Score

FEWEST = 10  # items below which a bootstrap's percentiles are too narrow to decide anything


@dataclass(frozen=True)
class Difference:
    """B − A of one score."""

    suite: str
    score: str
    a: str
    b: str
    value: float
    low: float
    high: float
    verdict: str  # better, worse; higher, lower where neither is better; inconclusive; not comparable
    why: str

    def __str__(self) -> str:
        if self.verdict == "not comparable":
            return f"{self.verdict}: {self.why}"
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}] {self.verdict} ({self.why})"


def difference(suite: str, a: Score, b: Score, names: tuple[str, str]) -> Difference:
    """Of two scores over the same items (results.refuse_other_prompts makes sure of it)."""
    made = (suite, a.name, *names)
    if a.uncompared or b.uncompared:
        return Difference(*made, math.nan, math.nan, math.nan, "not comparable", "it has no value for each item")
    if len(a.items) != len(b.items) or (a.kind, a.formula) != (b.kind, b.formula):  # of files of two versions
        why = f"{a.n} items ({a.kind}) cannot be paired with {b.n} ({b.kind})"
        return Difference(*made, math.nan, math.nan, math.nan, "not comparable", why)
    if a.scale == "exp" and a.weights != b.weights:
        return Difference(*made, math.nan, math.nan, math.nan, "not comparable", "their tokens are not the same ones")
    if a.kind == "proportion":
        pairs = list(zip(a.items, b.items, strict=True))
        both, only_a, only_b, neither = (pairs.count(p) for p in ((1, 1), (1, 0), (0, 1), (0, 0)))
        p = mcnemar(only_a, only_b)
        low, high = paired_difference(both, only_a, only_b, neither)
        why = f"{only_b} only by {names[1]}, {only_a} only by {names[0]}, p = {p:.2g}"
        return Difference(*made, b.value - a.value, low, high, _verdict(b.value - a.value, p < 0.05, b.better), why)
    if a.n < 2:
        return Difference(*made, b.value - a.value, math.nan, math.nan, "inconclusive", "a single item")
    if a.signature != b.signature:
        return Difference(*made, math.nan, math.nan, math.nan, "not comparable", f"{a.signature} and {b.signature}")
    if a.kind == "corpus":
        draws = corpus.draws(a.formula, [a.items, b.items])
    else:
        draws = bootstrap([a.items, b.items], [s.weights or [1.0] * s.n for s in (a, b)])
    low, high = percentiles(_unscaled(draws[:, 1], b.scale) - _unscaled(draws[:, 0], a.scale))
    sure = (low > 0 or high < 0) and a.n >= FEWEST
    why = f"paired bootstrap over {a.n}" + f", fewer than {FEWEST}" * (a.n < FEWEST)
    return Difference(*made, b.value - a.value, low, high, _verdict(b.value - a.value, sure, b.better), why)


def _unscaled(draws: numpy.ndarray, scale: str) -> numpy.ndarray:
    return draws if scale == "plain" else numpy.exp(draws)


def _verdict(value: float, sure: bool, better: str) -> str:
    if not sure or value == 0:
        return "inconclusive"
    if better == "neither":
        return "higher" if value > 0 else "lower"
    return "better" if (value > 0) == (better == "higher") else "worse"
