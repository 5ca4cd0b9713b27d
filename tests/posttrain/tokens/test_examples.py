"""Canonical rows -> token rows: what does not fit, what the template refuses, what is held out together."""

import re

import pytest
from kit import CHATML, FORGETFUL, GEMMA, TRIMS, bytelevel_tokenizer, rows_for, write_jsonl

from posttrain.config.supervised import SftData as Data
from posttrain.data.rows import load_rows
from posttrain.errors import UserError
from posttrain.tokens.examples import hold_out, labelled, pairs, prompts, sft_examples, to_show

FINE = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
STYLE = "{{ style or 'plain' }}{% if tools %}{{ tools[0].function.name }}{% endif %}\n" + CHATML
TOOL = {"type": "function", "function": {"name": "add"}}


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
    def chat(number):
        turns = zip(["user", "assistant"] * 3, [f"a{number}", *"bcdef"], strict=True)
        return {"messages": [{"role": r, "content": c} for r, c in turns]}

    rows = rows_for("sft", [chat(i) for i in range(10)])
    encoded = sft_examples(rows, bytelevel_tokenizer(FORGETFUL), 200, Data())
    assert len(encoded.items) == 30 and encoded.encoder.counts.total == 30
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


def test_truncating_the_prompt_keeps_the_answer_and_the_template():
    tokenizer = bytelevel_tokenizer()
    data, encoder = rows_for("sft", [LONG]), Data(overlong="truncate_prompt")
    (whole,), (cut,) = (sft_examples(data, tokenizer, n, encoder).items for n in (500, 50))
    assert 45 <= len(cut) <= 50 < len(whole) and cut.num_active == whole.num_active
    text = tokenizer.decode(cut.input_ids)  # a whole turn, of fewer words
    assert re.fullmatch(r"<\|im_start\|>user\n(word )+<\|im_end\|>\n<\|im_start\|>assistant\nyes<\|im_end\|>", text)
    with pytest.raises(UserError, match="nothing is left to train on"):  # no room for a prompt beside the answer
        sft_examples(data, tokenizer, whole.num_active, encoder)
    encoded = sft_examples(rows_for("sft", [LONG, LONG, {"prompt": "a", "completion": "b"}]), tokenizer, 50, encoder)
    assert "; cut the beginning of 2 prompts of rows longer than data.max_length = 50 tokens" in encoded.summary()


def test_truncating_keeps_the_prompt_ids_of_both_sides_the_same():
    tokenizer = bytelevel_tokenizer()
    row = {"prompt": "word " * 40 + "why?", "chosen": "Because of this and that and more.", "rejected": "No."}
    (pair,) = pairs(rows_for("dpo", [row]), tokenizer, 60, Data(overlong="truncate_prompt")).items
    prompts = [
        [t for t, m in zip(side.input_ids, side.completion_mask, strict=True) if not m]
        for side in (pair.chosen, pair.rejected)
    ]
    assert prompts[0] == prompts[1] and 55 <= len(pair.chosen) <= 60 and len(pair.rejected) < len(pair.chosen)
    text = tokenizer.decode(prompts[0])
    assert text.startswith("<|im_start|>user\nword word") and text.endswith("why?<|im_end|>\n<|im_start|>assistant\n")


def text_of(tokenizer, item):
    return tokenizer.decode(getattr(item, "example", getattr(item, "chosen", item)).input_ids)


def test_tools_and_arguments_reach_the_template_in_every_loop():
    tokenizer, data = bytelevel_tokenizer(STYLE), Data(chat_template_kwargs={"style": "short"})
    more = {"tools": [TOOL]}
    (chat,) = sft_examples(
        load_rows(data, "sft", [{"prompt": "q", "completion": "a"} | more]), tokenizer, 99, data
    ).items
    (pair,) = pairs(
        load_rows(data, "dpo", [{"prompt": "q", "chosen": "a", "rejected": "b"} | more]), tokenizer, 99, data
    ).items
    row = {"prompt": "q", "completion": "a", "label": True} | more
    (judged,) = labelled(load_rows(data, "outcome", [row]), tokenizer, 99, data).items
    (asked,) = prompts(load_rows(data, "grpo", [{"prompt": "q"} | more]), tokenizer, 99, 9, data, "grpo").items
    asked_for = "shortadd<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    for item in (chat, pair, judged):
        assert text_of(tokenizer, item) == f"{asked_for}a<|im_end|>"
    assert tokenizer.decode(asked.ids) == asked_for


@pytest.mark.parametrize("form", ["messages", "prompt + completion"])
def test_all_answers_to_one_question_are_on_one_side(form):
    def row(question, answer):
        if form == "messages":
            return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        return {"prompt": question, "completion": answer}

    data = Data()
    rows = load_rows(data, "sft", [row(f"q{i}", f"a{j}") for i in range(10) for j in range(4)])
    tokenizer = bytelevel_tokenizer()
    training, validation = hold_out(sft_examples(rows, tokenizer, 99, data), 0.2, 0)
    asked = [{tokenizer.decode(e.input_ids).split("<|im_end|>")[0] for e in side} for side in (training, validation)]
    assert (len(training), len(validation)) == (32, 8) and not asked[0] & asked[1]  # 2 of 10 questions, 4 answers each


def test_a_pair_that_becomes_the_same_tokens_is_left_out_and_counted():
    data = Data()
    good = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(30)]
    rows = load_rows(data, "dpo", [*good, {"prompt": "q", "chosen": "yes", "rejected": "yes "}])
    made = pairs(rows, bytelevel_tokenizer(TRIMS), 99, data)
    assert len(made.items) == 30
    assert made.bad == ["rows, row 31: chosen and rejected become the same tokens: no preference to learn"]


def test_a_muted_turn_is_read_and_not_learned():
    data, tokenizer = Data(), bytelevel_tokenizer()
    chat = [
        {"role": r, "content": c}
        for r, c in (("user", "q"), ("assistant", "bad"), ("user", "r"), ("assistant", "good"))
    ]
    chat[1]["weight"] = 0
    (row,) = sft_examples(load_rows(data, "sft", [{"messages": chat}]), tokenizer, 99, data).items
    assert (
        tokenizer.decode([t for t, m in zip(row.input_ids, row.completion_mask, strict=True) if m]) == "good<|im_end|>"
    )
    assert "bad" in tokenizer.decode(row.input_ids)


def test_a_prompt_that_is_cut_keeps_its_system_message_and_headers():
    data, tokenizer = Data(overlong="truncate_prompt", system_prompt="Answer in French."), bytelevel_tokenizer()
    question = "the quick brown fox jumps over the lazy dog. " * 8 + "What is 2 + 3?"
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": "5"}]
    made = sft_examples(load_rows(data, "sft", [{"messages": chat}]), tokenizer, 60, data)
    text = tokenizer.decode(made.items[0].input_ids)
    assert (
        text.startswith("<|im_start|>system\nAnswer in French.<|im_end|>\n<|im_start|>user\n")
        and len(made.items[0]) <= 60
    )
    assert text.endswith("What is 2 + 3?<|im_end|>\n<|im_start|>assistant\n5<|im_end|>")
    assert "cut the beginning of 1 prompt of a row longer than data.max_length = 60" in made.summary()


def test_what_the_template_adds_is_remarked_once_and_not_of_plain_text():
    data, tokenizer = Data(), bytelevel_tokenizer("{{ strftime_now('%Y') }}" + CHATML)
    assert (
        len(sft_examples(load_rows(data, "sft", [{"prompt": "q", "completion": "a"}] * 9), tokenizer, 99, data).remarks)
        == 1
    )
    assert sft_examples(load_rows(data, "sft", [{"text": "abc"}]), tokenizer, 99, data).remarks == []


def test_what_is_shown_was_held_out():
    """20 rows with 10 prompts, a fifth held out: two prompts, one row of each, and none that is trained on."""
    rows = rows_for("sft", [{"prompt": f"P{n // 2}", "completion": str(n)} for n in range(20)])
    tokenizer = bytelevel_tokenizer()
    encoded = sft_examples(rows, tokenizer, 100, Data())
    training, _ = hold_out(encoded, 0.2, 0)
    shown = to_show(encoded, 0.2, 0)
    asked = [row["messages"][0]["content"] for row in shown.rows]
    trained = [tokenizer.decode(item.input_ids) for item in training]
    assert len(set(asked)) == len(asked) == len(shown.places) == 2 and len(training) == 16
    assert not any(prompt in text for prompt in asked for text in trained)
    assert [shown.where(i) for i in range(2)] == [rows.where(rows.rows.index(row)) for row in shown.rows]
    assert to_show(encoded, 0, 0) is rows
