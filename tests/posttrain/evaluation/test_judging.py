"""Verdicts by hand; judges that say what they are told to; a reward model of random weights."""

import json
import math

import pytest
import torch
from kit import bytelevel_tokenizer, tiny_model
from told import Told

from posttrain.errors import UserError
from posttrain.evaluation import judging
from posttrain.evaluation.judging import RewardModel, by_language_model, of_orders, of_scores
from posttrain.models import scalar

HI = [{"role": "user", "content": "Hi"}]


def test_two_orders_make_a_verdict():
    # σ(ln 3) = 3/4, σ(ln 1/3) = 1/4
    assert of_orders(math.log(3), math.log(3)).won == 1.0 and of_orders(-1.0, -2.0).won == 0.0
    torn = of_orders(math.log(3), -math.log(3))
    assert (torn.won, torn.preference, torn.first, torn.contradictory) == (0.5, pytest.approx(0.5), 1.0, True)
    sure = of_orders(math.log(3), 0.0)  # a win and a draw contradict each other, too
    assert (sure.won, sure.preference, sure.first) == (0.5, pytest.approx(0.625), 0.75)
    assert of_orders(1.0, 1.0).first == 0.5 and not of_orders(1.0, 1.0).contradictory


def test_two_scores_make_a_verdict():
    won = of_scores(2.0, 2.0 - math.log(3))
    assert (won.won, won.preference, won.first) == (1.0, pytest.approx(0.75), None)
    assert (
        of_scores(1.0, 1.0).won == 0.5 and of_scores(-800.0, 0.0).won == 0.0 and not of_scores(1.0, 1.0).contradictory
    )


def likes(word, first=0.0):
    """Log-probs of the answer's letter: 2 for the side that holds `word`, `first` for the first place."""

    def reads(text):
        a, b = text.split("[A]\n")[1].split("\n\n[B]\n")
        place = a if text.endswith("A") else b
        other = 0.0 if text.endswith("B") else first
        return torch.tensor([2.0 * (word in place.split("\n\n")[0]) + other])

    return reads


def test_a_language_model_reads_both_orders():
    asked = [(HI, "good", "bad"), (HI, "bad", "good"), (HI, "bad", "bad")]
    fair, biased = (by_language_model(Told(reads=likes("good", first)), asked) for first in (0.0, 5.0))
    assert [v.won for v in fair] == [1.0, 0.0, 0.5] and [v.said for v in fair] == [[2, 2], [-2, -2], [0, 0]]
    # who likes the first place by 5 contradicts itself on all three pairs
    assert [v.won for v in biased] == [0.5] * 3 and [v.first for v in biased] == [1.0] * 3
    assert [v.said for v in biased] == [[7, -3], [3, -7], [5, -5]]


class Short(Told):
    limit = 200


def test_a_judge_that_cannot_read_both_answers_says_of_which_prompt():
    judge, asked = Short(reads=likes("good")), [(HI, "good", "bad"), (HI, "bad " * 150, "good")]
    with pytest.raises(
        UserError, match=r"^told, the judge, reads at most 200 tokens, and prompt 2 with its answers has \d+"
    ):
        by_language_model(judge, asked)
    # and before anybody answers: one answer more, of the question's 144 tokens and two
    judging.refuse_no_room(judge, [HI], ["bad"], 50)
    with pytest.raises(UserError, match=r"prompt 1 with answers of up to 50 tokens may have"):
        judging.refuse_no_room(judge, [HI], None, 50)


def test_a_conversation_is_shown_by_turns():
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why"},
    ]
    assert judging.spoken(HI) == "Hi" and judging.spoken(turns) == "user: Hi\nassistant: Yes?\nuser: Why"


def test_a_reward_model_scores_one_answer_at_a_time(tmp_path):
    tokenizer = bytelevel_tokenizer()
    scorer = scalar.as_scorer(tiny_model(vocab_size=len(tokenizer)))
    torch.nn.init.normal_(scorer.score.weight, generator=torch.Generator().manual_seed(0))
    scorer.config.pad_token_id = tokenizer.pad_token_id
    scalar.save_scorer(scorer, tokenizer, tmp_path)
    judge = RewardModel(str(tmp_path), "cpu", "--judge.reward_model")
    one, two, same = judge([(HI, "yes", "no no"), (HI, "no no", "yes"), (HI, "yes", "yes")], 2)
    assert one.said == pytest.approx(two.said[::-1], abs=1e-5) and one.said[0] != pytest.approx(one.said[1], abs=1e-3)
    assert one.won == 1 - two.won and same.preference == pytest.approx(0.5, abs=1e-5)
    with pytest.raises(
        UserError, match=r"reads at most 256 tokens, and prompt 2 with one of its answers has \d+: lower --j"
    ):
        judge([(HI, "yes", "no"), (HI, "no", "yes " * 300)], 2)
    judging.refuse_no_room(judge, [HI], None, 240)
    with pytest.raises(UserError, match=r"and prompt 1 with answers of up to 256 tokens may have"):
        judging.refuse_no_room(judge, [HI], None, 256)


def test_earlier_answers(tmp_path):
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": [{"role": "user", "content": "b"}], "answer": "2"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "x.json").write_text(json.dumps(rows))
    for name in ("x.jsonl", "x.json"):
        assert judging.is_file(str(tmp_path / name))
        assert judging.earlier_answers(str(tmp_path / name), ["b", "a"], "--k") == ["2", "1"]
    # an end of line for Python and not for JSON, behind a mark that some editors put before a text
    (tmp_path / "y.jsonl").write_text('\ufeff{"prompt": "a", "answer": "1\u20282"}\n', encoding="utf-8")
    assert judging.earlier_answers(str(tmp_path / "y.jsonl"), ["a"], "--k") == ["1\u20282"]
    with pytest.raises(UserError, match=r"--k .*x.json: no answer to 1 of 2 prompts, e.g. 'c'"):
        judging.earlier_answers(str(tmp_path / "x.json"), ["a", "c"], "--k")
    (tmp_path / "bad.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(UserError, match=r'expected rows \{"prompt": …, "answer": …\}'):
        judging.earlier_answers(str(tmp_path / "bad.jsonl"), ["a"], "--k")
    with pytest.raises(UserError, match="cannot be read"):
        judging.earlier_answers(str(tmp_path / "none.jsonl"), ["a"], "--k")
