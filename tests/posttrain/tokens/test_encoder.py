"""Rows in chunks and in several processes: the same items, the same counts, the same refusals."""

import os

import pytest
from kit import CHATML, GEMMA, bytelevel_tokenizer, rows_for

from posttrain.config.supervised import SftData as Data
from posttrain.errors import UserError
from posttrain.tokens import encoder
from posttrain.tokens.examples import pairs, prompts, sft_examples

ROWS = [{"prompt": f"Question {i}?", "completion": f"Answer {i}. " * (i % 4)} for i in range(1, 40) if i % 4]
MIXED = [*ROWS, {"text": "plain text"}]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(encoder, "CHUNK", 7)
    monkeypatch.setattr(encoder, "MANY", 10)


def described(encoded):
    return encoded.items, encoded.group_of, vars(encoded.encoder.counts), encoded.summary()


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("jinja", [CHATML, GEMMA])
def test_several_processes_give_the_same_items_and_counts(monkeypatch, small_chunks, processes, jinja):
    tokenizer, limit = bytelevel_tokenizer(jinja), 60
    system = [{"prompt": "q", "completion": "a", "system": "s"}] * (jinja == CHATML)
    rows, data = rows_for("sft", ROWS + system), Data(overlong="truncate_prompt")
    monkeypatch.setattr(encoder, "workers", lambda: 1)
    expected = described(sft_examples(rows, tokenizer, limit, data))
    monkeypatch.setattr(encoder, "workers", lambda: processes)
    assert described(sft_examples(rows, tokenizer, limit, data)) == expected
    assert len(expected[0]) == len(ROWS) + len(system)


def test_pairs_and_prompts_in_several_processes(monkeypatch, small_chunks):
    monkeypatch.setattr(encoder, "workers", lambda: 2)
    tokenizer, where = bytelevel_tokenizer(), os.getpid()
    given = [{"prompt": f"Q{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(30)]
    found = pairs(rows_for("dpo", given), tokenizer, 99, Data()).items
    assert [pair.index for pair in found] == list(range(30)) and os.getpid() == where
    assert tokenizer.decode(found[29].rejected.input_ids).endswith("assistant\nno 29<|im_end|>")
    rows = rows_for("grpo", [{"prompt": f"Q{i}", "answer": i} for i in range(30)])
    asked = prompts(rows, tokenizer, 99, 9, Data(), "grpo").items
    assert [prompt.row["columns"]["answer"] for prompt in asked] == list(range(30))
    assert all(prompt.row is row for prompt, row in zip(asked, rows.rows, strict=True))  # not a copy of it


@pytest.mark.parametrize("processes", [1, 2])
def test_a_row_that_stops_the_run_is_told_with_its_number(monkeypatch, small_chunks, processes):
    monkeypatch.setattr(encoder, "workers", lambda: processes)
    long = {"prompt": "word " * 60, "completion": "yes"}
    rows = rows_for("sft", [*ROWS[:20], long, *ROWS[20:]])
    with pytest.raises(UserError, match=r"row 21: longer than data.max_length = 100 tokens"):
        sft_examples(rows, bytelevel_tokenizer(), 100, Data(overlong="error"))


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_that_cannot_be_encoded_are_counted_once(monkeypatch, small_chunks, processes):
    monkeypatch.setattr(encoder, "workers", lambda: processes)
    bad = {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ]
    }
    found = sft_examples(rows_for("sft", [*ROWS, bad]), bytelevel_tokenizer(GEMMA), 200, Data())
    assert len(found.items) == len(ROWS) and len(found.bad) == 1 and f"row {len(ROWS) + 1}" in found.bad[0]


def test_as_many_processes_as_this_one_may_use(monkeypatch):
    monkeypatch.setattr(encoder.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(encoder.sys, "platform", "linux")
    assert encoder.workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # of torchrun: processes of this run on this machine
    assert encoder.workers() == 2
    monkeypatch.setattr(encoder.sys, "platform", "darwin")
    assert encoder.workers() == 1
