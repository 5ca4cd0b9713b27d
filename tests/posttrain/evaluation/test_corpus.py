"""Scores of a corpus: BLEU and chrF by hand and beside sacrebleu's own, the win rate at equal length, and pairs."""

import random

import numpy
import pytest

from posttrain.evaluation import corpus
from posttrain.evaluation.comparing import difference
from posttrain.evaluation.scores import Score
from posttrain.evaluation.scores import corpus as score

# said "a b c d e" (5 words), reference "a b c d f g" (6): matches 4, 3, 2, 1 of 5, 4, 3, 2 n-grams
ONE = [5, 6, 4, 3, 2, 1, 5, 4, 3, 2]


def test_bleu_by_hand():
    # brevity e^(1 − 6/5) = .818731; (4/5 · 3/4 · 2/3 · 1/2)^(1/4) = .2^.25 = .668740; 100 · product = 54.75182
    assert corpus.value("bleu", [ONE]) == pytest.approx(54.7518, abs=1e-4)
    # without a match of order 3 and 4: these count as 1/2 and 1/4: (4/5 · 3/4 · 1/6 · 1/8)^(1/4) = .0125^.25 = .334370
    assert corpus.value("bleu", [[5, 6, 4, 3, 0, 0, 5, 4, 3, 2]]) == pytest.approx(100 * 0.334370 * 0.818731, abs=1e-3)
    assert corpus.value("bleu", [[0, 6] + [0] * 8]) == corpus.value("bleu", [[3, 6, 0, 0, 0, 0, 3, 2, 1, 0]]) == 0.0


def test_corpus_bleu_is_no_mean_of_sentences():
    whole = corpus.value("bleu", [ONE, [6, 6, 6, 5, 4, 3, 6, 5, 4, 3]])
    # sums: 11 of 12 words, 10/11 · 8/9 · 6/7 · 4/5 = .554113, ^.25 = .862780; e^(−1/11) = .913101: 78.7805, mean (54.75 + 100)/2 = 77.38
    assert whole == pytest.approx(78.7805, abs=1e-3)


def test_share_counts_an_empty_answer_as_nothing():
    assert corpus.value("share", [[1, 4], [0, 0], [3, 4]]) == 0.5 and corpus.value("share", [[0, 0]]) == 0.0


def test_both_are_sacrebleus_own_on_every_draw():
    metrics = pytest.importorskip("sacrebleu.metrics", reason="pip install -r requirements-eval.txt")
    rng = random.Random(0)

    def text(longest):
        return " ".join(
            rng.choice(["the", "cat", "sat", "on", "a", "mat", "and"]) for _ in range(rng.randint(0, longest))
        )

    for _ in range(20):
        n = rng.randint(1, 5)
        said, wanted = [text(9) for _ in range(n)], [text(9) + " x" for _ in range(n)]
        for name, metric in (("bleu", metrics.BLEU(force=True)), ("chrf", metrics.CHRF())):
            items = metric._extract_corpus_statistics(said, [wanted])
            counts = numpy.array([[1.0] * n, *([rng.randint(0, 3) for _ in range(n)] for _ in range(5))])
            mine = corpus.FORMULAS[name](numpy.array(items, float), counts)
            assert mine[0] == pytest.approx(metric.corpus_score(said, [wanted]).score, abs=1e-9)
            for of_draw, times in zip(mine[1:], counts[1:], strict=True):
                picked = [i for i, k in enumerate(times) for _ in range(int(k))]
                if picked:
                    theirs = metric.corpus_score([said[i] for i in picked], [[wanted[i] for i in picked]]).score
                    assert of_draw == pytest.approx(theirs, abs=1e-9)


def test_at_equal_length_nothing_is_left_where_length_explains_everything():
    """P(win) = σ(2·length), answers mostly longer: it wins far more often than not, and at equal length half the time."""
    length = numpy.linspace(-0.2, 1.0, 61)
    won = 1 / (1 + numpy.exp(-2 * length))
    items = numpy.stack([won, length], axis=1).tolist()
    assert won.mean() > 0.65 and corpus.value("at_equal_length", items) == pytest.approx(0.5, abs=1e-3)
    # and what length does not explain stays: σ(1 + 2·length) at length 0 is σ(1) = .731059
    other = numpy.stack([1 / (1 + numpy.exp(-1 - 2 * length)), length], axis=1).tolist()
    assert corpus.value("at_equal_length", other) == pytest.approx(0.731059, abs=2e-3)


def test_at_equal_length_with_hard_verdicts_and_at_the_edge():
    length = numpy.linspace(-0.25, 1.0, 101)
    longer_wins = [[float(x > 0), x] for x in length]  # length foresees each verdict
    assert numpy.mean(longer_wins, axis=0)[0] > 0.75 and corpus.value("at_equal_length", longer_wins) == pytest.approx(0.5, abs=0.1)  # fmt: skip
    same_length = [[1.0, 0.0]] * 30 + [[0.0, 0.0]] * 10
    assert corpus.value("at_equal_length", same_length) == pytest.approx(0.75, abs=1e-3)
    assert 0.95 < corpus.value("at_equal_length", [[1.0, 0.0]] * 30) < 1.0


def test_an_interval_draws_items_and_a_pair_draws_the_same():
    rng = numpy.random.default_rng(0)
    sizes = rng.integers(8, 20, 40)
    # B matches one word more than A in every fourth sentence: sentences differ far more than A and B do
    low = rng.integers(4, 7, 40)
    a, b = ([[n, n, m, m - 1, m - 2, m - 3, n, n - 1, n - 2, n - 3] for n, m in zip(sizes, hit, strict=True)] for hit in (low, low + (numpy.arange(40) % 4 == 0)))  # fmt: skip
    one, two = (score("bleu", "", "bleu", items, "rows", unit="of 100") for items in (a, b))
    assert one.low < one.value < one.high and one.n == 40 and one.high > two.low  # side by side they overlap
    found = difference("quality", one, two, ("A", "B"))
    assert found.verdict == "better" and 0 < found.low < found.value < found.high
    assert found.high - found.low < one.high - one.low
    assert Score.from_json(one.as_json()) == one
    other = score("bleu", "", "bleu", b, "rows", signature="tok:zh")
    assert difference("quality", one, other, ("A", "B")).verdict == "not comparable"


def test_where_every_draw_is_the_same_there_is_no_interval():
    zero = score("bleu", "", "bleu", [[3, 4, 0, 0, 0, 0, 3, 2, 1, 0]] * 12, "rows")
    assert zero.value == 0.0 and numpy.isnan(zero.low) and numpy.isnan(zero.high)
    # a share's is Wilson's: 10 of 10 begins at 10 / (10 + 1.96²) = .722
    assert score("d", "", "share", [[2, 2]] * 10, "rows").low == pytest.approx(10 / 13.8416)
