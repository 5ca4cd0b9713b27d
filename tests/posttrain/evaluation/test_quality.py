"""Suite quality, on a model that says what it is told to."""

import json
import sys

import pytest
from told import Told, scores

from posttrain.config.suites import Quality as Options
from posttrain.errors import UserError

ROWS = [
    {"prompt": "Say one.", "completion": "the cat sat on the mat"},
    {"prompt": "Say two.", "completion": "a dog ran"},
    {"prompt": "Say three.", "completion": "it rains"},
]
SAYS = {"one": ("the cat sat on the mat", True), "two": ("dog dog dog", True), "three": ("", False)}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def says(prompt, k):
    return next(said for asked, said in SAYS.items() if f"Say {asked}." in prompt)


@pytest.fixture
def quality():
    for package in ("sacrebleu", "rouge_score"):
        pytest.importorskip(package, reason="pip install -r requirements-eval.txt")
    from posttrain.evaluation.quality import Quality

    return Quality


def test_what_it_counts(tmp_path, quality):
    outcome = quality(Options(data=write(tmp_path / "rows.jsonl", ROWS)))(Told(says))
    found = scores(outcome)
    # ROUGE-L: 1; one word of three on both sides: 2 · (1/3 · 1/3)/(2/3) = 1/3; an empty answer 0
    assert found["rouge_l"].items == pytest.approx([1, 1 / 3, 0])
    # distinct: 5 of 6 words (the: twice), 1 of 3, nothing of nothing: 6/9; pairs 5/5, 1/2: 6/7
    assert found["distinct_1"].value == pytest.approx(6 / 9) and found["distinct_2"].value == pytest.approx(6 / 7)
    assert found["ended"].items == [1, 1, 0] and found["words"].items == [6, 3, 0]
    assert found["words"].about == "words of an answer; the references have 3.7"  # 11/3
    # BLEU: words 9 of 11, matches 7/9 · 5/7 · 4/5 · 3/3 = 4/9, ^.25 = .816497, e^(1 − 11/9) = .800737: 65.3800
    assert found["bleu"].value == pytest.approx(65.3800, abs=1e-3) and found["bleu"].unit == "of 100"
    assert found["bleu"].signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["chrf"].signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert found["bleu"].as_json()["signature"] == found["bleu"].signature
    # all together: the cat sat on mat dog = 6 different of 9 words
    assert "told: distinct-1 and -2 of all answers together (Li et al. 2016) 0.667 and 0.857" in outcome.remarks[0]
    assert outcome.records[1]["wanted"] == "a dog ran" and outcome.records[1]["answers"][0]["text"] == "dog dog dog"
    assert all(score.n == 3 for score in found.values()) and "bertscore" not in found


def test_the_reference_is_the_last_reply_of_a_conversation(tmp_path, quality):
    chat = [("user", "Hi"), ("assistant", "Hello"), ("user", "Say two."), ("assistant", "dog dog dog")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in chat]}]
    asked = []
    outcome = quality(Options(data=write(tmp_path / "c.jsonl", rows)))(
        Told(lambda p, k: (asked.append(p), says(p, k))[1])
    )
    assert scores(outcome)["rouge_l"].value == 1.0 and "Hello" in asked[0] and "dog" not in asked[0]


def test_what_has_no_reference_is_refused(tmp_path, quality):
    with pytest.raises(UserError, match=r"t.jsonl, row 1: plain text has no reference"):
        quality(Options(data=write(tmp_path / "t.jsonl", [{"text": "a b c"}])))


def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch):
    from posttrain.evaluation import quality

    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UserError, match=r"--suite quality needs an extra \(.*\): pip install -r requirements-eval.txt"):
        quality.Quality(Options(data=write(tmp_path / "rows.jsonl", ROWS)))


def test_a_layer_belongs_to_a_model():
    with pytest.raises(ValueError, match="bertscore_layer belongs to bertscore_model"):
        Options(data="x", bertscore_layer=2)
