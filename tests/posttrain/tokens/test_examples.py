"""Canonical rows -> token rows: what the template is given, which side of the split, what is cut."""

import pytest
from small import CHATML, TRIMS, bytelevel_tokenizer

from posttrain.config.supervised import SftData as Data
from posttrain.data.rows import load_rows
from posttrain.tokens.examples import hold_out, labelled, pairs, prompts, sft_examples

STYLE = "{{ style or 'plain' }}{% if tools %}{{ tools[0].function.name }}{% endif %}\n" + CHATML
TOOL = {"type": "function", "function": {"name": "add"}}


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
    assert "cut the beginning of 1 prompts of rows longer than data.max_length = 60" in made.summary()


def test_what_the_template_adds_is_remarked_once_and_not_of_plain_text():
    data, tokenizer = Data(), bytelevel_tokenizer("{{ strftime_now('%Y') }}" + CHATML)
    assert (
        len(sft_examples(load_rows(data, "sft", [{"prompt": "q", "completion": "a"}] * 9), tokenizer, 99, data).remarks)
        == 1
    )
    assert sft_examples(load_rows(data, "sft", [{"text": "abc"}]), tokenizer, 99, data).remarks == []
