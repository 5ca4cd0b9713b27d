"""The rows that a suite asks or reads, from its keys: prompts, or texts and conversations."""

from __future__ import annotations

from typing import Any

from posttrain.config.keys import Data
from posttrain.config.supervised import SftData
from posttrain.data import sources
from posttrain.data.reader import Rows
from posttrain.data.rows import load_rows


def split_of(name: str, split: str | None) -> str:
    """The split that was asked for; else test where there are splits, and all of a file or folder of one's own."""
    return split or ("train" if sources.is_local(name) and not sources.is_embedded(name) else "test")


def prompts_of(options: Any, name: str) -> Rows:
    """The rows of a suite that asks prompts: {prompt, asked, columns}."""
    keys = {key: getattr(options, key, None) for key in ("task", "system_prompt", "chat_template_kwargs")}
    data = Data(
        name=name, subset=options.subset, split=split_of(name, options.split), max_samples=options.max_rows,
        **{key: value for key, value in keys.items() if value is not None},
    )  # fmt: skip
    return load_rows(data, "grpo")


def texts_of(options: Any) -> Rows:
    """The rows of a suite that reads texts or conversations: {text} or {messages}."""
    data = SftData(
        name=options.data, subset=options.subset, split=split_of(options.data, options.split), max_samples=options.max_rows,
        system_prompt=options.system_prompt, chat_template_kwargs=options.chat_template_kwargs,
    )  # fmt: skip
    return load_rows(data, "sft")
