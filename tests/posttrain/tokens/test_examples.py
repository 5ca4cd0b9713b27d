"""Canonical rows -> token rows: what does not fit, what the template refuses, what is held out together."""

import pytest
from kit import (
    FORGETFUL,
    GEMMA,
    bytelevel_tokenizer,
    rows_for,
    write_jsonl,
)

from posttrain.config.supervised import SftData as Data
from posttrain.data.rows import load_rows
from posttrain.errors import UserError
from posttrain.tokens.examples import hold_out, labelled, sft_examples

FINE = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def test_what_the_chat_template_refuses_is_a_bad_row_too():
    system = {"messages": [{"role": "system", "content": "s"}, *FINE["messages"]]}
    encoded = sft_examples(rows_for("sft", [FINE] * 19 + [system]), bytelevel_tokenizer(GEMMA), 100, Data())
    assert len(encoded.items) == 19 and "row 20: the tokenizer's chat template refuses" in encoded.bad[0]
    with pytest.raises(UserError, match=r"row 19: the tokenizer's chat template refuses.*2 such rows of 20"):
        sft_examples(rows_for("sft", [FINE] * 18 + [system] * 2), bytelevel_tokenizer(GEMMA), 100, Data())


@pytest.mark.parametrize("bad", [[{"text": " "}] * 5, [{"text": "word " * 500}] * 5])
def test_a_stream_that_begins_badly_is_refused_before_training(tmp_path, bad):
    data = Data(name=write_jsonl(tmp_path / "rows.jsonl", [{"text": "a b c"}] * 30 + bad), streaming=True)
    with pytest.raises(
        UserError, match=r"5 such rows of 35|5 of 35 rows \(14.3%\) are longer than data.max_length = 100"
    ):
        sft_examples(load_rows(data, "sft"), bytelevel_tokenizer(), 100, data)


def test_what_a_template_makes_of_one_conversation_is_held_out_together():
    chat = [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 3, "abcdef", strict=True)]
    data = Data()
    encoded = sft_examples(rows_for("sft", [{"messages": chat}] * 10), bytelevel_tokenizer(FORGETFUL), 200, data)
    assert len(encoded.items) == 30 and encoded.encoder.total == 30
    training, validation = hold_out(encoded, 0.2, 0)
    assert (len(training), len(validation)) == (24, 6)  # two whole conversations


LABELS = [
    {"prompt": f"Question {i}?", "completion": f"{'Yes' if i % 2 else 'No'}, {i}.", "label": bool(i % 2)}
    for i in range(1, 8)
]


def test_all_answers_to_a_prompt_are_held_out_together():
    rows = [row | {"completion": f"{row['completion']} {k}"} for row in LABELS for k in range(4)]
    data = Data()
    training, validation = hold_out(
        labelled(load_rows(data, "outcome", rows), bytelevel_tokenizer(), 200, data), 0.3, 0
    )
    prompts = [
        {tuple(t for t, m in zip(x.example.input_ids, x.example.completion_mask, strict=True) if not m) for x in side}
        for side in (training, validation)
    ]
    assert len(validation) == 8 and not prompts[0] & prompts[1]
