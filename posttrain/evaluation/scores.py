"""What a suite gives: scores, each with its n, a 95 % interval and a value for every single item, and the records they
were counted from.

    proportion   items 0 or 1             Wilson's interval; two models: McNemar's exact test
    mean         one number per item      bootstrap over the items; two models: paired bootstrap
    ratio        Σ totals / Σ weights     the same, an item drawn with its weight (e^ratio with scale "exp": perplexity)
    corpus       statistics per item      a formula makes the score of them all (corpus.py: BLEU), and again of each
                                          bootstrap draw of items; two models: of the same items

An item is what was drawn independently: a prompt, a document. Several samples to one prompt are *one* item (their mean,
or their total with their number as weight), so an interval never takes them for several prompts. Needs no torch: two
result files are compared without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy

from posttrain.evaluation import corpus as formulas
from posttrain.evaluation.intervals import bootstrap, percentiles, wilson

Better = Literal["higher", "lower", "neither"]
Kind = Literal["proportion", "mean", "ratio", "corpus"]


@dataclass(frozen=True)
class Score:
    """Made by proportion(), mean(), ratio() or corpus(). `items` stand in the order of the records of `part`."""

    name: str
    about: str  # what the number is, in one short sentence without a full stop
    value: float
    low: float  # of the 95 % interval
    high: float
    items: list[float] | list[list[float]]  # of a corpus score the statistics of each
    weights: list[float] | None  # of a ratio
    kind: Kind
    part: str  # the records that it was counted from
    better: Better = "higher"
    scale: Literal["plain", "exp"] = "plain"
    unit: str = ""  # "nats per token"; nothing for a share
    note: str = ""  # what must stand beside the figure, e.g. how often its judge errs
    formula: str = ""  # of a corpus score: its name in corpus.FORMULAS
    signature: str = ""  # how others make the same figure (sacrebleu's)
    uncompared: bool = False  # a figure from elsewhere, without a value for each item: no verdict on it

    @property
    def n(self) -> int:
        return len(self.items)

    def __str__(self) -> str:
        many = "" if self.uncompared else f" n={self.n}"
        return f"{self.value:.{self.digits}f} [{self.low:.{self.digits}f}, {self.high:.{self.digits}f}]{many}"

    @property
    def digits(self) -> int:
        return 2 if self.kind == "proportion" or abs(self.value) >= 10 else 3

    def as_json(self) -> dict[str, Any]:
        """JSON knows no NaN: what is not finite is null."""
        ends = {key: value if math.isfinite(value := getattr(self, key)) else None for key in ("value", "low", "high")}
        return asdict(self) | ends | {"n": self.n}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Score:
        """ValueError, KeyError or TypeError: that is no score of this version."""
        ends = {key: math.nan if values[key] is None else float(values[key]) for key in ("value", "low", "high")}
        score = cls(**{key: value for key, value in (values | ends).items() if key != "n"})
        whole = numpy.asarray(score.items, float)  # of a corpus score [n, K]
        if score.kind not in get_args(Kind) or whole.ndim != 1 + (score.kind == "corpus" and len(whole) > 0):
            raise ValueError(f"{score.name}: {score.kind} of items of shape {whole.shape}")
        if score.kind == "corpus" and score.formula not in formulas.FORMULAS:
            raise ValueError(f"{score.name}: no formula '{score.formula}'")
        return score


@dataclass(frozen=True)
class Outcome:
    """Of one suite and one model.

    records: everything that was asked and said, for results.json: one per item, {"part", "prompt", …}; models are
    compared only where parts and prompts are the same. remarks: sentences to print below the table."""

    scores: list[Score]
    records: list[dict[str, Any]]
    remarks: list[str] = field(default_factory=list)


def proportion(
    name: str, about: str, hits: Sequence[bool | float], part: str, *, better: Better = "higher", note: str = ""
) -> Score:
    """The share of the items that are hits."""
    items = [float(hit) for hit in hits]
    if any(item not in (0.0, 1.0) for item in items):
        raise ValueError(f"{name}: a proportion counts items that are 0 or 1; mean() takes any number")
    low, high = wilson(sum(items), len(items))
    value = sum(items) / len(items) if items else math.nan
    return Score(name, about, value, low, high, items, None, "proportion", part, better, note=note)


def mean(
    name: str, about: str, values: Sequence[float], part: str, *, share: bool = True, better: Better = "higher",
    unit: str = "", note: str = "", seed: int = 0,
) -> Score:  # fmt: skip
    """The mean over the items. Where all are 0, or all 1, every draw is the same, which would say that nothing else can
    come: there the interval is Wilson's, as if each item were one trial (no narrower than a mean of several). share:
    False where an item may be more than 1 (words, tokens), of which Wilson says nothing."""
    items = [float(value) for value in values]
    if share and items and set(items) in ({0.0}, {1.0}):
        low, high = wilson(sum(items), len(items))
    else:
        low, high = _interval(items, [1.0] * len(items), seed)
    value = sum(items) / len(items) if items else math.nan
    return Score(name, about, value, low, high, items, None, "mean", part, better, unit=unit, note=note)


def ratio(
    name: str, about: str, totals: Sequence[float], weights: Sequence[float], part: str, *,
    scale: Literal["plain", "exp"] = "plain", share: bool = False, better: Better = "higher", unit: str = "",
    note: str = "", seed: int = 0,
) -> Score:  # fmt: skip
    """Σ totals / Σ weights, never a mean of the items' own ratios: a long document counts for what it is.

    NLL {4} and {1, 1, 1} with scale "exp": e^(7/4) = 5.754603, where the mean of means is e^2.5 = 12.182494.
    share: each total counts a part of its weight; at 0 and 1 the interval is Wilson's, as in mean()."""
    items, by = [float(total) for total in totals], [float(weight) for weight in weights]
    if min(by, default=1.0) <= 0:
        raise ValueError(f"{name}: every item needs a weight above 0")
    value = scaled(sum(items) / sum(by), scale) if items else math.nan
    if share and value in (0.0, 1.0):
        low, high = wilson(value * len(items), len(items))
    else:
        low, high = (scaled(end, scale) for end in _interval(items, by, seed))
    return Score(name, about, value, low, high, items, by, "ratio", part, better, scale, unit, note)


def corpus(
    name: str, about: str, formula: str, statistics: Sequence[Sequence[float]], part: str, *, better: Better = "higher",
    unit: str = "", note: str = "", signature: str = "", seed: int = 0,
) -> Score:  # fmt: skip
    """The score that the formula makes of all items together: corpus BLEU is no mean of the sentences' BLEU. Where
    every draw is the same (a BLEU of 0) nothing is known of other items: no interval, but Wilson's of a share."""
    items = [[float(x) for x in of_one] for of_one in statistics]
    value = formulas.value(formula, items) if items else math.nan
    low = high = math.nan
    if formula == "share" and value in (0.0, 1.0):
        low, high = wilson(value * len(items), len(items))
    elif len(items) > 1:
        low, high = percentiles(formulas.draws(formula, [items], seed=seed)[:, 0])
        low, high = (low, high) if low < high else (math.nan, math.nan)
    return Score(
        name,
        about,
        value,
        low,
        high,
        items,
        None,
        "corpus",
        part,
        better,
        unit=unit,
        note=note,
        formula=formula,
        signature=signature,
    )


def scaled(value: float, scale: str) -> float:
    return value if scale == "plain" else math.inf if value >= 700 else math.exp(value)  # (e^NaN is NaN)


def _interval(items: list[float], weights: list[float], seed: int) -> tuple[float, float]:
    """Of one item nothing is known of how far another would be: no interval (NaN)."""
    if len(items) < 2:
        return math.nan, math.nan
    return percentiles(bootstrap([items], [weights], seed=seed)[:, 0])
