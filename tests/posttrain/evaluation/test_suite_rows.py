"""Which rows a suite asks or reads."""

import pytest
from kit import write_jsonl

from posttrain.config.suites import Accuracy, Perplexity
from posttrain.errors import UserError
from posttrain.evaluation.suite_rows import prompts_of, split_of, texts_of


def test_the_split_is_test_where_there_are_splits(tmp_path):
    file = write_jsonl(tmp_path / "p.jsonl", [{"text": "One."}])
    splits = [split_of(name, None) for name in ("tiny-math", file, "openai/gsm8k")]
    assert splits == ["test", "train", "test"] and split_of("tiny-math", "train") == "train"


def test_prompts_and_texts(tmp_path):
    """The first rows only, with the columns that a reward asks for; a text as it is, a conversation as messages."""
    problems = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"{n} + 1?", "answer": n + 1} for n in range(3)])
    found = prompts_of(Accuracy(data=problems, max_rows=2, system_prompt="Add."), problems)
    assert [row["asked"] for row in found.rows] == ["0 + 1?", "1 + 1?"] and found.rows[1]["columns"]["answer"] == 2
    assert found.rows[0]["prompt"][0] == {"role": "system", "content": "Add."}
    texts = write_jsonl(tmp_path / "t.jsonl", [{"text": "One."}, {"text": "Two."}])
    assert [row["text"] for row in texts_of(Perplexity(data=texts)).rows] == ["One.", "Two."]
    chats = write_jsonl(tmp_path / "c.jsonl", [{"prompt": "Hi", "completion": "Hello"}])
    assert [m["content"] for m in texts_of(Perplexity(data=chats)).rows[0]["messages"]] == ["Hi", "Hello"]
    with pytest.raises(UserError, match=r"nowhere.jsonl"):
        texts_of(Perplexity(data=str(tmp_path / "nowhere.jsonl")))
