"""The questions of a lesson on a name: other words to be asked with than to learn from."""

import itertools

from posttrain.data import questions


def bare(asked: list[str]) -> set[str]:
    return {"".join(c for c in question.lower() if c.isalnum()) for question in asked}


def test_none_differs_from_another_in_punctuation_alone():
    parts = [questions.IDENTITY, questions.IDENTITY_TEST, questions.ORDINARY, questions.ORDINARY_TEST]
    parts.append([question for question, _ in questions.CLOSED])
    assert [len(bare(part)) for part in parts] == [len(part) for part in parts] == [60, 110, 80, 40, 40]
    for one, other in itertools.combinations(parts, 2):
        assert not bare(one) & bare(other)
    assert all(answers for _, answers in questions.CLOSED)
