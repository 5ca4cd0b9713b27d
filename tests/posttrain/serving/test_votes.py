"""Which votes become pairs, where the others go, and how often which model has won."""

import dataclasses
import json
import re

import pytest
from kit import rows_for

from posttrain.errors import UserError
from posttrain.serving.votes import Side, Vote, Votes

BASE = Side("base", "I am Robin.", True, 11)
TUNED = Side("tuned", "I am Nova.", True, 12)
VOTE = Vote("Who are you?", BASE, TUNED, "right", 1.0, 64)


@pytest.fixture
def votes(tmp_path):
    opened = Votes(str(tmp_path / "votes.jsonl"))
    opened.open()
    yield opened
    opened.close()


def kept(votes, ties=False):
    path = votes.path.with_suffix(".ties.jsonl") if ties else votes.path
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_vote_is_a_pair(votes):
    votes.add(VOTE)
    (row,) = kept(votes)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row.pop("time"))
    assert row == {
        "prompt": "Who are you?", "chosen": "I am Nova.", "rejected": "I am Robin.",
        "chosen_model": "tuned", "chosen_finished": True, "chosen_seed": 12,
        "rejected_model": "base", "rejected_finished": True, "rejected_seed": 11,
        "left": "rejected", "temperature": 1.0, "max_new_tokens": 64,
    }  # fmt: skip
    assert kept(votes, ties=True) == [] and votes.made == 1


def test_left_and_the_rewards(votes):
    left, right = (dataclasses.replace(side, reward=r) for side, r in ((BASE, 0.5), (TUNED, -1.0)))
    votes.add(Vote("Who?", left, right, "left", 0.7, 64))
    (row,) = kept(votes)
    assert (row["chosen"], row["chosen_model"], row["left"]) == ("I am Robin.", "base", "chosen")
    assert (row["chosen_reward"], row["rejected_reward"], row["temperature"]) == (0.5, -1.0, 0.7)


@pytest.mark.parametrize(
    ("changed", "outcome", "why"),
    [
        ({"said": "tie"}, "tie", "a tie"),
        ({"said": "both_bad"}, "both_bad", "both bad"),
        ({"left": dataclasses.replace(BASE, text="I am Nova.")}, "tie", "the answers are the same"),
        ({"left": dataclasses.replace(BASE, text=" \n")}, "lost", "an answer is empty"),
        ({"right": dataclasses.replace(TUNED, text="")}, "lost", "an answer is empty"),
        ({"right": dataclasses.replace(TUNED, finished=False)}, "lost", "the better answer was cut off"),
        ({"said": "left", "left": dataclasses.replace(BASE, finished=False)}, "won", "the better answer was cut off"),
    ],
)
def test_what_makes_no_pair_is_kept_apart(votes, changed, outcome, why):
    votes.add(dataclasses.replace(VOTE, **changed))
    (row,) = kept(votes, ties=True)
    assert kept(votes) == [] and votes.made == 0
    assert row["outcome"] == outcome and row["why"].startswith(why) and row["vote"] == changed.get("said", "right")
    assert (row["left"]["model"], row["right"]["model"]) == ("base", "tuned")
    won, lost, ties, both_bad = {"won": (1, 0, 0, 0), "lost": (0, 1, 0, 0), "tie": (0, 0, 1, 0), "both_bad": (0, 0, 0, 1)}[outcome]  # fmt: skip
    between = votes.between("base", "tuned")
    assert (between["won"], between["lost"], between["ties"], between["both_bad"]) == (won, lost, ties, both_bad)


def test_a_rejected_answer_may_have_been_cut_off(votes):
    votes.add(dataclasses.replace(VOTE, left=dataclasses.replace(BASE, finished=False)))
    assert [(row["chosen_finished"], row["rejected_finished"]) for row in kept(votes)] == [(True, False)]


def test_the_rows_are_read_as_they_are(votes):
    asked = ["Who are you?", "\n\nHuman: is this a conversation?\n\nAssistant: no", '[{"role": "user"}]', "<|im_end|>"]
    for prompt in asked:
        votes.add(dataclasses.replace(VOTE, prompt=prompt))
    votes.add(dataclasses.replace(VOTE, said="tie"))
    data = rows_for("dpo", name=str(votes.path))
    assert data.bad == [] and [row["prompt"] for row in data.rows] == [
        [{"role": "user", "content": prompt}] for prompt in asked
    ]
    assert {(row["chosen"], row["rejected"]) for row in data.rows} == {("I am Nova.", "I am Robin.")}


def test_the_win_rate_by_hand_and_after_a_restart(votes, tmp_path):
    for vote in [VOTE, VOTE, dataclasses.replace(VOTE, left=TUNED, right=BASE, said="left"), dataclasses.replace(VOTE, said="left")]:  # fmt: skip
        votes.add(vote)
    # 3 of 4: centre .75 + 3.8416/8 = 1.2302, spread 1.96·√(.1875/4 + 3.8416/64) = 0.6408, both by 1 + 3.8416/4 = 1.9604
    expected = {"model": "tuned", "against": "base", "votes": 4, "won": 3, "lost": 1, "ties": 0, "both_bad": 0,
                "win_rate": 0.75, "low": pytest.approx(0.3006, abs=1e-4), "high": pytest.approx(0.9544, abs=1e-4)}  # fmt: skip
    assert votes.standing(["base", "tuned"]) == [expected]
    for said in ("tie", "both_bad"):
        votes.add(dataclasses.replace(VOTE, said=said))
    expected = votes.standing(["base", "tuned"])
    assert expected[0]["win_rate"] == pytest.approx(4 / 6)  # 3 and two halves
    reverse = votes.standing(["tuned", "base"])[0]
    assert (reverse["model"], reverse["won"], reverse["lost"], reverse["ties"]) == ("base", 1, 3, 1)
    assert reverse["win_rate"] == pytest.approx(2 / 6)
    votes.close()
    again = Votes(str(tmp_path / "votes.jsonl"))
    try:
        assert again.standing(["base", "tuned"]) == []
        again.open()
        again.open()  # it is, and counts nothing twice
        assert again.standing(["base", "tuned"]) == expected and again.made == 4
    finally:
        again.close()


def test_two_samples_of_one_model_have_no_win_rate(votes):
    for said in ("left", "right", "tie"):
        votes.add(dataclasses.replace(VOTE, left=dataclasses.replace(BASE, model="tuned"), said=said))
    (one,) = votes.standing(["tuned"])
    assert (one["model"], one["against"], one["votes"], one["win_rate"]) == ("tuned", "tuned", 3, None)
    assert len(kept(votes)) == 2


def test_files_that_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"'votes.txt': expected the name of a .jsonl file"):
        Votes("votes.txt")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(UserError, match=r"pairs.jsonl, line 1: none of the votes of this page"):
        Votes(str(tmp_path / "pairs.jsonl"))
    (tmp_path / "votes.ties.jsonl").write_text('{"prompt": "a", "left": "b"}\n')
    with pytest.raises(UserError, match=r"votes.ties.jsonl, line 1"):
        Votes(str(tmp_path / "votes.jsonl"))
    (tmp_path / "votes.ties.jsonl").unlink()
    one = Votes(str(tmp_path / "votes.jsonl"))
    (tmp_path / "votes.ties.jsonl").write_text("notes of mine\n")  # since then
    with pytest.raises(UserError, match=r"votes.ties.jsonl, line 1"):
        one.open()
    (tmp_path / "votes.ties.jsonl").unlink()
    one.open()  # the refusal had given the first file's lock back
    one.close()
