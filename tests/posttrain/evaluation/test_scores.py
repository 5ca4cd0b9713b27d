"""Scores by hand: what is a mean of what, and what an interval is drawn over."""

import json
import math

import pytest

from posttrain.evaluation.scores import Score, mean, proportion, ratio


def test_perplexity_is_a_ratio_of_sums():
    # T20: NLL {4} and {1, 1, 1}: e^(7/4) = e^1.75 = 5.754603; the mean of the two means would be e^2.5 = 12.182494
    score = ratio("perplexity", "", [4.0, 3.0], [1, 3], "documents", scale="exp", better="lower")
    assert score.value == pytest.approx(5.754603, abs=1e-6) and score.n == 2
    # two documents are drawn: the first alone is e^4 = 54.598150, the second alone e^1 = 2.718282
    assert (score.low, score.high) == (pytest.approx(2.718282, abs=1e-6), pytest.approx(54.598150, abs=1e-6))


def test_a_share_has_wilsons_interval():
    score = proportion("right", "", [True] * 21 + [False] * 29, "problems")
    # 21 of 50: centre (.42 + 1.96²/100) / (1 + 1.96²/50) = .425708, half width 1.96 · sqrt(.42 · .58/50 + 1.96²/10000) / 1.076832 = .131960
    assert str(score) == "0.42 [0.29, 0.56] n=50"
    assert (score.low, score.high) == (pytest.approx(0.293748, abs=1e-6), pytest.approx(0.557668, abs=1e-6))
    with pytest.raises(ValueError, match="0 or 1"):
        proportion("right", "", [0.5], "problems")


def test_samples_to_one_prompt_are_one_item():
    # 4 problems, of each all 25 samples right or all wrong: that is 2 of 4, not 50 of 100
    clustered = mean("sampled", "", [1.0, 1.0, 0.0, 0.0], "problems")
    as_if_independent = proportion("sampled", "", [1, 1, 0, 0] * 25, "samples")
    assert clustered.value == as_if_independent.value == 0.5
    assert clustered.high - clustered.low > 0.7 > 0.2 > as_if_independent.high - as_if_independent.low


@pytest.mark.parametrize("all_of_them", [0.0, 1.0])
def test_a_bootstrap_at_the_edge_does_not_say_that_it_is_sure(all_of_them):
    """Every draw of ten zeros is zero, but the next item might be one: Wilson's 0 of 10 reaches to 1.96² / (10 + 1.96²)."""
    for score in (
        mean("pass", "", [all_of_them] * 10, "problems"),
        ratio("top1", "", [5 * all_of_them] * 10, [5] * 10, "prompts", share=True),
    ):
        width = score.high - score.low
        assert score.value == all_of_them and width == pytest.approx(3.8416 / 13.8416)


def test_a_count_of_words_is_no_share():
    """All answers of one word: another may well have two, of which Wilson's 9 of 9 says nothing."""
    for share, low in ((True, 9 / 12.8416), (False, 1.0)):
        assert mean("words", "", [1.0] * 9, "rows", share=share).low == pytest.approx(low)


def test_of_one_item_there_is_no_interval():
    score = mean("reward", "", [3.0], "problems")
    assert score.value == 3.0 and math.isnan(score.low) and math.isnan(score.high)
    perplexity = ratio("perplexity", "", [3.0], [2], "documents", scale="exp")
    assert math.isnan(perplexity.low) and math.isnan(perplexity.high)
    with pytest.raises(ValueError, match="above 0"):
        ratio("kl", "", [1.0], [0], "prompts")


def test_there_and_back():
    for score in (
        proportion("a", "b", [1, 0], "c", note="d"),
        mean("a", "b", [3.0], "c"),
        ratio("a", "b", [1], [2], "c"),
    ):
        text = json.dumps(score.as_json(), allow_nan=False)  # JSON has no NaN
        again = Score.from_json(json.loads(text))
        assert repr(again) == repr(score) and json.loads(text)["n"] == score.n
