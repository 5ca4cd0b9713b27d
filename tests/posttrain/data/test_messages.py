"""Messages as people have them: tools, thoughts, parts, muted turns; every other key is refused by its name."""

import json

import pytest

from posttrain.data.messages import BadRow, as_messages, messages_of, tools_of

USER, REPLY = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
CALLED, GAVE = {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "4"}


def read(*messages):
    return messages_of(list(messages), "messages")


def test_thoughts_go_on_to_the_template_under_their_own_name():
    for key in ("reasoning_content", "thinking"):
        assert read(USER, REPLY | {key: "add"}) == [USER, REPLY | {key: "add"}]
    with pytest.raises(BadRow, match="message 1: 'thinking' belongs to an assistant, not to a user message"):
        read(USER | {"thinking": "hm"}, REPLY)


@pytest.mark.parametrize("key", ["train", "weight", "loss_weight"])
def test_a_turn_that_is_not_to_be_learned(key):
    assert read(USER, REPLY | {key: 0}) == [USER, REPLY | {"train": False}]
    assert read(USER, REPLY | {key: False})[1]["train"] is False
    assert read(USER, REPLY | {key: 1}) == read(USER, REPLY | {key: True}) == [USER, REPLY]
    assert read(USER | {key: 0}, REPLY) == [USER, REPLY]
    with pytest.raises(BadRow, match=f"message 2: '{key}' must be 0 or 1 .false or true., got 0.5"):
        read(USER, REPLY | {key: 0.5})
    with pytest.raises(BadRow, match=f"message 2: '{key}' must be 0 or 1 .false or true., got 'no'"):
        read(USER, REPLY | {key: "no"})


def test_only_an_assistant_is_learned():
    with pytest.raises(BadRow, match=r"message 1: 'loss_weight' is 1.0, but only an assistant's turns are learned"):
        read(USER | {"loss_weight": 1.0}, REPLY)
    assert read(USER | {"weight": 1}, REPLY) == [USER, REPLY]  # OpenAI writes it everywhere


@pytest.mark.parametrize("key", ["function_call", "images", "audio", "emotion", "Weight", "reasoning"])
def test_any_other_key_is_refused_by_its_name(key):
    with pytest.raises(BadRow) as error:
        read(USER, REPLY | {key: "x"})
    assert f"'messages', message 2: the key '{key}' is not known" in str(error.value)
    assert f"data.ignore: [{key}]" in str(error.value)
    assert read(USER, REPLY | {key: None}) == read(USER, REPLY | {key: []}) == [USER, REPLY]  # Arrow fills rows up


def test_parts_of_text_are_joined_and_others_refused():
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "value": "2"}, "?"]
    assert read(USER | {"content": parts}, REPLY) == [USER, REPLY]
    for part, said in (({"type": "image_url", "image_url": {}}, "a part of type 'image_url'"), (3, "int")):
        with pytest.raises(BadRow, match=f"message 1: content holds {said}: only text can be trained on here"):
            read(USER | {"content": [part]}, REPLY)


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        CALL["function"],
        {"name": "add", "arguments": '{"a": 2, "b": 2}'},
        {"type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}},
        {"function": {"name": "add", "arguments": {"a": 2, "b": 2, "c": None}}},
    ],
)
def test_every_way_to_write_a_tool_call(call):
    assert read(USER, REPLY | {"content": None, "tool_calls": [call]}, GAVE, REPLY) == [USER, CALLED, GAVE, REPLY]
    assert read(USER, REPLY | {"content": "", "tool_calls": json.dumps([call])}, GAVE, REPLY)[1] == CALLED


def test_the_ids_of_calls_are_kept():
    (_, call, gave) = read(
        USER, CALLED | {"tool_calls": [CALL | {"id": "c1"}]}, GAVE | {"tool_call_id": "c1", "name": "add"}
    )
    assert call["tool_calls"][0]["id"] == "c1" and gave == GAVE | {"tool_call_id": "c1", "name": "add"}


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([USER, GAVE], "message 2: roles out of order: a tool message must answer an assistant's tool call"),
        ([USER, REPLY, GAVE], "message 3: roles out of order: a tool message must answer an assistant's tool call"),
        ([USER, CALLED, CALLED], "message 3: roles out of order: an assistant message must answer a user's"),
        ([USER, REPLY | {"tool_calls": [{"name": "add", "arguments": "2, 2"}]}], "message 2: a tool call must be {name, arg"),
        ([USER, REPLY | {"tool_calls": [{"arguments": {}}]}], "message 2: a tool call must be {name, arguments"),
        ([USER | {"tool_calls": [CALL]}, REPLY], "message 1: 'tool_calls' belongs to an assistant, not to a user message"),
        ([USER, {"role": "assistant", "content": None}], "message 2: content must be text, got NoneType"),
        ([USER, {"role": "assistant", "content": " ", "thinking": "hm"}], "message 2: an empty assistant turn teaches nothing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(messages, problem):
    with pytest.raises(BadRow) as error:
        read(*messages)
    assert f"'messages', {problem}" in str(error.value)


def test_tools_in_json_or_not_and_none_at_all():
    tool = {"type": "function", "function": {"name": "add", "description": None}}
    bare = {"type": "function", "function": {"name": "add"}}
    assert tools_of([tool]) == tools_of(json.dumps([tool])) == [bare]
    assert tools_of([]) == tools_of("[]") == tools_of(None) == tools_of("") == []
    for wrong in ("add", {"name": "add"}, [1]):
        with pytest.raises(BadRow, match="'tools' must be a list of function descriptions"):
            tools_of(wrong)


def test_sharegpt_with_tools():
    turns = [
        {"from": "human", "value": "2 + 2?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}'},
        {"from": "observation", "value": "4"},
        {"from": "gpt", "value": "4", "weight": 0},
    ]
    assert messages_of(as_messages(turns), "conversations") == [USER, CALLED, GAVE, REPLY | {"train": False}]
