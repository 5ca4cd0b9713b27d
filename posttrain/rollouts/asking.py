"""Asking a model: greedy answers, samples, and the same prompts before and after a run."""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Iterable, Sequence

import torch
from tqdm import tqdm

from posttrain.data.reader import Rows
from posttrain.data.stream import Stream
from posttrain.rollouts.sampling import Rollout, draw_uniforms, sample
from posttrain.tokens import template
from posttrain.tokens.examples import shown


def ask(
    model, tokenizer, prompt_ids: list[list[int]], *, max_new_tokens: int, group_size: int = 1, temperature: float = 0.0,
    seed: int = 0, batch_size: int = 64, label: str | None = None, own: Sequence[int] | None = None,
) -> Rollout:  # fmt: skip
    """Answers to many prompts, greedy by default, `batch_size` prompts at a time. The result does not depend on
    batch_size.

    label: show a progress bar of this name (on a terminal). own: answer only these of the prompts, each with the draws
    that it has among all of them (a process's share)."""
    stops, uniforms = template.stop_ids(tokenizer), None
    if temperature > 0:
        uniforms = draw_uniforms(len(prompt_ids) * group_size, max_new_tokens, seed=seed, step=0)
        if own is not None:
            uniforms = uniforms.view(len(prompt_ids), group_size, -1)[list(own)].flatten(0, 1)
    if own is not None:
        prompt_ids = [prompt_ids[i] for i in own]
    parts = []
    bar = tqdm(
        total=len(prompt_ids) * group_size, desc=label, unit="answer", leave=None,  # beside a run's own bar: gone when full
        disable=label is None or not sys.stderr.isatty(),
    )  # fmt: skip
    for start in range(0, len(prompt_ids), batch_size):
        before = start * group_size
        chunk = prompt_ids[start : start + batch_size]
        mine = slice(start * group_size, (start + len(chunk)) * group_size)
        parts.append(
            sample(
                model, chunk, max_new_tokens=max_new_tokens, stop_ids=stops, pad_id=tokenizer.pad_token_id, group_size=group_size,
                temperature=temperature, uniforms=None if uniforms is None else uniforms[mine],
                progress=lambda ended, before=before: bar.update(before + ended - bar.n),
            )
        )  # fmt: skip
    bar.close()
    return Rollout(
        *(
            functools.reduce(operator.iadd, (getattr(p, name) for p in parts), [])
            for name in ("prompt_ids", "completion_ids", "logps", "finished")
        )
    )


class Showcase:
    """A few prompts of the data, answered greedily before and after a run, for samples.md."""

    def __init__(self, rows: Rows | Stream, tokenizer, count: int, limit: int, max_new_tokens: int = 64):
        """limit: the longest row in tokens, prompt and answer together."""
        rows = rows.head(count * 8) if isinstance(rows, Stream) else rows
        every = max(1, len(rows) // max(1, count))
        self.tokenizer, self.max_new_tokens = tokenizer, min(max_new_tokens, limit // 2)
        longest_prompt = limit - self.max_new_tokens
        self.prompts: list[tuple[str, list[int]]] = []
        self.own: list[float] = []  # log-prob per token that the model gave its own answers, each time it was asked
        for row in rows.rows[::every]:
            messages = row.get("prompt") or _until_first_reply(row.get("messages", []))
            if (
                messages
                and len(self.prompts) < count
                and len(ids := template.prompt_ids(tokenizer, messages, **shown(row))) <= longest_prompt
            ):
                self.prompts.append((messages[-1]["content"], ids))

    def answers(self, model) -> list[str]:
        if not self.prompts:
            return []
        rollout = ask(model, self.tokenizer, [ids for _, ids in self.prompts], max_new_tokens=self.max_new_tokens)
        self.own.append(torch.cat(rollout.logps).mean().item())
        return _told(rollout, self.tokenizer)

    def compare(self, before: list[str], after: list[str]) -> list[tuple[str, str, str]]:
        return [(prompt, b, a) for (prompt, _), b, a in zip(self.prompts, before, after, strict=True)]


def _until_first_reply(messages: list[dict]) -> list[dict]:
    first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), 0)
    return messages[:first]


class Beginnings:
    """The first words of a few documents, continued greedily before and after a run, for samples.md."""

    def __init__(self, texts: Iterable[str], tokenizer, separator: int, tokens: int = 8, max_new_tokens: int = 32):
        self.tokenizer, self.separator, self.max_new_tokens = tokenizer, separator, max_new_tokens
        self.prompts = [tokenizer(text, add_special_tokens=False)["input_ids"][:tokens] for text in texts if text]

    def answers(self, model) -> list[str]:
        if not self.prompts:
            return []
        rollout = sample(
            model, self.prompts, max_new_tokens=self.max_new_tokens, stop_ids=[self.separator],
            pad_id=self.tokenizer.pad_token_id, temperature=0,
        )  # fmt: skip
        return _told(rollout, self.tokenizer)

    def compare(self, before: list[str], after: list[str]) -> list[tuple[str, str, str]]:
        names = [one_line(self.tokenizer.decode(ids)) for ids in self.prompts]
        return list(zip(names, before, after, strict=True))


def one_line(text: str) -> str:
    """For a table or a list: every line break shown as a sign."""
    return text.replace("\n", " ⏎ ")


def _told(rollout: Rollout, tokenizer) -> list[str]:
    texts = zip(rollout.texts(tokenizer), rollout.finished, strict=True)
    return [one_line(text) + (" ⏹" if done else " …") for text, done in texts]
