"""A model that is asked in conversations, of any length and number. What it says to one depends on the seed and on that
conversation alone: not on the others, not on their order, so a run that goes on says what it would have said."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from posttrain import models
from posttrain.config.keys import Data
from posttrain.data.messages import Messages
from posttrain.data.procedural import is_task
from posttrain.data.rows import load_rows
from posttrain.errors import UserError
from posttrain.rollouts.sampling import draw_uniforms, sample
from posttrain.tokens import template


class Said(NamedTuple):
    text: str
    problem: str | None  # why it is of no use: "did not end within 64 tokens", "are empty" …


class Speaker:
    """A loaded model and how it is asked."""

    def __init__(self, name: str, *, key: str, max_new_tokens: int = 256, temperature: float = 0.0, seed: int = 0):
        self.model, self.tokenizer, lines = models.load(name, device=models.device_of("auto"), key=key)
        for line in lines:
            print(line, file=sys.stderr)
        self.limit = models.reads_at_most(self.model)
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed

    def __call__(
        self, conversations: list[Messages], *, draw: int = 0, batch_size: int = 16, label: str | None = None
    ) -> list[Said]:
        """One answer to each. draw: another number, another sample. label: show a progress bar of this name."""
        ids = [template.prompt_ids(self.tokenizer, messages) for messages in conversations]
        said: list[Said | None] = [None] * len(ids)
        fitting = [i for i in range(len(ids)) if self.fits(ids[i])]
        bar = tqdm(total=len(fitting), desc=label, unit="answer", disable=label is None or not sys.stderr.isatty())
        fitting.sort(key=lambda i: len(ids[i]))  # those of a length together: little padding
        for start in range(0, len(fitting), batch_size):
            picked = fitting[start : start + batch_size]
            seeds = [self.seed_of(conversations[i], draw) for i in picked]
            for i, answer in zip(picked, self._answer([ids[i] for i in picked], seeds), strict=True):
                said[i] = answer
            bar.update(len(picked))
        bar.close()
        return [Said("", f"do not fit into the model's {self.limit} tokens") if one is None else one for one in said]

    def fits(self, ids: list[int]) -> bool:
        return self.limit is None or len(ids) + self.max_new_tokens <= self.limit

    def seed_of(self, messages: Messages, draw: int) -> int:
        """48 bits."""
        return int(hashlib.sha256(json.dumps([self.seed, draw, messages]).encode()).hexdigest()[:12], 16)

    def _answer(self, ids: list[list[int]], seeds: list[int]) -> list[Said]:
        uniforms = None
        if self.temperature > 0:
            uniforms = torch.cat([draw_uniforms(1, self.max_new_tokens, seed=0, step=seed) for seed in seeds])
        rollout = sample(
            self.model, ids, max_new_tokens=self.max_new_tokens, stop_ids=template.stop_ids(self.tokenizer),
            pad_id=self.tokenizer.pad_token_id, temperature=self.temperature, uniforms=uniforms,
        )  # fmt: skip
        texts = [text.strip() for text in rollout.texts(self.tokenizer)]
        return [Said(t, self._problem(t, done)) for t, done in zip(texts, rollout.finished, strict=True)]

    def _problem(self, text: str, finished: bool) -> str | None:
        if not finished:
            return f"did not end within {self.max_new_tokens} tokens"
        return None if text else "are empty"


def rows_to_ask(
    prompts: str, *, split: str, max_prompts: int | None, system_prompt: str | None, task: dict[str, Any] | None
) -> list[dict]:
    """Canonical rows with a prompt, as for loops.grpo."""
    return load_rows(as_config(prompts, split, max_prompts, system_prompt, task), "grpo").rows


def as_config(
    prompts: str, split: str, max_prompts: int | None, system_prompt: str | None, task: dict[str, Any] | None
) -> Data:
    """--prompts and what belongs to it, as config.data."""
    if task and not is_task(prompts):
        raise UserError(f"--task belongs to --prompts reasoning-gym:TASK, not to '{prompts}'")
    return Data(name=prompts, split=split, max_samples=max_prompts, system_prompt=system_prompt, task=task or {})


def one_prompt(row: dict[str, Any]) -> str | Messages:
    """The prompt of a canonical row as a data file has it: one question as text, anything more as messages."""
    messages = row["prompt"]
    return messages[0]["content"] if len(messages) == 1 and set(messages[0]) == {"role", "content"} else messages
