"""Every format people have, on real-looking rows; and rows that are wrong, each told with its row in one sentence."""

import json

import pytest
from kit import rows_for

from posttrain import ROOT
from posttrain.errors import UserError

DATA = ROOT / "tests/data"
SYSTEM = {"role": "system", "content": "Be kind."}
USER, REPLY = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}
MORE, AGAIN = {"role": "user", "content": "And you?"}, {"role": "assistant", "content": "I am fine."}


@pytest.mark.parametrize(
    ("row", "messages", "called"),
    [
        ({"messages": [USER, REPLY]}, [USER, REPLY], "conversations (messages)"),
        ({"messages": [SYSTEM, USER, REPLY, MORE, AGAIN]}, [SYSTEM, USER, REPLY, MORE, AGAIN], "conversations (messages)"),
        ({"prompt": "Hi.", "completion": "Hello."}, [USER, REPLY], "prompt + completion"),
        ({"prompt": [USER], "completion": [REPLY]}, [USER, REPLY], "prompt + completion"),
        ({"instruction": "Add.", "input": "1 2", "output": "3"},
         [{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}], "instructions (Alpaca)"),
        ({"instruction": "Hi.", "input": "", "output": "Hello."}, [USER, REPLY], "instructions (Alpaca)"),
        ({"instruction": "Hi.", "output": "Hello."}, [USER, REPLY], "instructions (Alpaca)"),
        ({"instruction": "Hi.", "input": None, "output": "Hello."}, [USER, REPLY], "instructions (Alpaca)"),
        ({"conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]},
         [SYSTEM, USER, REPLY], "ShareGPT conversations"),
        ({"conversations": [USER, REPLY]}, [USER, REPLY], "ShareGPT conversations"),
        ({"question": "How many?", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 1,024"},
         [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "48/2 = 24 clips.\n#### 1,024"}],
         "question + answer (GSM8K)"),
    ],
)  # fmt: skip
def test_sft(row, messages, called):
    got = rows_for("sft", [row])
    assert got.rows[0]["messages"] == messages and got.read == [f"1 row as {called} from rows"]


@pytest.mark.parametrize(
    ("method", "row", "prompt"),
    [
        ("dpo", {"system": "Be kind.", "question": "Hi.", "chosen": "Hello.", "rejected": "No."}, [SYSTEM, USER]),  # orca-dpo-pairs
        ("dpo", {"system": "Be kind.", "conversations": [{"from": "human", "value": "Hi."}], "chosen": "a", "rejected": "b"}, [SYSTEM, USER]),
        ("dpo", {"prompt": [SYSTEM, USER], "chosen": [USER, REPLY], "rejected": [USER, AGAIN]}, [SYSTEM, USER]),
        ("dpo", {"prompt": "\n\nHuman: Hi.\n\nAssistant:", "chosen": " Hello.", "rejected": " No."}, [USER]),  # TRL's older HH
        ("grpo", {"system": "Be kind.", "prompt": "Hi."}, [SYSTEM, USER]),
        ("sft", {"system": "Be kind.", "instruction": "Hi.", "output": "Hello."}, [SYSTEM, USER, REPLY]),
        ("sft", {"instruction": "And you?", "output": "I am fine.", "history": [["Hi.", "Hello."]]}, [USER, REPLY, MORE, AGAIN]),
        ("sft", {"system": "Own.", "messages": [SYSTEM, USER, REPLY]}, [SYSTEM, USER, REPLY]),
    ],
)  # fmt: skip
def test_nothing_that_the_model_would_have_seen_is_thrown_away(method, row, prompt):
    (got,) = rows_for(method, [row]).rows
    assert got.get("messages", got.get("prompt")) == prompt
    if "system" in row:  # the row's own system message comes before the config's
        (again,) = rows_for(method, [row], system_prompt="Config.").rows
        assert again.get("messages", again.get("prompt")) == prompt


def test_distillation_takes_answers_where_there_are_some_and_prompts_where_there_are_none():
    """With distill.on_policy: 1. What has an answer is read as loops.sft reads it, and a bad one is none."""
    (row,) = rows_for("distill", [{"prompt": "Hi.", "completion": "Hello."}]).rows
    assert row["messages"] == [USER, REPLY]
    for column in ("prompt", "question"):
        got = rows_for("distill", [{column: "Hi.", "level": 3}])
        assert got.rows[0]["prompt"] == [USER] and "messages" not in got.rows[0]
        assert got.read == [f"1 row as {column}s from rows (columns not used: level)"]
    with pytest.raises(UserError, match="'label' is 0: a bad answer"):
        rows_for("distill", [{"prompt": "Hi.", "completion": "No.", "label": 0}])


def test_calculator_marks_go_and_code_stays():
    code = "std::cout << 1; std::cin >> a; kernel<<<g, b>>>(x); a <<= 2\n#### 3"
    (row,) = rows_for("sft", [{"question": "?", "answer": code}]).rows
    assert row["messages"][1]["content"] == code
    (row,) = rows_for("sft", [{"question": "?", "answer": "48/2 = <<48/2=24>>24"}]).rows
    assert "<<" in row["messages"][1]["content"]  # without #### it is not GSM8K


def test_plain_text():
    assert rows_for("sft", [{"text": "abc"}]).rows == [{"text": "abc"}]


def test_only_the_completion_is_learned_from_a_prompt_that_holds_answers():
    (row,) = rows_for("sft", [{"prompt": [USER, REPLY, MORE], "completion": [AGAIN]}]).rows
    assert row == {"messages": [USER, REPLY, MORE, AGAIN], "learn_from": 3}
    (row,) = rows_for(
        "sft", [{"prompt": [USER, REPLY, MORE], "completion": "I am fine."}], system_prompt="Be kind."
    ).rows
    assert row == {"messages": [SYSTEM, USER, REPLY, MORE, AGAIN], "learn_from": 4}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi.", "chosen": "Hello.", "rejected": "Go away."}, [USER]),
        ({"prompt": "Hi.", "chosen": [REPLY], "rejected": "Go away."}, [USER]),
        ({"prompt": [SYSTEM, USER], "chosen": [REPLY], "rejected": [{"role": "assistant", "content": "Go away."}]}, [SYSTEM, USER]),
        # whole conversations beside the prompt, as UltraFeedback has them
        ({"prompt": "Hi.", "chosen": [USER, REPLY], "rejected": [USER, {"role": "assistant", "content": "Go away."}]}, [USER]),
        ({"question": "Hi.", "chosen": "Hello.", "rejected": "Go away."}, [USER]),
        # implicit prompts
        ({"chosen": [USER, REPLY], "rejected": [USER, {"role": "assistant", "content": "Go away."}]}, [USER]),
        ({"chosen": "\n\nHuman: Hi.\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi.\n\nAssistant: Go away."}, [USER]),
        # ShareGPT
        ({"conversations": [{"from": "human", "value": "Hi."}], "chosen": {"from": "gpt", "value": "Hello."},
          "rejected": {"from": "gpt", "value": "Go away."}}, [USER]),
        ({"conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi."}], "chosen": "Hello.",
          "rejected": "Go away."}, [SYSTEM, USER]),
    ],
)  # fmt: skip
def test_preferences(row, prompt):
    assert rows_for("dpo", [row]).rows == [{"prompt": prompt, "chosen": "Hello.", "rejected": "Go away."}]


def test_hh_with_several_turns_and_a_speaker_who_speaks_twice():
    before = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: And you?\n\nHuman: Well?\n\nAssistant:"
    (row,) = rows_for("dpo", [{"chosen": f"{before} I am fine.", "rejected": f"{before} None of your business."}]).rows
    assert row["prompt"] == [USER, REPLY, {"role": "user", "content": "And you?\n\nWell?"}]
    assert (row["chosen"], row["rejected"]) == ("I am fine.", "None of your business.")


def test_rl_prompts_keep_their_form_for_the_reward_function():
    (row,) = rows_for("grpo", [{"prompt": "Hi.", "answer": 3, "level": "easy"}]).rows
    assert row == {"prompt": [USER], "asked": "Hi.", "columns": {"answer": 3, "level": "easy"}}
    (row,) = rows_for("grpo", [{"prompt": [USER], "answer": 3}], system_prompt="Be kind.").rows
    assert row == {"prompt": [SYSTEM, USER], "asked": [USER], "columns": {"answer": 3}}
    (row,) = rows_for("grpo", [{"question": "How many?", "answer": "…\n#### 1,234"}]).rows
    assert row["prompt"][0]["content"] == "How many?" and row["columns"] == {
        "question": "How many?",
        "answer": "…\n#### 1,234",
    }


@pytest.mark.parametrize(
    ("name", "method", "called", "turns"),
    [
        ("sharegpt.json", "sft", "ShareGPT conversations", 5),
        ("alpaca.jsonl", "sft", "instructions (Alpaca)", 2),
        ("chats.jsonl", "sft", "conversations (messages)", 4),
        ("word_problems.jsonl", "sft", "question + answer (GSM8K)", 2),
        ("hh.jsonl", "dpo", "chosen + rejected conversations", 3),
        ("pairs.jsonl", "dpo", "prompt + chosen + rejected", 1),
        ("word_problems.jsonl", "grpo", "questions", 1),
    ],
)
def test_the_files_beside_this_test(name, method, called, turns):
    got = rows_for(method, name=str(DATA / name))
    unused = " (columns not used: id)" if name == "sharegpt.json" else ""
    assert got.read == [f"{len(got)} rows as {called} from {DATA / name}{unused}"] and len(got) >= 9
    assert len(got.rows[0].get("messages") or got.rows[0]["prompt"]) == turns


def said(text):
    return [USER, {"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("method", "row", "message"),
    [
        ("sft", {"messages": []}, "'messages' must be a list of messages"),
        ("sft", {"messages": None}, "'messages' must be a list of messages {role, content}, got NoneType"),
        ("sft", {"messages": [USER]}, "no assistant message: nothing to learn from"),
        ("sft", {"messages": said("  ")}, "empty assistant turn"),
        ("sft", {"messages": [USER, {"role": "robot", "content": "x"}]}, "message 2: expected"),
        ("sft", {"messages": said(3)}, "must be text, got int"),
        ("sft", {"messages": said([{"type": "image", "url": "x"}])}, "message 2: content holds a part of type 'image': only text"),
        ("sft", {"messages": said([])}, "message 2: content must be text, got list"),
        ("sft", {"messages": [REPLY, USER, REPLY]}, "message 1: roles out of order: an assistant message must answer"),
        ("sft", {"messages": [USER, MORE, REPLY]}, "message 2: roles out of order: two user messages in a row"),
        ("sft", {"messages": [USER, REPLY, AGAIN]}, "message 3: roles out of order"),
        ("sft", {"messages": [USER, REPLY, SYSTEM]}, "message 3: roles out of order: a system message"),
        ("sft", {"messages": [USER, REPLY | {"tool_calls": [{}]}]}, "a tool call must be {name, arguments: {…}}, got {}"),
        ("sft", {"messages": [USER, REPLY], "tools": "x"}, "'tools' must be a list of function descriptions"),
        ("sft", {"prompt": "x"}, "column 'messages' is missing; found prompt"),
        ("dpo", {"prompt": "x", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ("dpo", {"prompt": "x", "chosen": "", "rejected": "a"}, "'chosen' is empty"),
        ("dpo", {"prompt": "", "chosen": "b", "rejected": "a"}, "the prompt is empty"),
        ("dpo", {"prompt": "x", "chosen": said("a"), "rejected": said("b")}, "'prompt' is not what 'chosen' answers"),
        ("dpo", {"prompt": [USER, REPLY, MORE], "chosen": [MORE, AGAIN], "rejected": [MORE, REPLY]}, "'prompt' is not what"),
        ("sft", {"messages": said("half \ud83d")}, "holds half a character at position 5"),
        ("dpo", {"prompt": "x", "chosen": said("a"), "rejected": [MORE, AGAIN]}, "differ before their last answer"),
        ("dpo", {"prompt": "x", "chosen": [USER, REPLY, MORE], "rejected": said("b")}, "does not end with an assistant message"),
        ("dpo", {"prompt": "x", "chosen": 3, "rejected": "b"}, "'chosen' must be text, got int"),
        ("grpo", {"prompt": [USER, REPLY]}, "the prompt ends with an assistant message"),
        ("grpo", {"prompt": 7}, "the prompt must be text or a list of messages, got int"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(method, row, message):
    good = {
        "sft": {"messages": [USER, REPLY]},
        "dpo": {"prompt": "x", "chosen": "a", "rejected": "b"},
        "grpo": {"prompt": "x"},
    }[method]
    with pytest.raises(UserError) as error:
        rows_for(method, [good, row])
    assert "rows, row 2" in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "row", "message"),
    [
        ("sft", {"conversations": [{"from": "alien", "value": "x"}]}, "turn 1: expected {from, value} with from one of human"),
        ("sft", {"conversations": []}, "'conversations' must be a list"),
        ("dpo", {"chosen": "just text", "rejected": "other text"}, "without a prompt column must be a conversation"),
        ("dpo", {"a": 1, "b": 2}, "expected the columns prompt + chosen + rejected, conversations + chosen + rejected, question + chosen"),
        ("dpo", {"a": 1, "b": 2}, "found a, b"),
        ("grpo", {"messages": [USER]}, "expected the columns prompt or question; found messages"),
    ],
)  # fmt: skip
def test_a_first_row_that_is_no_known_format(method, row, message):
    with pytest.raises(UserError) as error:
        rows_for(method, [row])
    assert message in str(error.value) and "row 1" in str(error.value)


def test_text_in_arrow_is_the_same(tmp_path):
    """Parquet gives lists of structs, with the columns of all messages in each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"messages": [SYSTEM, USER, REPLY | {"name": "x"}]}, {"messages": [USER, REPLY]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    got = rows_for("sft", name=str(tmp_path / "rows.parquet"))
    assert [r["messages"] for r in got.rows] == [[SYSTEM, USER, REPLY | {"name": "x"}], [USER, REPLY]]
    assert json.dumps(got.rows)  # plain Python values
