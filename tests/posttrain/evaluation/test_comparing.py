"""Two models on the same prompts: the verdict by hand."""

import pytest

from posttrain.evaluation.comparing import difference
from posttrain.evaluation.scores import mean, proportion, ratio

NAMES = ("a", "b")


def shares(a, b, better="higher"):
    made = (proportion("right", "", hits, "problems", better=better) for hits in (a, b))
    return difference("accuracy", *made, NAMES)


def test_mcnemar_sees_what_two_intervals_hide():
    """50 questions, 30 and 37 right: the intervals overlap, but all 7 that changed have changed for the better."""
    a, b = [1] * 30 + [0] * 20, [1] * 37 + [0] * 13
    found = shares(a, b)
    # p = 2 / 2^7 = .015625
    assert found.verdict == "better" and found.value == pytest.approx(0.14) and "p = 0.016" in found.why
    assert found.low > 0 and "7 only by b, 0 only by a" in str(found)
    # the same two shares, but 13 lost and 20 won: p = .2962
    apart = shares(a, [0] * 13 + [1] * 37)
    assert apart.verdict == "inconclusive" and apart.value == found.value and "20 only by b, 13 only by a" in apart.why


@pytest.mark.parametrize(
    ("better", "up", "down"),
    [("higher", "better", "worse"), ("lower", "worse", "better"), ("neither", "higher", "lower")],
)
def test_better_is_what_the_score_says(better, up, down):
    a, b = [0] * 20, [1] * 20
    assert shares(a, b, better).verdict == up and shares(b, a, better).verdict == down
    assert shares(a, a, better).verdict == "inconclusive"


def test_five_to_none_is_inconclusive_six_to_none_is_not():
    # p = 2 / 2^5 = .0625, and 2 / 2^6 = .03125
    assert shares([0] * 20, [1] * 5 + [0] * 15).verdict == "inconclusive"
    assert shares([0] * 20, [1] * 6 + [0] * 14).verdict == "better"


def test_a_small_gain_on_every_prompt_is_seen_in_pairs_alone():
    values = [float(i) for i in range(20)]
    a, b = (mean("reward", "", [v + more for v in values], "problems") for more in (0.0, 0.1))
    found = difference("accuracy", a, b, NAMES)
    assert a.high > b.low  # side by side there is nothing to see
    assert found.verdict == "better" and (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1))
    few = [mean("reward", "", s.items[:9], "problems") for s in (a, b)]
    assert difference("accuracy", *few, NAMES).verdict == "inconclusive"  # 9 items decide nothing
    one = [mean("reward", "", s.items[:1], "problems") for s in (a, b)]
    assert difference("accuracy", *one, NAMES).verdict == "inconclusive"


def test_the_difference_of_perplexities_is_of_perplexities():
    a = ratio("perplexity", "", [1.0, 2.0] * 10, [1, 2] * 10, "documents", scale="exp", better="lower")
    b = ratio("perplexity", "", [2.0, 4.0] * 10, [1, 2] * 10, "documents", scale="exp", better="lower")
    found = difference("perplexity", a, b, NAMES)
    # e^2 − e^1 = 7.389056 − 2.718282 in every draw
    assert [found.value, found.low, found.high] == [pytest.approx(4.670774, abs=1e-5)] * 3 and found.verdict == "worse"
    other = ratio("perplexity", "", [2.0, 4.0] * 10, [1, 3] * 10, "documents", scale="exp", better="lower")
    assert difference("perplexity", a, other, NAMES).verdict == "not comparable"  # another tokenizer


def test_what_is_no_pair_has_no_verdict():
    """Of files of two versions, which count the same score in two ways."""
    a, b = proportion("right", "", [1, 0], "problems"), proportion("right", "", [1], "problems")
    for other, why in ((b, "1 (proportion)"), (mean("right", "", [1, 0], "problems"), "2 (mean)")):
        found = difference("accuracy", a, other, NAMES)
        assert str(found) == f"not comparable: 2 items (proportion) cannot be paired with {why}"
