"""The ten conversations: whole through templates of real kinds; what a template or an encoder gets wrong is named."""

import pytest
from chat_templates import CLOSED, FIELD, OPENS, TOOLS
from kit import CHATML, FAMILIES, bytelevel_tokenizer

from posttrain.tokens import conversations, template
from posttrain.tokens.batch import Example

PLAIN = {c.name for c in conversations.conversations("<|im_end|>") if c.plain}


def tried(jinja: str | None, template_kwargs=None, **kinds):
    tokenizer = bytelevel_tokenizer(jinja, **kinds)
    template.prepare_tokenizer(tokenizer)
    return conversations.tried(tokenizer, template_kwargs)


@pytest.mark.parametrize("kind", FAMILIES)
def test_plain_ones_are_whole(kind):
    options = dict(FAMILIES[kind])
    whole, wrong, thinking = tried(options.pop("template"), **options)
    not_known = {"thoughts", "a tool"} | ({"a system message"} if kind == "gemma" else set())
    assert set(wrong) == not_known and len(whole) + len(wrong) == 10 and len(PLAIN) == 7 and not thinking


def test_tools_and_thoughts_where_the_template_knows_them():
    whole, wrong, _ = tried(TOOLS.replace("<|im_start|>system\n{% for t", "<|im_start|>user\n{% for t"))
    assert "a tool" in whole and set(wrong) == {"thoughts"}
    whole, wrong, thinking = tried(CLOSED)
    assert set(wrong) == {"a tool"} and not thinking


@pytest.mark.parametrize("jinja", [OPENS, FIELD])
def test_a_template_that_opens_thoughts_is_given_some(jinja):
    whole, wrong, thinking = tried(jinja)
    assert thinking and set(wrong) == {"a tool"} and "thoughts" in whole


def test_a_template_that_cuts_answers():
    cuts = CHATML.replace("{{ m['content'] }}", "{{ m['content'][:12] if m['role'] == 'assistant' else m['content'] }}")
    whole, wrong, _ = tried(cuts)
    assert "drops a part of the reply" in wrong["a question"] and set(whole) & PLAIN == {"one digit"}


def learn_the_prompt(rows):
    return [Example(row.input_ids, [True] * len(row)) for row in rows]


def forget_the_end(rows):
    return [Example(row.input_ids[:-1], row.completion_mask[:-1]) for row in rows]


def cut_the_answer(rows):
    """The last token but one, as a cut in the text would."""
    return [Example([*r.input_ids[:-2], r.input_ids[-1]], r.completion_mask[:-1]) for r in rows]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (learn_the_prompt, "the row does not begin with its prompt, unlearned"),
        (forget_the_end, "which ends no answer"),
        (cut_the_answer, "is not in what is learned"),
    ],
)
def test_a_broken_encoder_is_found_out(monkeypatch, damage, problem):
    """The invariants are asked of what the encoder gives, not of its own promise."""
    honest = template.conversation_examples
    monkeypatch.setattr(template, "conversation_examples", lambda *a, **k: damage(honest(*a, **k)))
    whole, wrong, _ = tried(CHATML)
    assert not set(whole) & PLAIN and problem in wrong["code"]


def test_prompts_that_nobody_else_will_give_are_found_out(monkeypatch):
    """Another prompt than apply_chat_template's; a special token that a user typed."""
    honest = template.prompt_ids
    monkeypatch.setattr(template, "prompt_ids", lambda *a, **k: [*honest(*a, **k), 11])
    monkeypatch.setattr(
        template, "conversation_examples", lambda t, m, **k: [Example.of(template.prompt_ids(t, m[:1], **k), [2])]
    )
    assert "other ids than apply_chat_template gives" in tried(CHATML)[1]["a question"]

    def as_the_library_does(tokenizer, messages, **shown):
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    monkeypatch.setattr(template, "prompt_ids", as_the_library_does)
    assert tried(CHATML)[1]["a special token typed"] == "what a user types (<|im_end|>) becomes the special token"
