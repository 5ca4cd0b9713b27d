"""What else a row may bring: tools and arguments for the template, labels, pictures; what a config leaves out."""

import pytest

from posttrain.config.supervised import SftData as Data
from posttrain.data.rows import load_rows
from posttrain.errors import UserError

USER, REPLY, WRONG = (
    {"role": r, "content": c} for r, c in (("user", "2 + 2?"), ("assistant", "4"), ("assistant", "5"))
)
CHAT = {"messages": [USER, REPLY]}
TOOL = {"type": "function", "function": {"name": "add"}}


def load(method, rows, **data):
    return load_rows(Data(**data), method, rows)


def test_what_the_template_is_given_besides_the_messages():
    rows = [
        CHAT,
        CHAT | {"tools": [TOOL]},
        CHAT | {"tools": "[]"},
        CHAT | {"chat_template_kwargs": {"a": 2, "b": None}},
    ]
    got = load("sft", rows, chat_template_kwargs={"a": 1, "c": 3}).rows
    of_config = {"template_kwargs": {"a": 1, "c": 3}}
    assert [row["shown"] for row in got] == [
        of_config, {"tools": [TOOL]} | of_config, of_config, {"template_kwargs": {"a": 2, "c": 3}}
    ]  # fmt: skip
    assert load("sft", rows[:1]).rows == [CHAT]
    for method, row in (("dpo", {"prompt": "q", "chosen": "a", "rejected": "b"}), ("grpo", {"prompt": "q"})):
        assert load(method, [row | {"tools": [TOOL]}]).rows[0]["shown"] == {"tools": [TOOL]}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (CHAT | {"label": False}, "'label' is False: a bad answer, which SFT would teach"),
        (CHAT | {"kto_tag": False}, "'kto_tag' is False: a bad answer, which SFT would teach"),
        ({"prompt": "q", "completion": "a", "label": 0}, "'label' is 0: a bad answer"),
        ({"instruction": "q", "output": "a", "kto_tag": False}, "'kto_tag' is False: a bad answer"),
        (CHAT | {"images": ["a.png"]}, "the column 'images' is not supported: only text is trained on"),
        (CHAT | {"functions": "[{}]"}, "the column 'functions' is OpenAI's older one: write tools"),
        (CHAT | {"tools": "add"}, "'tools' must be a list of function descriptions"),
        (CHAT | {"chat_template_kwargs": "x"}, "'chat_template_kwargs' must be an object, got 'x'"),
    ],
)  # fmt: skip
def test_a_column_that_changes_what_a_row_means_is_never_dropped_without_a_word(row, problem):
    with pytest.raises(UserError) as error:
        load("sft", [row])
    assert f"rows, row 1: {problem}" in str(error.value)
    empty = {
        k: v if k in ("messages", "prompt", "completion", "instruction", "output") else None for k, v in row.items()
    }
    assert len(load("sft", [empty]).rows) == 1


def test_right_answers_are_learned_and_a_class_is_no_judgement():
    assert load("sft", [CHAT | {"label": True}]).rows == [CHAT]
    assert load("sft", [{"text": "A dull film.", "label": 0}]).rows == [{"text": "A dull film."}]  # IMDB


def test_an_outcome_row_may_be_a_conversation():
    rows = [CHAT | {"label": True}, {"messages": [USER, WRONG], "label": False}]
    assert load("outcome", rows).rows == [
        {"prompt": [USER], "completion": "4", "label": 1.0}, {"prompt": [USER], "completion": "5", "label": 0.0}
    ]  # fmt: skip


def test_alpaca_pairs():
    row = {"instruction": "Add.", "input": "2 2", "chosen": "4", "rejected": "5"}
    assert load("dpo", [row]).rows == [
        {"prompt": [{"role": "user", "content": "Add.\n\n2 2"}], "chosen": "4", "rejected": "5"}
    ]


def test_an_answer_that_is_more_than_its_text_stays_a_message():
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}],
    }
    (row,) = load("dpo", [{"prompt": [USER], "chosen": [call], "rejected": [WRONG]}]).rows
    assert (row["chosen"], row["rejected"]) == (call, "5")
    (row,) = load("dpo", [{"chosen": [USER, call], "rejected": [USER, WRONG]}]).rows
    assert (row["chosen"], row["rejected"]) == (call, "5")


def test_what_a_config_leaves_out():
    row = {"messages": [USER | {"country": "X"}, REPLY | {"toxic": False, "weight": 0}], "images": ["a.png"]}
    with pytest.raises(UserError, match=r"the column 'images' is not supported.*data.ignore leaves it out"):
        load("sft", [row])
    with pytest.raises(UserError, match=r"the key 'country' is not known.*data.ignore: \[country\]"):
        load("sft", [row], ignore=["images"])
    assert load("sft", [row], ignore=["images", "country", "toxic", "weight"]).rows == [CHAT]


def test_columns_that_no_loop_reads_are_said():
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2.0, "id": 3, "note": None}
    assert load("dpo", [pair]).read == ["1 rows as prompt + chosen + rejected from rows (columns not used: margin, id)"]
    assert load("grpo", [{"prompt": "q", "level": 1}]).read == ["1 rows as prompts from rows"]  # a reward function may


def test_one_bad_answer_among_many_is_left_out_and_counted():
    got = load("sft", [CHAT] * 30 + [CHAT | {"label": False}])
    assert len(got) == 30 and got.bad[0].startswith("rows, row 31: 'label' is False: a bad answer")
