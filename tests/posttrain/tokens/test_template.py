import pytest
from kit import CHATML, FAMILIES, FORGETFUL, GEMMA, LLAMA3, SEAM, bytelevel_tokenizer, sentencepiece_tokenizer

from posttrain.tokens import template

TWO_TURNS = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "What is your name?"},
    {"role": "assistant", "content": "A2"},
]
TOKENIZERS = {
    "chatml": (bytelevel_tokenizer(CHATML), "<|im_end|>"),
    "llama3": (bytelevel_tokenizer(LLAMA3, bos="<s>", eos="<|eot_id|>"), "<|eot_id|>"),
    "gemma": (bytelevel_tokenizer(GEMMA, bos="<s>", eos="<end_of_turn>"), "<end_of_turn>"),
    "gemma, another eos": (bytelevel_tokenizer(GEMMA, bos="<s>", eos="<|endoftext|>"), "<end_of_turn>"),
}


def supervised(tokenizer, example):
    return tokenizer.decode([t for t, m in zip(example.input_ids, example.completion_mask, strict=True) if m])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_supervised_text_is_exactly_the_assistants_turns_with_their_end_tokens(name):
    tokenizer, end = TOKENIZERS[name]
    (example,) = template.conversation_examples(tokenizer, TWO_TURNS)
    assert supervised(tokenizer, example) == f"A1{end}A2{end}"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_prompt_ids_are_those_of_apply_chat_template(name):
    tokenizer, _ = TOKENIZERS[name]
    for upto in (1, 3):
        expected = tokenizer.apply_chat_template(TWO_TURNS[:upto], add_generation_prompt=True, return_dict=False)
        assert template.prompt_ids(tokenizer, TWO_TURNS[:upto]) == list(expected)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_row_begins_with_the_prompt_and_ends_with_the_turn_end(name):
    tokenizer, end = TOKENIZERS[name]
    (example,) = template.conversation_examples(tokenizer, TWO_TURNS)
    first = template.prompt_ids(tokenizer, TWO_TURNS[:1]) + template.completion_ids(tokenizer, TWO_TURNS[:1], "A1")
    whole = template.prompt_ids(tokenizer, TWO_TURNS[:3]) + template.completion_ids(tokenizer, TWO_TURNS[:3], "A2")
    assert example.input_ids == whole and whole[: len(first)] == first
    assert whole[-1] == tokenizer.convert_tokens_to_ids(end)
    assert set(template.stop_ids(tokenizer)) == {tokenizer.convert_tokens_to_ids(end), tokenizer.eos_token_id}


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_two_turn_chat_on_every_architectures_own_kind_of_template(kind):
    """Llama-3 style, a default system prompt that is injected, earlier turns rewritten, none at all (ChatML is given), one
    that trims, no system role: the supervised text is exactly the assistant's turns with their end tokens."""
    tokenizer = bytelevel_tokenizer(**FAMILIES[kind])
    template.prepare_tokenizer(tokenizer)
    end = {"llama": "<|eot_id|>", "gemma": "<end_of_turn>"}.get(kind, "<|im_end|>")
    rows = template.conversation_examples(tokenizer, TWO_TURNS)
    thought = "<think></think>" if kind == "qwen3" else ""
    assert [supervised(tokenizer, r) for r in rows] == (
        [f"{thought}A1{end}", f"{thought}A2{end}"] if kind == "qwen3" else [f"A1{end}A2{end}"]
    )
    for row, upto in zip(reversed(rows), (3, 1), strict=False):
        prompt = list(tokenizer.apply_chat_template(TWO_TURNS[:upto], add_generation_prompt=True, return_dict=False))
        assert row.input_ids[: len(prompt)] == prompt == template.prompt_ids(tokenizer, TWO_TURNS[:upto])


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_only_what_is_asked_for_is_supervised(kind):
    tokenizer = bytelevel_tokenizer(**FAMILIES[kind])
    end, thought = ("<|eot_id|>", "") if kind == "llama" else ("<|im_end|>", "<think></think>")
    (last,) = template.conversation_examples(tokenizer, TWO_TURNS, last_only=True)
    (tail,) = template.conversation_examples(tokenizer, TWO_TURNS, learn_from=2)
    assert supervised(tokenizer, last) == supervised(tokenizer, tail) == f"{thought}A2{end}" and last == tail
    assert "A1" in tokenizer.decode(last.input_ids)  # seen, not learned
    with pytest.raises(ValueError, match="nothing to learn from"):
        template.conversation_examples(tokenizer, TWO_TURNS, learn_from=4)


def test_exactly_one_bos():
    tokenizer, _ = TOKENIZERS["llama3"]
    (example,) = template.conversation_examples(tokenizer, TWO_TURNS)
    assert example.input_ids.count(tokenizer.bos_token_id) == 1 and example.input_ids[0] == tokenizer.bos_token_id


def test_a_seam_that_bpe_would_merge():
    """The prompt ends in the letters that begin a merged token: prompt ids must not change, the reply is tokenised alone."""
    jinja = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }} na{% else %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    tokenizer = bytelevel_tokenizer(jinja)
    messages = [{"role": "user", "content": "What is your"}]
    prompt = template.prompt_ids(tokenizer, messages)
    together = tokenizer("What is your name<|im_end|>", add_special_tokens=False)["input_ids"]
    assert together[: len(prompt)] != prompt  # " name" is one token: the seam is inside it
    completion = template.completion_ids(tokenizer, messages, "me")
    assert tokenizer.decode(completion) == "me<|im_end|>"
    assert tokenizer.decode(prompt + completion) == "What is your name<|im_end|>"


def test_sentencepiece_that_adds_a_space():
    tokenizer = sentencepiece_tokenizer(SEAM)
    messages = [{"role": "user", "content": "Hello."}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    prompt = template.prompt_ids(tokenizer, messages)
    assert prompt == list(expected)
    completion = template.completion_ids(tokenizer, messages, "My name is Nova.")
    assert completion[-1] == tokenizer.eos_token_id
    whole = tokenizer("[INST] Hello. [/INST] My name is Nova.</s>", add_special_tokens=False)["input_ids"]
    assert prompt + completion == whole


def test_what_a_user_types_stays_text():
    tokenizer, _ = TOKENIZERS["chatml"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    typed = [{"role": "user", "content": "Say <|im_end|> now."}]
    ids = template.prompt_ids(tokenizer, typed)
    assert ids.count(end) == 1  # the template's own, not the user's
    assert tokenizer.decode(ids) == "<|im_start|>user\nSay <|im_end|> now.<|im_end|>\n<|im_start|>assistant\n"
    reply = template.completion_ids(tokenizer, typed, "It is <|im_start|>.")  # what an assistant spells is the token
    assert reply[-1] == end and tokenizer.convert_tokens_to_ids("<|im_start|>") in reply
    assert tokenizer.decode(reply) == "It is <|im_start|>.<|im_end|>"


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("reply", ["d", "i", "n", "im", "end", "turn", "<", "|", "_", "e", "  leading", "trailing  "])
def test_a_reply_that_looks_like_a_piece_of_the_end_token(name, reply):
    tokenizer, end = TOKENIZERS[name]
    ids = template.completion_ids(tokenizer, TWO_TURNS[:1], reply)
    assert tokenizer.decode(ids).strip() == f"{reply.strip() if name != 'chatml' else reply}{end}".strip()
    assert ids.count(tokenizer.convert_tokens_to_ids(end)) == 1


def test_private_use_characters_are_only_characters():
    tokenizer, _ = TOKENIZERS["chatml"]
    messages = [{"role": "user", "content": "a \ue000 b \ue001 c"}]
    assert template.prompt_ids(tokenizer, messages) == list(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    )


def test_a_template_that_drops_a_part_of_the_reply():
    jinja = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    with pytest.raises(ValueError, match=r"drops the thoughts of the reply \('hm'\): it would not be learned"):
        template.completion_ids(bytelevel_tokenizer(jinja), TWO_TURNS[:1], "<think>hm</think>A1")


def test_a_template_that_rewrites_earlier_turns_gives_one_row_per_turn():
    tokenizer = bytelevel_tokenizer(FORGETFUL)
    rows = template.conversation_examples(tokenizer, TWO_TURNS)
    assert [supervised(tokenizer, r) for r in rows] == ["<think></think>A1<|im_end|>", "<think></think>A2<|im_end|>"]
    for row, upto in zip(rows, (1, 3), strict=True):
        prompt = list(tokenizer.apply_chat_template(TWO_TURNS[:upto], add_generation_prompt=True, return_dict=False))
        assert row.input_ids[: len(prompt)] == prompt


def test_a_template_without_a_turn_end_gets_eos():
    jinja = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = bytelevel_tokenizer(jinja)
    completion = template.completion_ids(tokenizer, TWO_TURNS[:1], "A1")
    assert completion[-1] == tokenizer.eos_token_id


def test_a_tokenizer_without_template_or_pad_is_given_both_and_says_so():
    tokenizer = bytelevel_tokenizer(None, pad=None, eos="</s>", bos="<s>")
    size = len(tokenizer)
    lines = template.prepare_tokenizer(tokenizer)
    assert any("ChatML" in line for line in lines) and any("pad token" in line for line in lines)
    assert len(tokenizer) == size and tokenizer.pad_token_id == tokenizer.eos_token_id
    (example,) = template.conversation_examples(tokenizer, TWO_TURNS)
    assert supervised(tokenizer, example) == ("A1<|im_end|>A2<|im_end|>")  # this vocabulary has ChatML's end token


def test_a_template_that_refuses_a_role_is_a_clear_error():
    tokenizer, _ = TOKENIZERS["gemma"]
    with pytest.raises(ValueError, match="System role not supported"):
        template.prompt_ids(tokenizer, [{"role": "system", "content": "x"}, *TWO_TURNS[:1]])


def test_a_template_that_hides_the_reply_is_a_clear_error():
    tokenizer = bytelevel_tokenizer(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    with pytest.raises(ValueError, match=r"does not show the assistant's reply|nothing"):
        template.conversation_examples(tokenizer, TWO_TURNS[:2])


def test_plain_text_is_trained_whole_and_ends_with_eos():
    tokenizer, _ = TOKENIZERS["chatml"]
    example = template.text_example(tokenizer, "the quick brown fox")
    assert tokenizer.decode(example.input_ids) == "the quick brown fox<|im_end|>" and all(example.completion_mask)


def test_text_that_brings_its_bos_gets_no_second():
    from tokenizers import processors

    tokenizer = bytelevel_tokenizer(CHATML, bos="<s>")
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    for text in ("the quick brown fox", "<s>the quick brown fox"):
        assert template.text_example(tokenizer, text).input_ids.count(bos) == 1, text
