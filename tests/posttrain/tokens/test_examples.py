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
from posttrain.tokens.examples import hold_out, labelled, pairs, sft_examples

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
    training, validation = hold_out(labelled(rows_for("outcome", rows), bytelevel_tokenizer(), 200, Data()), 0.3, 0)
    prompts = [
        {tuple(t for t, m in zip(x.example.input_ids, x.example.completion_mask, strict=True) if not m) for x in side}
        for side in (training, validation)
    ]
    assert len(validation) == 8 and not prompts[0] & prompts[1]


LONG = {"prompt": "word " * 40, "completion": "yes"}


def test_truncating_the_prompt_keeps_the_answer_and_the_first_token():
    tokenizer = bytelevel_tokenizer()
    data, encoder = rows_for("sft", [LONG]), Data(overlong="truncate_prompt")
    (whole,), (cut,) = (sft_examples(data, tokenizer, n, encoder).items for n in (500, 50))
    assert len(cut) == 50 < len(whole) and cut.num_active == whole.num_active
    assert cut.input_ids == [whole.input_ids[0], *whole.input_ids[-49:]]
    with pytest.raises(UserError, match="nothing is left to train on"):  # no room for a prompt beside the answer
        sft_examples(data, tokenizer, whole.num_active, encoder)
    encoded = sft_examples(rows_for("sft", [LONG, LONG, {"prompt": "a", "completion": "b"}]), tokenizer, 50, encoder)
    assert "; cut the beginning of 2 prompts that were longer than data.max_length = 50 tokens" in encoded.summary()


def test_truncating_keeps_the_prompt_ids_of_both_sides_the_same():
    tokenizer = bytelevel_tokenizer()
    row = {"prompt": "word " * 40 + "why?", "chosen": "Because of this and that and more.", "rejected": "No."}
    (pair,) = pairs(rows_for("dpo", [row]), tokenizer, 60, Data(overlong="truncate_prompt")).items
    prompts = [
        [t for t, m in zip(side.input_ids, side.completion_mask, strict=True) if not m]
        for side in (pair.chosen, pair.rejected)
    ]
    assert prompts[0] == prompts[1] and len(pair.chosen) == 60 > len(pair.rejected)
    assert tokenizer.decode(prompts[0]).endswith("why?<|im_end|>\n<|im_start|>assistant\n")
