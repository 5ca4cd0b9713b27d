"""Where a reply begins and ends in what a template writes: the kinds of templates that real models bring."""

import itertools

import pytest
from chat_templates import CLOSED, FIELD, FORGETS, OPENS, SWITCHED, TOOLS
from kit import CHATML, GEMMA, LLAMA3, bytelevel_tokenizer

from posttrain.tokens import template

ASKED = [{"role": "user", "content": "2 + 2"}]
THOUGHT = "<think>\nadd them again\n</think>\n\n4"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "two"}}}


def tokenizer_of(jinja, *, special=()):
    tokenizer = bytelevel_tokenizer(jinja)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def learned(tokenizer, reply, messages=ASKED, **shown):
    """What is learned of the reply, decoded; the prompt is exactly apply_chat_template's."""
    (row,) = template.conversation_examples(tokenizer, [*messages, reply], last_only=True, **shown)
    prompt = row.input_ids[: row.completion_mask.index(True)]
    kwargs = shown.get("template_kwargs") or {}
    assert prompt == list(
        tokenizer.apply_chat_template(
            messages, tools=shown.get("tools"), add_generation_prompt=True, return_dict=False, **kwargs
        )
    )
    assert not any("\ue000" <= c <= "\uf8ff" for c in tokenizer.decode(row.input_ids))
    return tokenizer.decode(row.input_ids[len(prompt) :])


def says(content, **more):
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize("special", [(), ("<think>", "</think>")], ids=["think is text", "think is a token"])
@pytest.mark.parametrize(
    ("jinja", "thoughtful", "plain"),
    [
        (OPENS, "add them again\n</think>\n\n4<|im_end|>", "\n</think>\n\n4<|im_end|>"),
        (CLOSED, "<think>\nadd them again\n</think>\n\n4<|im_end|>", "4<|im_end|>"),
        (FORGETS, "add them again\n</think>\n\n4<|im_end|>", None),
        (SWITCHED, "<think>\nadd them again\n</think>\n\n4<|im_end|>", "<think>\n\n</think>\n\n4<|im_end|>"),
    ],
    ids=["opens", "closed", "forgets", "switched"],
)
def test_a_reply_is_learned_from_its_first_character_whatever_the_template_opens_or_closes(
    jinja, special, thoughtful, plain
):
    tokenizer = tokenizer_of(jinja, special=special)
    assert learned(tokenizer, says(THOUGHT)) == thoughtful
    assert learned(tokenizer, says("4", reasoning_content="add them again")) == thoughtful
    if plain is not None:
        assert learned(tokenizer, says("4")) == plain
        return
    with pytest.raises(
        ValueError, match=r"opens <think> in its generation prompt and the reply never closes it.*Give the"
    ) as error:
        learned(tokenizer, says("4"))
    assert "data.chat_template_kwargs: {enable_thinking: false}" in str(error.value)


@pytest.mark.parametrize("thoughts", ["a", "add", "add them up, carefully", "a\n\nb", "4", "<|im_start|>"])
def test_no_length_of_the_thoughts_moves_the_cut(thoughts):
    """The prompt ends in an empty block of 19 characters: what is cut must not depend on it."""
    whole = f"<think>\n{thoughts}\n</think>\n\n2<|im_end|>"
    assert learned(tokenizer_of(CLOSED), says(f"<think>\n{thoughts}\n</think>\n\n2")) == whole
    assert learned(tokenizer_of(CLOSED), says(f"<think>{thoughts}</think>2")) == whole
    assert learned(tokenizer_of(CLOSED), says("<think>\n\n</think>\n\n2")) == "2<|im_end|>"  # stands in the prompt


def test_thinking_switched_off():
    off = {"template_kwargs": {"enable_thinking": False}}
    assert learned(tokenizer_of(SWITCHED), says("4"), **off) == "4<|im_end|>"
    # in the middle of a conversation as well, and the earlier answer is context as the template writes it
    chat = [*ASKED, says("4"), {"role": "user", "content": "and 3?"}]
    assert learned(tokenizer_of(SWITCHED), says("7"), chat, **off) == "7<|im_end|>"


def test_a_block_that_would_be_opened_twice_is_opened_once():
    assert learned(tokenizer_of(FIELD), says(THOUGHT)) == "add them again\n</think>\n\n4<|im_end|>"


def test_what_a_user_writes_of_thoughts_opens_nothing():
    asked = [{"role": "user", "content": "What does <think> mean?"}]
    assert learned(tokenizer_of(CHATML), says("A tag."), asked) == "A tag.<|im_end|>"


def test_special_tokens_are_tokens_where_an_assistant_says_them_and_text_where_a_user_types_them():
    tokenizer = tokenizer_of(CHATML, special=["<think>", "</think>"])
    think = tokenizer.convert_tokens_to_ids("<think>")
    asked = [{"role": "user", "content": "say <think>"}]
    prompt, reply = (
        template.prompt_ids(tokenizer, asked),
        template.completion_ids(tokenizer, asked, "<think>a</think>b"),
    )
    assert think not in prompt and tokenizer.decode(prompt).startswith("<|im_start|>user\nsay <think><|im_end|>")
    assert reply[0] == think and reply.count(think) == 1
    assert tokenizer.decode(reply) == "<think>a</think>b<|im_end|>"


def test_a_template_that_drops_thoughts_of_their_own_field_is_refused():
    with pytest.raises(ValueError, match=r"drops reasoning of the reply \('add them'\): it would not be learned"):
        learned(tokenizer_of(CHATML), says("4", reasoning_content="add them"))


# ---------------------------------------------------------------- tools


def test_a_tool_call_and_what_the_tool_gave():
    tokenizer = tokenizer_of(TOOLS)
    called = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": "two"}}</tool_call><|im_end|>'
    assert learned(tokenizer, says("", tool_calls=[CALL]), tools=[TOOL]) == called
    chat = [*ASKED, says("", tool_calls=[CALL]), {"role": "tool", "content": "4"}]
    assert learned(tokenizer, says("It is 4."), chat, tools=[TOOL]) == "It is 4.<|im_end|>"
    (row,) = template.conversation_examples(tokenizer, [*chat, says("It is 4.")], tools=[TOOL])
    supervised = [t for t, m in zip(row.input_ids, row.completion_mask, strict=True) if m]
    assert tokenizer.decode(supervised) == f"{called}It is 4.<|im_end|>"
    assert '"name": "add", "parameters"' in tokenizer.decode(row.input_ids)


def test_a_template_that_does_not_know_tools_is_refused_by_name():
    tokenizer = tokenizer_of(CHATML)
    tokenizer.name_or_path = "my/model"
    with pytest.raises(ValueError, match="the chat template of my/model does not show tools to the model"):
        learned(tokenizer, says("4"), tools=[TOOL])
    with pytest.raises(ValueError, match=r"drops a tool call of the reply \('add'\)"):
        learned(tokenizer, says("", tool_calls=[CALL]))


def test_a_turn_that_calls_a_tool_may_end_in_a_token_of_its_own():
    """gpt-oss: <|call|> after a call, <|return|> after an answer. A call without any end gets the turn's."""
    end = "<|im_end|>\n{% endfor %}{% if add"
    jinja = TOOLS.replace(end, "{% if m.get('tool_calls') %}END{% else %}<|im_end|>\n{% endif %}{% endfor %}{% if add")
    assert jinja != TOOLS
    call = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": "two"}}</tool_call>'
    own = tokenizer_of(jinja.replace("END", "<|eot_id|>"))
    assert learned(own, says("", tool_calls=[CALL]), tools=[TOOL]) == f"{call}<|eot_id|>"
    none = tokenizer_of(jinja.replace("END", ""))
    assert learned(none, says("", tool_calls=[CALL]), tools=[TOOL]) == f"{call}<|im_end|>"


# ---------------------------------------------------------------- the invariant, over everything

KINDS = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "opens": OPENS, "closed": CLOSED, "switched": SWITCHED}
REPLIES = [
    "4",
    " 4",
    "4\n",
    "a b",
    "<",
    "<think",
    "think>",
    "assistant",
    "user\n4",
    "\ue000 and \ue001",
    "ü 你好 🙂",
    "4" * 300,
]


@pytest.mark.parametrize(("kind", "reply"), list(itertools.product(KINDS, REPLIES)))
def test_what_is_learned_holds_the_reply_and_the_row_is_prompt_and_completion(kind, reply):
    tokenizer = bytelevel_tokenizer(KINDS[kind], bos="<s>")
    for question in ("Hi.", "say <|im_end|>", "\ue000", reply):
        asked = [{"role": "user", "content": question}]
        prompt, ids = template.prompt_ids(tokenizer, asked), template.completion_ids(tokenizer, asked, reply)
        (row,) = template.conversation_examples(tokenizer, [*asked, says(reply)])
        assert row.input_ids == prompt + ids and reply.strip() in tokenizer.decode(ids)
        assert ids[-1] in template.stop_ids(tokenizer)


# ---------------------------------------------------------------- stopping


def test_what_ends_an_answer_is_what_template_tokenizer_and_model_name():
    tokenizer = bytelevel_tokenizer(CHATML, eos="<|endoftext|>")
    ids = dict(
        zip(names := ["<|im_end|>", "<|endoftext|>", "<|eot_id|>"], tokenizer.convert_tokens_to_ids(names), strict=True)
    )
    assert template.stop_ids(tokenizer) == sorted([ids["<|im_end|>"], ids["<|endoftext|>"]])
    template.prepare_tokenizer(tokenizer, [ids["<|eot_id|>"], 40])  # 40 is an ordinary letter: a default, not an end
    assert template.stop_ids(tokenizer) == sorted(ids.values())


def test_every_end_in_a_row_is_learned():
    """Cohere: <|END_RESPONSE|><|END_OF_TURN_TOKEN|>."""
    jinja = CHATML.replace("<|im_end|>\n", "<|eot_id|><|im_end|>\n")
    assert learned(bytelevel_tokenizer(jinja), says("4")) == "4<|eot_id|><|im_end|>"
