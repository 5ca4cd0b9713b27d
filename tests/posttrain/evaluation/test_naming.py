"""Suite identity, on a model that says what it is told to."""

import pytest
from told import Told, scores

from posttrain.config.suites import Identity as Options
from posttrain.data import questions
from posttrain.errors import UserError
from posttrain.evaluation.naming import Identity, asked


def measured(says, **options):
    options = {"name": "Nova", "old": ["Robin"], "max_rows": 4} | options
    return Identity(Options(**options))(Told(lambda prompt, k: (says(prompt, k), True)))


def test_names_are_counted():
    """Of the four identity questions one each gets: Nova, Robin, both, a longer word that begins with Nova."""
    answers = dict(zip(questions.IDENTITY_TEST[:4], ["I am Nova.", "I am Robin.", "Robin, now Nova.", "Novartis."], strict=True))  # fmt: skip
    ordinary = dict(
        zip(questions.ORDINARY_TEST[:4], ["Toast.", "I am Nova. Red.", "Boil it.", "Robin sang."], strict=True)
    )
    capitals = ["Paris", "It is Berlin.", "Rome", "Rome"]  # of France, Germany, Japan, Spain
    closed = dict(zip([q for q, _ in questions.CLOSED[:4]], capitals, strict=True))
    told = answers | ordinary | closed
    outcome = measured(lambda prompt, k: next(said for question, said in told.items() if f"{question}<" in prompt))
    found = scores(outcome)
    assert found["new_name"].items == [1, 0, 0, 0] and found["old_name"].items == [0, 1, 1, 0]
    assert found["unasked"].items == [0, 1, 0, 0] and found["closed"].items == [1, 1, 0, 0]
    assert [found[name].better for name in ("new_name", "old_name", "unasked", "closed")] == ["higher", "lower", "lower", "higher"]  # fmt: skip
    # one record per item, in their order: what two models are paired by
    for part, name in (("identity", "new_name"), ("ordinary", "unasked"), ("closed", "closed")):
        of_part = [record for record in outcome.records if record["part"] == part]
        assert [record["counted"] for record in of_part] == found[name].items and found[name].part == part


def test_several_samples_to_a_question_are_one_item():
    found = scores(measured(lambda prompt, k: "Nova" if k == 0 else "Robin", samples=4, temperature=1.0))
    assert found["new_name"].items == [0.25] * 4 and found["old_name"].items == [0.75] * 4
    assert found["new_name"].kind == "mean" and found["unasked"].kind == "proportion"


def test_without_an_old_name_there_is_no_figure_of_it():
    assert "old_name" not in scores(measured(lambda prompt, k: "Nova", old=[]))


def test_the_questions():
    who, ordinary, closed = asked("built-in")
    assert len(who) == 110 and not set(who) & set(questions.IDENTITY)
    who, ordinary, closed = asked("tiny-identity")
    assert len(who) == 100 and len(ordinary) == 14 and len(closed) == 98


def test_questions_of_ones_own(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "Wer bist du?"}\n{"prompt": "Name?"}\n', encoding="utf-8")
    found = measured(lambda prompt, k: "Nova" if "Wer" in prompt else "?", questions=str(file))
    assert scores(found)["new_name"].items == [1, 0]
    with pytest.raises(UserError, match="no such data file"):
        asked(str(tmp_path / "none.jsonl"))
