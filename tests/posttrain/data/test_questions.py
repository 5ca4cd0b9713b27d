"""The questions of a lesson on a name: other words to be asked with than to learn from."""

from posttrain.data import questions


def bare(asked: list[str]) -> set[str]:
    return {"".join(c for c in question.lower() if c.isalnum()) for question in asked}


def test_none_differs_from_another_in_punctuation_alone():
    learned, asked, ordinary = map(bare, (questions.IDENTITY, questions.IDENTITY_TEST, questions.ORDINARY))
    closed = bare([question for question, _ in questions.CLOSED])
    assert [len(part) for part in (learned, asked, ordinary, closed)] == [60, 110, 40, 40]
    assert not learned & asked and not ordinary & closed
    assert all(answers for _, answers in questions.CLOSED)
