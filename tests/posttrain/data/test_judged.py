"""The labelled answers: enough of both kinds, hard ones among them, and none on both sides."""

import pytest

from posttrain.data.judged import HELD_OUT, LEARNED_FROM


@pytest.mark.parametrize("part", [LEARNED_FROM, HELD_OUT])
def test_both_kinds(part):
    refused = sum(label for *_, label in part)
    assert len(part) >= 60 and 0.4 <= refused / len(part) <= 0.6


def test_what_is_held_out_is_nowhere_else():
    answers = [answer for _, answer, _ in LEARNED_FROM + HELD_OUT]
    assert len(set(answers)) == len(answers)


def test_hard_cases_are_among_them():
    """Words of refusal in answers that do not refuse: a rule that only looks for "can't" errs on these."""
    said = ("can't", "cannot", "won't", "not able", "sorry", "unfortunately")
    hard = [a for _, a, refused in LEARNED_FROM + HELD_OUT if not refused and any(word in a.lower() for word in said)]
    without = [
        a for _, a, refused in LEARNED_FROM + HELD_OUT if refused and not any(word in a.lower() for word in said)
    ]
    assert len(hard) >= 20 and len(without) >= 15 and any("can't wait to help" in answer for answer in hard)
