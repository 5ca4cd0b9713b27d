"""OpenAI's JSON, from tokens that a test makes up."""

import json

from kit import bytelevel_tokenizer

from posttrain.serving.engine import Token
from posttrain.serving.growing import Written
from posttrain.serving.replies import Answer, Shape, event, usage

TOKENIZER = bytelevel_tokenizer()


def tokens(text, end="stop"):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    said = [Token(0, i, -0.5 - place, [(i, -0.5 - place), (7, -9.0)], None) for place, i in enumerate(ids)]
    return [*said, Token(0, TOKENIZER.eos_token_id, -0.25, [], "stop")] if end == "stop" else [*said[:-1], said[-1]._replace(end=end)]  # fmt: skip


def answer(text, end="stop", stop=()):
    made = Answer(Written(TOKENIZER, list(stop)))
    pieces = [made.take(token) for token in tokens(text, end)]
    assert "".join(pieces) == made.text
    return made


def shape(**changes):
    return Shape(
        **{"chat": True, "model": "m", "tokenizer": TOKENIZER, "logprobs": True, "top": 2, "ids": True} | changes
    )


def test_a_chat():
    one = answer("Hi!")
    whole = shape().whole([one], [[1, 2, 3]])
    choice = whole["choices"][0]
    assert (whole["object"], whole["model"], whole["prompt_token_ids"]) == ("chat.completion", "m", [1, 2, 3])
    assert choice["message"] == {"role": "assistant", "content": "Hi!"} and choice["finish_reason"] == "stop"
    assert choice["token_ids"][-1] == TOKENIZER.eos_token_id
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": len(one.ids), "total_tokens": 3 + len(one.ids)}
    first, last = choice["logprobs"]["content"][0], choice["logprobs"]["content"][-1]
    assert (first["token"], first["logprob"], first["bytes"]) == ("H", -0.5, [72])
    assert len(first["top_logprobs"]) == 2 and (last["logprob"], last["top_logprobs"]) == (-0.25, [])
    plain = shape(logprobs=False, ids=False).whole([one], [[1]])
    assert plain["choices"][0]["logprobs"] is None and "token_ids" not in plain["choices"][0] and "prompt_token_ids" not in plain  # fmt: skip


def test_completions_prompt_by_prompt():
    whole = shape(chat=False).whole([answer("a"), answer("b", "length")], [[1], [2, 3]])
    assert [c["text"] for c in whole["choices"]] == ["a", "b"] and whole["object"] == "text_completion"
    assert [c["prompt_token_ids"] for c in whole["choices"]] == [[1], [2, 3]]
    assert [c["finish_reason"] for c in whole["choices"]] == ["stop", "length"]
    said = whole["choices"][0]["logprobs"]
    assert said["tokens"] == ["a", "<|im_end|>"] and said["token_logprobs"] == [-0.5, -0.25]
    assert said["top_logprobs"][0]["a"] == -0.5
    assert shape(chat=False, top=0).whole([answer("a")], [[1]])["choices"][0]["logprobs"]["top_logprobs"] is None


def test_a_byte_of_a_letter_has_no_text_of_its_own():
    first = shape().whole([answer("é")], [[1]])["choices"][0]["logprobs"]["content"][0]
    assert first["token"] == "\ufffd" and first["bytes"] is None


def test_a_stop_string_ends_it():
    one = answer("Hi there", "length", stop=["the"])
    assert (one.text, one.end) == ("Hi ", "stop")


def test_events():
    made = shape()
    assert json.loads(made.piece(0, "", [], None, first=True)[6:])["choices"][0]["delta"] == {
        "role": "assistant",
        "content": "",
    }
    said = json.loads(made.piece(1, "Hi", tokens("Hi")[:1], None)[6:])
    assert said["object"] == "chat.completion.chunk" and said["choices"][0]["delta"] == {"content": "Hi"}
    assert said["choices"][0]["index"] == 1 and len(said["choices"][0]["token_ids"]) == 1
    assert event({"a": "\n"}).count("\n") == 2  # one event, whatever the text
    assert usage([answer("a")], [[1, 2]])["total_tokens"] == 4  # two read, "a" and the end
