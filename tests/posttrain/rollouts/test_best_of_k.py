"""Rejection sampling: what is kept of k scored answers, and that the command writes rows its loop reads."""

import json
import re
import sys

import pytest
from kit import write_jsonl

from posttrain import curate
from posttrain.config.supervised import SftData as Data
from posttrain.data.rows import load_rows
from posttrain.errors import UserError
from posttrain.rollouts.best_of_k import Scored, as_rows, best_of_k, sample_and_score


def group(*answers):
    return [Scored("Q?", text, score, done) for text, score, done in answers]


GROUPS = [
    group(("a", 1.0, True), ("b", 0.0, True), ("c", 1.0, True)),
    group(("d", 0.0, True), ("e", 0.0, True)),
    group(("f", 2.0, False), ("g", 0.5, True), (" ", 3.0, True)),
]


def test_what_is_kept():
    # the unfinished f and the empty one are never learned, however they score
    best, left_out = as_rows(GROUPS, "best")
    assert [(r["completion"], r["score"]) for r in best] == [("a", 1.0), ("d", 0.0), ("g", 0.5)] and left_out == 0
    assert [r["completion"] for r in as_rows(GROUPS, "best", min_score=1.0)[0]] == ["a"]
    assert as_rows(GROUPS, "pairs") == ([{"prompt": "Q?", "chosen": "a", "rejected": "b"}], 2)
    labels, left_out = as_rows(GROUPS, "labels")
    assert [r["label"] for r in labels] == [True, False, True, False, False, False] and left_out == 2
    # of an outcome reward model the score is a logit: right above 0
    assert [r["label"] for r in as_rows(GROUPS, "labels", right_above=0.0)[0]] == [
        True,
        False,
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(("write", "method"), [("best", "sft"), ("pairs", "dpo"), ("labels", "outcome")])
def test_the_command_writes_what_a_loop_reads(tmp_path, capsys, write, method):
    out = tmp_path / "rows.jsonl"
    curate.main(["best-of-k", "--model", "tiny-sft", "--prompts", "tiny-math", "--max-prompts", "20", "--k", "4", "--score", "answer",
                 "--max-new-tokens", "28", "--write", write, "--out", str(out)])  # fmt: skip
    said = capsys.readouterr().out
    assert "4 answers to each of 20 prompts: mean score of the first 0." in said
    first, best = (
        float(part.split()[-1].rstrip(","))
        for part in said.split("\n")[0].split("mean score of the first")[1].split(", of the best")
    )
    assert best > first + 0.1  # the best of four is right more often than the first
    got = load_rows(Data(name=str(out)), method)
    assert len(got) == len(out.read_text().splitlines()) > 5


def test_the_same_seed_writes_the_same_rows(tmp_path):
    def rows(seed):
        best_of_k(
            "tiny-sft",
            "tiny-math",
            ["answer"],
            str(tmp_path / "o.jsonl"),
            k=2,
            max_prompts=5,
            max_new_tokens=28,
            seed=seed,
        )
        return [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]

    assert rows(0) == rows(0) != rows(1)


def test_the_embedded_sampled_sets():
    from posttrain.data.sources import read

    pairs, labels = read("tiny-preference", split="test"), read("tiny-outcome", split="test")
    assert len(pairs) > 100 and set(pairs[0]) == {"prompt", "chosen", "rejected"}
    assert len(labels) > 1000 and 0.2 < sum(row["label"] for row in labels) / len(labels) < 0.7
    train = {row["prompt"] for row in read("tiny-preference")}
    assert not train & {row["prompt"] for row in pairs}


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="--k must be at least 2"):
        best_of_k("m", "p", ["answer"], str(tmp_path / "o.jsonl"), k=1)
    with pytest.raises(UserError, match=r"expected the name of a .jsonl file"):
        best_of_k("m", "p", ["answer"], str(tmp_path))
    with pytest.raises(UserError, match="expected answer, reasoning_gym, or package"):
        best_of_k("tiny-sft", "tiny-math", ["no-such-folder"], str(tmp_path / "o.jsonl"))


def test_a_task_of_reasoning_gym(tmp_path, capsys):
    """Its arguments reach it: sums of two numbers of one digit, as many as were asked for, verified by its own verifier."""
    pytest.importorskip("reasoning_gym", reason="pip install -r requirements-tasks.txt")
    out = tmp_path / "l.jsonl"
    given = ["best-of-k", "--model", "tiny-sft", "--prompts", "reasoning-gym:chain_sum", "--score", "reasoning_gym", "--k", "2",
             "--write", "labels", "--max-new-tokens", "24", "--out", str(out)]  # fmt: skip
    curate.main([*given, "--task", "{max_terms: 2, min_digits: 1, max_digits: 1, size: 6}"])
    assert "2 answers to each of 6 prompts" in capsys.readouterr().out
    asked = {json.loads(line)["prompt"] for line in out.read_text().splitlines()}
    assert asked and all(len(re.findall(r"\d+", question)) == 2 for question in asked)
    with pytest.raises(SystemExit):
        curate.main([*given, "--task", "3"])
    assert "expected arguments as in '{max_terms: 3, size: 100}', got 3" in capsys.readouterr().err
    with pytest.raises(UserError, match="--task belongs to --prompts reasoning-gym:TASK, not to 'tiny-math'"):
        best_of_k("tiny-sft", "tiny-math", ["answer"], str(out), task={"size": 3})


def test_a_row_keeps_its_own_system_message(tmp_path):
    """Answered under it, the row would else be learned without it."""
    rows = [{"prompt": "What is 1 + 1?", "system": "Be brief.", "answer": 2}, {"prompt": "What is 2 + 1?", "answer": 3}]
    groups = sample_and_score("tiny-sft", write_jsonl(tmp_path / "p.jsonl", rows), ["answer"], k=2, max_new_tokens=12)
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 1?"}]
    assert [group[0].prompt for group in groups] == [told, "What is 2 + 1?"]


def test_a_reward_model_may_score_them(tmp_path):
    """Best of two by a reward model: its own scores, of the sampled ids, and the higher one is kept."""
    from posttrain import models
    from posttrain.models import scalar
    from posttrain.rollouts.best_of_k import sample_and_score
    from posttrain.tokens.batch import Example
    from posttrain.tokens.template import completion_ids, prompt_ids

    causal, tokenizer, _ = models.load("tiny-sft")
    made = scalar.as_scorer(causal)
    made.score.weight.data.normal_()
    scalar.save_scorer(made, tokenizer, tmp_path / "rm")
    groups = sample_and_score("tiny-sft", "tiny-math", [str(tmp_path / "rm")], k=2, max_prompts=6, max_new_tokens=28)
    rm, its = scalar.load_reward_model(str(tmp_path / "rm"), device="cpu", key="k")
    for pair in groups:
        asked = [{"role": "user", "content": pair[0].prompt}]
        for one in pair:
            if one.finished:
                row = Example.of(prompt_ids(its, asked), completion_ids(its, asked, one.text))
                assert scalar.score_examples(rm, [row], its.pad_token_id, 1)[0] == pytest.approx(one.score, abs=1e-4)
    kept, _ = as_rows(groups, "best")
    assert all(row["score"] == max(s.score for s in pair if s.finished) for row, pair in zip(kept, groups, strict=True))


@pytest.mark.parametrize(
    ("asks", "message"),
    [("trainer_state", "asks for trainer_state; a training run alone has them"), ("colour", "asks for colour, the rows have answer, prompts")],
)  # fmt: skip
def test_a_function_that_asks_for_what_is_not_there_is_refused_before_anything_is_loaded(
    tmp_path, monkeypatch, asks, message
):
    (tmp_path / "asking.py").write_text(f"def reward(completions, {asks}):\n    return [0.0] * len(completions)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "asking", raising=False)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "1"}\n')
    with pytest.raises(UserError, match=message):
        best_of_k("no such model", str(tmp_path / "rows.jsonl"), ["asking:reward"], str(tmp_path / "out.jsonl"))
