"""Many conversations at once have the ids that each has turn by turn, or come back as None."""

import itertools
import random

import pytest
from chat_templates import CLOSED, FIELD, FORGETS, OPENS, SWITCHED, TOOLS
from kit import (
    CHATML,
    FAMILIES,
    FORGETFUL,
    GEMMA,
    INJECTS,
    LLAMA3,
    SEAM,
    TRIMS,
    bytelevel_tokenizer,
    sentencepiece_tokenizer,
)

from posttrain.tokens import one_pass, template
from posttrain.tokens.one_pass import OnePass

# No special token near the reply, and a space before it that a byte-level tokenizer would take into its first word.
BARE = "{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }}\nA:{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
# An end that only the last answer has.
LAST = CHATML.replace(
    "<|im_end|>\n{% endfor %}",
    "<|im_end|>\n{% if loop.last and m['role'] == 'assistant' %}<|eot_id|>{% endif %}{% endfor %}",
)
APPENDING = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "injects": INJECTS, "trims": TRIMS, "tools": TOOLS}
OTHERS = {
    "opens": OPENS,
    "closed": CLOSED,
    "forgets": FORGETS,
    "field": FIELD,
    "forgetful": FORGETFUL,
    "bare": BARE,
    "last": LAST,
    "switched": SWITCHED,
}
WORDS = ["4", " 4", "4\n", "a b", "<", "assistant", "user\n4", "\n\nyes", "ü 你好 🙂", "say <|im_end|>", "\ue000", "4" * 90, "  two  spaces ", "<think>", "</s>", "word " * 30, "🙂", "\t"]  # fmt: skip


def chats(count=60, seed=0):
    rng = random.Random(seed)
    out = []
    for _ in range(count):
        turns = [
            rng.choice(WORDS) if rng.random() < 0.7 else " ".join(rng.choices(WORDS, k=3))
            for _ in range(2 * rng.randint(1, 4))
        ]
        out.append(
            [{"role": r, "content": c} for r, c in zip(itertools.cycle(["user", "assistant"]), turns, strict=False)]
        )
    return out


def by_turn(tokenizer, conversation):
    try:
        return template.examples_of(tokenizer, conversation)
    except ValueError:
        return None


def tokenizer_of(kind):
    if kind == "sentencepiece":
        return sentencepiece_tokenizer(SEAM)
    tokenizer = bytelevel_tokenizer((APPENDING | OTHERS)[kind], bos="<s>")
    template.prepare_tokenizer(tokenizer)
    return tokenizer


@pytest.mark.parametrize("kind", [*APPENDING, *OTHERS, "sentencepiece"])
def test_the_rows_are_those_of_each_turn_by_itself(kind):
    tokenizer = tokenizer_of(kind)
    conversations = [template.to_learn(m, last_only=i % 3 == 0) for i, m in enumerate(chats())]
    found = OnePass(tokenizer)(conversations)
    for conversation, row in zip(conversations, found, strict=True):
        assert row is None or [row] == by_turn(tokenizer, conversation), conversation
    passed = sum(row is not None for row in found)
    assert passed >= 10 if kind in APPENDING else passed <= 60


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_rows_are_those_of_every_architectures_own_kind_of_template(kind):
    tokenizer = bytelevel_tokenizer(**FAMILIES[kind])
    template.prepare_tokenizer(tokenizer)
    conversations = [template.to_learn(m) for m in chats(30, seed=1)]
    for conversation, row in zip(conversations, OnePass(tokenizer)(conversations), strict=True):
        assert row is None or [row] == by_turn(tokenizer, conversation)


def say(*texts, **more):
    roles = itertools.cycle(["user", "assistant"])
    return [{"role": r, "content": t} | (more if r == "assistant" else {}) for r, t in zip(roles, texts, strict=False)]


PLAIN = [say("Hello.", "A1", "What is your name?", "A2"), say("Hi.", "Hello.")]


def test_a_template_that_appends_needs_no_turn_by_itself(monkeypatch):
    monkeypatch.setattr(template, "examples_of", None)
    tokenizer = bytelevel_tokenizer(CHATML)
    first, second = OnePass(tokenizer)([template.to_learn(m) for m in PLAIN])
    learned = [t for t, m in zip(first.input_ids, first.completion_mask, strict=True) if m]
    assert tokenizer.decode(learned) == "A1<|im_end|>A2<|im_end|>"
    assert tokenizer.decode(second.input_ids).endswith("assistant\nHello.<|im_end|>") and second.num_active == 4


@pytest.mark.parametrize(
    "messages",
    [
        say("say <|im_end|>", "no"),
        say("Hi.", "<think>\nwell\n</think>\n\nHello."),
        say("Hi.", "Hello.", reasoning_content="well"),
        say("Hi.", "Hello.", tool_calls=[]),
    ],
)
def test_typed_special_tokens_thoughts_and_tools_go_the_long_way(messages):
    assert OnePass(bytelevel_tokenizer(CHATML))([template.to_learn(messages)]) == [None]


def test_what_the_template_refuses_does_not_take_the_others_with_it():
    """Gemma's has no system role."""
    system = [{"role": "system", "content": "s"}, *PLAIN[1]]
    found = OnePass(bytelevel_tokenizer(GEMMA))([template.to_learn(m) for m in (PLAIN[0], system, PLAIN[1])])
    assert [row is None for row in found] == [False, True, False]


def test_arguments_of_the_template_are_each_rows_own():
    jinja = "{{ style or 'plain' }}\n" + CHATML
    tokenizer = bytelevel_tokenizer(jinja)
    shown = [{"template_kwargs": {"style": s}} for s in ("short", "long")]
    found = OnePass(tokenizer)([template.to_learn(PLAIN[1], shown=s) for s in (*shown, {})])
    assert [tokenizer.decode(row.input_ids).split("\n")[0] for row in found] == ["short", "long", "plain"]


def test_the_prompt_of_a_pair_is_rendered_once(monkeypatch):
    """Three prompts of four answers, each in the arguments of its own row; and four whole texts."""
    tokenizer, rendered = bytelevel_tokenizer(CHATML), []
    one, real = OnePass(tokenizer), one_pass.apply
    monkeypatch.setattr(one_pass, "apply", lambda *a: rendered.append((len(a[1]), a[2])) or real(*a))
    sides = [say("Hi.", "Hello."), say("Hi.", "Bye."), say("Who?", "I."), say("Hi.", "Hello.")]
    found = one([template.to_learn(m) for m in sides])
    assert rendered == [(3, True), (4, False)]
    assert found == [by_turn(tokenizer, template.to_learn(m))[0] for m in sides]


def test_a_seam_is_compared_with_the_prompts_own_ids_once(monkeypatch):
    """ "A:" + " yes": the space belongs to the reply's first word, and the row is still the prompt's ids and the rest."""
    tokenizer, asked = bytelevel_tokenizer(CHATML), []
    one = OnePass(tokenizer)
    encode = one._encode
    monkeypatch.setattr(one, "_encode", lambda texts: asked.append(len(texts)) or encode(texts))
    one([template.to_learn(say(f"Question {i}", "A", "more", "B")) for i in range(8)])
    assert asked == [8, 1] and list(one.seams) == ["<|im_start|>assistant\n"]


def test_a_seam_inside_a_token_is_found(monkeypatch):
    """A tokenizer that joins the prompt's newline with one that begins the reply."""
    tokenizer = bytelevel_tokenizer(CHATML)
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    assert newline is not None
    conversation = template.to_learn(say("Hi.", "\n\nyes"))
    row = OnePass(tokenizer)([conversation])[0]
    assert row is None or [row] == by_turn(tokenizer, conversation)


def test_a_tokenizer_without_offsets_goes_the_long_way():
    class Slow:
        is_fast, chat_template, all_special_ids, all_special_tokens, added_tokens_decoder = False, "x", [], [], {}

    assert OnePass(Slow())([template.to_learn(PLAIN[0])]) == [None]
    assert len("<|start_header_id|>assistant<|end_header_id|>\n\n") <= one_pass.SHORT
