"""Scores of a whole corpus, which are no mean of its items: corpus BLEU and chrF, a share of a sum, a regression.

Each item keeps the statistics that the score is made of, and a formula makes the score of them with every item counted
as often as it was drawn. So a bootstrap draws items and makes the score again, and two models can be drawn with the
same items, later and from a file alone. Needs numpy, no torch; that BLEU and chrF are sacrebleu's own is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy

from posttrain.evaluation.intervals import RESAMPLES

Statistics = Sequence[Sequence[float]]  # [n, K]
Formula = Callable[[numpy.ndarray, numpy.ndarray], numpy.ndarray]  # items [n, K], counts [R, n] -> [R]
AT_ONCE = 2**21  # numbers
ORDERS = 4  # of BLEU's n-grams
RIDGE = 0.001  # keeps the regression finite where every verdict is the same, or length foresees each


def bleu(items: numpy.ndarray, counts: numpy.ndarray) -> numpy.ndarray:
    """Papineni et al. 2002, smoothed as sacrebleu does by default ("exp"): the k-th order without a match counts as
    1 / 2^k matches. An item: words said, words of the reference, matches of 1- to 4-grams, 1- to 4-grams said."""
    sums = counts @ items  # [R, 10]
    said, reference, matches, grams = sums[:, 0], sums[:, 1], sums[:, 2 : 2 + ORDERS], sums[:, 2 + ORDERS :]
    missing = matches == 0
    smoothed = numpy.where(missing, 0.5 ** numpy.cumsum(missing, axis=1), matches)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        precision = numpy.log(smoothed / grams).mean(axis=1)
        brevity = numpy.minimum(0.0, 1 - reference / said)
        score = 100 * numpy.exp(precision + brevity)
    return numpy.where((matches.sum(axis=1) > 0) & (grams > 0).all(axis=1), score, 0.0)


def chrf(items: numpy.ndarray, counts: numpy.ndarray) -> numpy.ndarray:
    """Popović 2015, β = 2: F of the mean precision and recall over the orders 1 to 6 that both sides have. An item: of
    each order the character n-grams said, of the reference, in both."""
    said, reference, both = (counts @ items).reshape(len(counts), -1, 3).transpose(2, 0, 1)  # [R, 6] each
    there = (said > 0) & (reference > 0)
    orders = numpy.maximum(there.sum(axis=1), 1)
    precision, recall = (
        (numpy.divide(both, of, out=numpy.zeros_like(both), where=there)).sum(axis=1) / orders
        for of in (said, reference)
    )
    below = 4 * precision + recall
    return 100 * numpy.divide(5 * precision * recall, below, out=numpy.zeros_like(below), where=below > 0)


def share(items: numpy.ndarray, counts: numpy.ndarray) -> numpy.ndarray:
    """Σ part / Σ whole, where an item may have nothing of either (an empty answer)."""
    part, whole = (counts @ items).T
    return numpy.divide(part, whole, out=numpy.zeros_like(part), where=whole > 0)


def at_equal_length(items: numpy.ndarray, counts: numpy.ndarray) -> numpy.ndarray:
    """The win rate of answers as long as the others' (after length-controlled AlpacaEval, arXiv 2404.04475): σ(θ) of
    the logistic regression win ~ σ(θ + φ·length). An item: its verdict (1, ½ or 0), its length difference, scaled.

    Newton's method on every resample at once; a ridge holds both coefficients."""
    won, length = items.T
    features = numpy.stack([numpy.ones_like(length), length], axis=1)  # [n, 2]
    pairs = features[:, :, None] * features[:, None, :]  # [n, 2, 2]
    coefficients = numpy.zeros((len(counts), 2))
    for _ in range(30):
        p = _sigmoid(coefficients @ features.T)  # [R, n]
        slope = (counts * (won - p)) @ features - RIDGE * coefficients
        bend = numpy.einsum("rn,nij->rij", counts * p * (1 - p), pairs) + RIDGE * numpy.eye(2)
        step = numpy.linalg.solve(bend, slope[..., None])[..., 0]
        coefficients += step * numpy.minimum(1.0, 4 / numpy.maximum(numpy.abs(step).max(axis=1, keepdims=True), 4))
        if numpy.abs(step).max() < 1e-9:
            break
    return _sigmoid(coefficients[:, 0])


def _sigmoid(x: numpy.ndarray) -> numpy.ndarray:
    return 1 / (1 + numpy.exp(-numpy.clip(x, -40, 40)))


FORMULAS: dict[str, Formula] = {"bleu": bleu, "chrf": chrf, "share": share, "at_equal_length": at_equal_length}


def value(formula: str, items: Statistics) -> float:
    """Of the items as they are, each once."""
    made = numpy.asarray(items, float)
    return float(FORMULAS[formula](made, numpy.ones((1, len(made))))[0])


def draws(formula: str, models: Sequence[Statistics], *, seed: int = 0) -> numpy.ndarray:
    """RESAMPLES draws of n items with replacement -> [RESAMPLES, M]: the score of each of the M models, made of the
    same items in every draw."""
    items = [numpy.asarray(of_one, float) for of_one in models]
    n, draw = len(items[0]), numpy.random.default_rng(seed)
    out, at_once = [], max(1, AT_ONCE // n)
    for start in range(0, RESAMPLES, at_once):
        counts = draw.multinomial(n, [1 / n] * n, size=min(at_once, RESAMPLES - start)).astype(float)
        out.append(numpy.stack([FORMULAS[formula](of_one, counts) for of_one in items], axis=1))
    return numpy.concatenate(out)
