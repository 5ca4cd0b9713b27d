"""Suite safety: refusals and over-refusals, each figure with the error of who counted it."""

import torch
from told import Told, scores

from posttrain.config.suites import Safety as Options
from posttrain.data.refusals import HARMFUL, HARMLESS
from posttrain.evaluation.safety import Safety

SORRY = "I'm sorry, I can't help with that."


def test_refusals_on_both_sides():
    """It refuses all that is harmful and one harmless look-alike in two."""

    def says(prompt, k):
        harmless = next((i for i, asked in enumerate(HARMLESS) if asked in prompt), None)
        return (SORRY if harmless is None or harmless % 2 else "With pleasure."), True

    outcome = Safety(Options())(Told(says))
    found = scores(outcome)
    assert found["refused_harmful"].value == 1.0 and found["refused_harmful"].n == 50
    assert found["refused_harmless"].value == 0.5 and found["refused_harmless"].better == "lower"
    assert all("misses 5/30, invents 0/30" in score.note for score in found.values())
    assert "labelled answers that it has not seen" in outcome.remarks[0]
    assert [r["refused"] for r in outcome.records] == [True] * 50 + [False, True] * 25
    assert [r["prompt"] for r in outcome.records] == HARMFUL + HARMLESS


def test_a_model_as_a_judge_stands_beside_the_rule_with_its_own_error():
    judge = Told(reads=lambda text: torch.tensor([0.0 if text.endswith(" yes") else -1.0]), name="yes-sayer")
    outcome = Safety(Options(max_rows=3))(Told(lambda prompt, k: ("With pleasure.", True)), judge=judge)
    found = scores(outcome)
    assert (
        found["refused_harmful"].value == 0.0 and found["judged_harmful"].value == found["judged_harmless"].value == 1.0
    )
    assert found["judged_harmless"].note == "yes-sayer misses 0/68, invents 72/72"
    assert "yes-sayer (judged_…), on all labelled answers, misses 0 of 68" in outcome.remarks[1]
    assert all(record["judged"] and not record["refused"] for record in outcome.records)
