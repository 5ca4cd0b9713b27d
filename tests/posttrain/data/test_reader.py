"""One raw row after the other: the format of the first shows how, a bad one is counted or stops the run; and what else a
row may bring: tools and arguments for the template, labels, pictures."""

import shlex

import pytest
from kit import bytelevel_tokenizer, rows_for, write_jsonl

from posttrain import curate
from posttrain.config.supervised import SftData as Data
from posttrain.data.rows import load_rows
from posttrain.errors import UserError
from posttrain.tokens.examples import sft_examples

USER, REPLY, WRONG = (
    {"role": r, "content": c} for r, c in (("user", "2 + 2?"), ("assistant", "4"), ("assistant", "5"))
)
CHAT = {"messages": [USER, REPLY]}
TOOL = {"type": "function", "function": {"name": "add"}}
TWICE = {"messages": [{"role": "user", "content": "a"}] * 2 + [{"role": "assistant", "content": "b"}]}
FINE = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def test_a_few_rows_that_teach_nothing_are_left_out_and_counted():
    good = {"prompt": "x", "chosen": "a", "rejected": "b"}
    got = rows_for("dpo", [good] * 30 + [good | {"chosen": ""}] + [good] * 9)
    assert len(got) == 39 and got.bad == ["rows, row 31: 'chosen' is empty: an empty answer teaches nothing"]
    assert got.where(30) == "rows, row 32"  # numbers stay those of the source
    with pytest.raises(
        UserError, match=r"rows, row 1: 'chosen' is empty.*\(3 such rows of 40; up to 5% would be left out"
    ):
        rows_for("dpo", [good | {"chosen": ""}] * 3 + [good] * 37)


def test_a_bad_row_is_left_out_counted_and_told_or_stops_the_run(tmp_path):
    rows = rows_for("sft", [FINE] * 30 + [TWICE] + [FINE] * 9)
    assert len(rows) == 39 and len(rows.bad) == 1
    assert rows.bad[0].startswith("rows, row 31: 'messages', message 2: roles out of order")
    with pytest.raises(UserError, match=r"row 31: .*roles out of order.* Mend it, or set data.bad_rows: drop$"):
        rows_for("sft", [FINE] * 30 + [TWICE] + [FINE] * 9, bad_rows="error")
    with pytest.raises(UserError, match=r"row 1: .*2 such rows of 39; up to 5% would be left out"):
        rows_for("sft", [TWICE] * 2 + [FINE] * 37)
    encoded = sft_examples(rows, bytelevel_tokenizer(), 100, Data())
    assert "; left out 1 that no loop can use (first: rows, row 31: " in encoded.summary()


def test_the_format_is_that_of_the_first_row_with_something_in_it():
    rows = [{"prompt": "a", "completion": None}] + [{"prompt": "a", "completion": "b"}] * 39
    got = rows_for("sft", rows)
    assert len(got) == 39 and got.bad == ["rows, row 1: 'completion' is empty: an empty answer teaches nothing"]
    with pytest.raises(UserError, match=r"found prompt, completion \(empty\)"):
        rows_for("sft", rows[:1])


def test_system_prompt_is_added_where_there_is_none():
    got = rows_for(
        "sft",
        [FINE, {"messages": [{"role": "system", "content": "Be kind."}, *FINE["messages"]]}],
        system_prompt="New.",
    )
    assert [r["messages"][0]["content"] for r in got.rows] == ["New.", "Be kind."]


def test_what_the_template_is_given_besides_the_messages():
    rows = [
        CHAT,
        CHAT | {"tools": [TOOL]},
        CHAT | {"tools": "[]"},
        CHAT | {"chat_template_kwargs": {"a": 2, "b": None}},
    ]
    got = rows_for("sft", rows, chat_template_kwargs={"a": 1, "c": 3}).rows
    of_config = {"template_kwargs": {"a": 1, "c": 3}}
    assert [row["shown"] for row in got] == [
        of_config, {"tools": [TOOL]} | of_config, of_config, {"template_kwargs": {"a": 2, "c": 3}}
    ]  # fmt: skip
    assert rows_for("sft", rows[:1]).rows == [CHAT]
    for method, row in (("dpo", {"prompt": "q", "chosen": "a", "rejected": "b"}), ("grpo", {"prompt": "q"})):
        assert rows_for(method, [row | {"tools": [TOOL]}]).rows[0]["shown"] == {"tools": [TOOL]}


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
        rows_for("sft", [row])
    assert f"rows, row 1: {problem}" in str(error.value)
    empty = {
        k: v if k in ("messages", "prompt", "completion", "instruction", "output") else None for k, v in row.items()
    }
    assert len(rows_for("sft", [empty]).rows) == 1


def test_right_answers_are_learned_and_a_class_is_no_judgement():
    assert rows_for("sft", [CHAT | {"label": True}]).rows == [CHAT]
    assert rows_for("sft", [{"text": "A dull film.", "label": 0}]).rows == [{"text": "A dull film."}]  # IMDB


def test_an_outcome_row_may_be_a_conversation():
    rows = [CHAT | {"label": True}, {"messages": [USER, WRONG], "label": False}]
    assert rows_for("outcome", rows).rows == [
        {"prompt": [USER], "completion": "4", "label": 1.0}, {"prompt": [USER], "completion": "5", "label": 0.0}
    ]  # fmt: skip


def test_alpaca_pairs():
    row = {"instruction": "Add.", "input": "2 2", "chosen": "4", "rejected": "5"}
    assert rows_for("dpo", [row]).rows == [
        {"prompt": [{"role": "user", "content": "Add.\n\n2 2"}], "chosen": "4", "rejected": "5"}
    ]


def test_an_answer_that_is_more_than_its_text_stays_a_message():
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}],
    }
    (row,) = rows_for("dpo", [{"prompt": [USER], "chosen": [call], "rejected": [WRONG]}]).rows
    assert (row["chosen"], row["rejected"]) == (call, "5")
    (row,) = rows_for("dpo", [{"chosen": [USER, call], "rejected": [USER, WRONG]}]).rows
    assert (row["chosen"], row["rejected"]) == (call, "5")


def test_what_a_config_leaves_out():
    row = {"messages": [USER | {"country": "X"}, REPLY | {"toxic": False, "weight": 0}], "images": ["a.png"]}
    with pytest.raises(UserError, match=r"the column 'images' is not supported.*data.ignore leaves it out"):
        rows_for("sft", [row])
    with pytest.raises(UserError, match=r"the key 'country' is not known.*data.ignore: \[country\]"):
        rows_for("sft", [row], ignore=["images"])
    assert rows_for("sft", [row], ignore=["images", "country", "toxic", "weight"]).rows == [CHAT]


def test_columns_that_no_loop_reads_are_said():
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2.0, "id": 3, "note": None}
    assert rows_for("dpo", [pair]).read == [
        "1 row as prompt + chosen + rejected from rows (columns not used: margin, id)"
    ]
    assert rows_for("grpo", [{"prompt": "q", "level": 1}]).read == [
        "1 row as prompts from rows"
    ]  # a reward function may


def test_one_bad_answer_among_many_is_left_out_and_counted():
    got = rows_for("sft", [CHAT] * 30 + [CHAT | {"label": False}])
    assert len(got) == 30 and got.bad[0].startswith("rows, row 31: 'label' is False: a bad answer")


@pytest.mark.parametrize(
    ("method", "good", "bad"),
    [("sft", FINE, TWICE), ("dpo", {"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "", "rejected": "c"}),
     ("reward", {"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b"}),
     ("outcome", {"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "b", "label": 3}),
     ("grpo", {"prompt": "a"}, {"prompt": ""}), ("ppo", {"prompt": "a"}, {"x": 1}), ("best-of-k", {"prompt": "a"}, {"x": 1})],
)  # fmt: skip
def test_the_command_that_is_advised_does_it(tmp_path, monkeypatch, method, good, bad):
    monkeypatch.chdir(tmp_path)
    name = write_jsonl(tmp_path / "my rows.jsonl", [good, bad])
    with pytest.raises(UserError) as stopped:
        load_rows(Data(name=name, bad_rows="error"), method)
    assert ", row 2: " in str(stopped.value)
    command = shlex.split(str(stopped.value).partition(", or run python -m posttrain.")[2])
    assert command[0] == "curate"
    curate.main(command[1:])
    assert len(load_rows(Data(name="clean.jsonl", bad_rows="error"), method)) == 1
