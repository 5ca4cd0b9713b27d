"""Answer, critique, revision: who is asked what, what becomes a row, and why the others do not."""

import collections
import json

import pytest
from kit import rows_for, write_jsonl

from posttrain import curate
from posttrain.errors import UserError
from posttrain.rollouts import constitution
from posttrain.rollouts.constitution import draw, read_principles, revised, why_not_a_critique, why_not_a_revision
from posttrain.rollouts.speaking import Said

RULE = "The answer is short."


def good(*texts):
    return [Said(text, None) for text in texts]


class Scripted:
    """Says what is written down, round by round."""

    def __init__(self, *rounds):
        self.rounds, self.asked = list(rounds), []

    def __call__(self, conversations, **_):
        self.asked.append(conversations)
        said = self.rounds.pop(0)
        assert len(said) == len(conversations)
        return said


def rows(n):
    return [{"prompt": [{"role": "user", "content": f"Q{i}?"}], "columns": {}} for i in range(n)]


def test_who_is_asked_what():
    model, critic, left_out = (
        Scripted(good("long answer"), good("short")),
        Scripted(good("It is long.")),
        collections.Counter(),
    )
    found = revised(model, critic, rows(1), [RULE], left_out)
    assert found == [
        {"prompt": "Q0?", "chosen": "short", "rejected": "long answer", "principle": RULE, "critique": "It is long."}
    ]
    assert not left_out
    ((asked,),) = critic.asked  # the critic reads the answer and the principle, the model its critique
    assert (
        [m["role"] for m in asked] == ["user", "assistant", "user"]
        and asked[1]["content"] == "long answer"
        and RULE in asked[2]["content"]
    )
    (again,) = model.asked[1]
    assert (
        again[:3] == asked
        and again[3] == {"role": "assistant", "content": "It is long."}
        and again[4]["role"] == "user"
    )


def test_what_is_left_out_and_why():
    model = Scripted(
        [Said("a0", "did not end within 9 tokens"), *good("a1", "a2", "a3", "a4", "a5", "a6", "a7")],
        [*good(" A4", "Critique: none.", "fine"), Said("", "are empty")],
    )
    critic = Scripted([Said("", "are empty"), *good("Nothing.", "a3"), *good("c4", "c5", "c6", "c7")])
    left_out = collections.Counter()
    found = revised(model, critic, rows(8), [RULE] * 8, left_out)
    assert [row["chosen"] for row in found] == ["fine"] and found[0]["prompt"] == "Q6?"
    assert left_out == {
        "answers did not end within 9 tokens": 1, "critiques are empty": 1, "critiques find nothing": 1, "critiques are the answer again": 1,
        "revisions are the answer again": 1, "revisions talk about the critique or the principle": 1, "revisions are empty": 1,
    }  # fmt: skip
    assert sum(left_out.values()) + len(found) == 8


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Boil water first.", None),
        ("Note: the kettle is hot.", None),
        ("In principle: yes, but slowly.", "talk"),
        ("Critique: too long.", "talk"),
        ("Revised answer:\nBoil water.", "talk"),
        ("Here is the new version: boil water.", "talk"),
        ("My previous answer was too long.", "talk"),
        (f"Boil water. {RULE.upper()}", "talk"),
        ("the  ANSWER", "are the answer again"),
        ("The answer!", "are the answer again"),
        ("It is too long", "are the critique again"),
    ],
)
def test_revisions(text, problem):
    found = why_not_a_revision(Said(text, None), "The answer", "It is too long.", RULE)
    assert found is None if problem is None else found.startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Nothing.", "find nothing"), ("nothing", "find nothing"), ("None!", "find nothing"), ("Nothing goes against it.", "find nothing"),
        ("Nothing is said of the danger. It should be.", None), ("It is rude.", None),
    ],
)  # fmt: skip
def test_critiques(text, problem):
    assert why_not_a_critique(text, "x") == problem


def test_principles(tmp_path):
    shipped = read_principles(None)
    assert len(shipped) == 12 == len(set(shipped)) and all(rule.startswith("The answer ") for rule in shipped)
    drawn = draw(shipped, 200, 3)
    assert drawn == draw(shipped, 200, 3) != draw(shipped, 200, 4) and set(drawn) == set(shipped)
    assert draw(shipped, 300, 3)[:200] == drawn  # more prompts change nothing for the first ones
    own = tmp_path / "p.txt"
    own.write_text("\ufeff# mine\n\n Be kind. \n")
    assert read_principles(str(own)) == ["Be kind."]
    own.write_text("# mine\n")
    with pytest.raises(UserError, match="no principle in it"):
        read_principles(str(own))
    with pytest.raises(UserError, match=r"none.txt: cannot be read: No such file"):
        read_principles(str(tmp_path / "none.txt"))


@pytest.mark.parametrize(("write", "method"), [("sft", "sft"), ("pairs", "dpo"), ("labels", "dpo")])
def test_the_command_writes_what_a_loop_reads(tmp_path, capsys, write, method):
    """The embedded model has never seen a critique: its words mean nothing here, its rows are rows."""
    out, asked = (
        tmp_path / "o.jsonl",
        write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"What is {i} + 3?"} for i in range(12)]),
    )
    curate.main(["constitution", "--model", "tiny-sft", "--prompts", asked, "--max-new-tokens", "32", "--temperature", "1.0", "--write", write,
                 "--min-share", "0", "--out", str(out), *(["--margin", "0"] if write == "labels" else [])])  # fmt: skip
    said = capsys.readouterr().out
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert f"wrote {len(found)} row" in said and "12 prompts; left out: " in said
    assert ("the judge favours the first place by" in said) == (write == "labels")
    assert set(found[0]) == {
        "sft": {"prompt", "completion", "principle", "critique"}, "pairs": {"prompt", "chosen", "rejected", "principle", "critique"},
        "labels": {"prompt", "chosen", "rejected", "principle", "preference"},
    }[write]  # fmt: skip
    assert len(rows_for(method, name=str(out))) == len(found)


def test_too_few_are_no_success(tmp_path, monkeypatch):
    asked = write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"Q{i}?"} for i in range(10)])
    model = Scripted(good(*"abcdefghij"), good("too long", *["Nothing."] * 9), good("short"))
    monkeypatch.setattr(constitution, "Speaker", lambda name, **_: model)
    with pytest.raises(
        UserError, match=r"only 1 of 10 prompts gave a row \(--min-share 0.2\); left out: 9 critiques find nothing"
    ):
        constitution.constitution("m", asked, str(tmp_path / "o.jsonl"), min_share=0.2)
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"write": "labels", "temperature": 0}, "--write labels compares two samples: give a --temperature"),
        ({"margin": 0.1}, "--margin belongs to --write labels"),
        ({"write": "labels", "margin": 0.5}, "lies between 0 and 0.5"),
        ({"max_new_tokens": 0}, "must be at least 1"),
    ],
)
def test_bad_requests(tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        constitution.constitution("none", "none", str(tmp_path / "o.jsonl"), **keys)
