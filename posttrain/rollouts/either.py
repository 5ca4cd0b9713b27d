"""A model that is asked for one of two words need not write: how likely it holds each is read behind the prompt.

Of the whole word: in some vocabularies one of the two takes two tokens, and the first of them says something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from posttrain.data.messages import Messages
from posttrain.tokens import template
from posttrain.tokens.batch import Example

Two = tuple[Example, Example]
Read = Callable[[Sequence[Example]], Sequence[Tensor]]  # of each row the log-probs of its completion's tokens


def log_odds(read: Read, asked: Sequence[Two]) -> list[float]:
    """log P(first word) − log P(second word) behind each prompt, in nats."""
    sums = [logps.double().sum().item() for logps in read([row for two in asked for row in two])]
    return [first - second for first, second in zip(sums[::2], sums[1::2], strict=True)]


def in_chat(tokenizer: Any, messages: Messages, words: tuple[str, str]) -> Two:
    """As the assistant's reply through the chat template, without what ends its turn."""
    prompt = template.prompt_ids(tokenizer, messages)
    first, second = (Example.of(prompt, template.completion_ids(tokenizer, messages, word)[:-1]) for word in words)
    return first, second


def in_text(tokenizer: Any, text: str, words: tuple[str, str]) -> Two:
    """As what follows plain text, for a model without a chat template; the words with the space before them."""
    prompt = tokenizer(text)["input_ids"]
    first, second = (Example.of(prompt, tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words)
    return first, second
