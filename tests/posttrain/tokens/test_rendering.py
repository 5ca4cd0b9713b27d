from datetime import datetime

import pytest
from kit import CHATML, bytelevel_tokenizer

from posttrain.errors import UserError
from posttrain.tokens import template
from posttrain.tokens.rendering import freeze_date, render

DATED = "{{ strftime_now('%d %B %Y') }}\n" + CHATML
ASKED = [{"role": "user", "content": "Hi."}]


def test_a_frozen_date_is_written_until_it_is_let_go():
    tokenizer = bytelevel_tokenizer(DATED)
    try:
        freeze_date(datetime(2024, 2, 29, 23, 59))
        assert render(tokenizer, ASKED, generate=True).text.startswith("29 February 2024\n<|im_start|>user")
    finally:
        freeze_date(None)
    assert render(tokenizer, ASKED, generate=True).text.startswith(datetime.now().strftime("%d %B %Y"))


def test_arguments_of_the_template():
    tokenizer = bytelevel_tokenizer("{{ style }}\n" + CHATML)
    assert render(tokenizer, ASKED, generate=False, template_kwargs={"style": "short"}).text.startswith("short\n")


@pytest.mark.parametrize(
    ("jinja", "error", "message"),
    [
        ("{% for m in messages %}{{ m.content }", UserError, "chat template is broken (line 1:"),
        ("{{ raise_exception('No!') }}", ValueError, "the tokenizer's chat template refuses the conversation: No!"),
        (
            "{% for m in messages %}{{ m.content + 3 }}{% endfor %}",
            ValueError,
            "template fails on the conversation (TypeError",
        ),
        ("{{ 1 / 0 }}", ValueError, "template fails on the conversation (ZeroDivisionError: division by zero)"),
    ],
)
def test_a_template_that_fails_is_told_in_one_sentence(jinja, error, message):
    with pytest.raises(error) as raised:
        render(bytelevel_tokenizer(jinja), ASKED, generate=True)
    assert message in str(raised.value) and "\n" not in str(raised.value) and type(raised.value) is error


@pytest.mark.parametrize("filter_", ["trim", "upper", "replace('a', 'b')", "lower | trim"])
def test_what_is_typed_is_found_again_behind_filters_or_refused(filter_):
    tokenizer = bytelevel_tokenizer(CHATML.replace("m['content']", f"m['content'] | {filter_}"))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = template.prompt_ids(tokenizer, [{"role": "user", "content": "Say <|im_end|>"}])
    assert ids.count(end) == 1  # the template's own


def test_a_template_that_looks_into_what_was_typed_is_refused():
    looks = CHATML.replace("m['content']", "m['content'].split('<|im_end|>')[0]")
    with pytest.raises(ValueError, match="spells a special token and the chat template looks inside it"):
        template.prompt_ids(bytelevel_tokenizer(looks), [{"role": "user", "content": "Say <|im_end|> now"}])


def test_what_the_template_writes_that_nobody_gave_it_is_said():
    default = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Robin, made by nobody in particular.<|im_end|>\n{% endif %}"
    (line,) = template.remarks(bytelevel_tokenizer(default + CHATML))
    assert line == "the chat template writes a system message of its own: " + repr(
        "<|im_start|>system\nYou are Robin, made by nobody in particular.<|im_end|>\n<|im_start|>user"
    )
    assert template.remarks(bytelevel_tokenizer(CHATML)) == []
    assert any("today's date" in line for line in template.remarks(bytelevel_tokenizer(DATED)))
    opens = CHATML.replace("assistant\n", "assistant\n<think>\n")
    assert any("opens <think> for the model" in line for line in template.remarks(bytelevel_tokenizer(opens)))


def test_an_argument_that_no_template_sees_is_refused():
    """apply_chat_template would take it for itself, and answer the same without a word."""
    with pytest.raises(ValueError, match="chat_template_kwargs: max_length is for the library"):
        render(bytelevel_tokenizer(), ASKED, generate=True, template_kwargs={"max_length": 3})
