"""Sampling, by hand: what the model says to each prompt, and the log-probability it gave to every token it said.

1. One prefill per different prompt (left-padded, so that every row's next token stands in the same column).
2. The key-value cache is expanded to the prompt's rows: G answers share the work of reading the prompt.
3. One token per row and step, by inverse transform sampling from softmax(logits / temperature) over the *whole*
   vocabulary; a row leaves the batch, and the cache, as soon as it has said a stop token.

Token in, token out: the ids that were sampled are the ids that are trained on, the stop token included. Nothing is
decoded and tokenised again. No top-p, no top-k: a token that was sampled from a truncated distribution has another
log-probability than the trainer computes, and "on policy" would be false.

Randomness is one uniform number per row and token, drawn in advance from its own generator seeded by (seed, step). So a
rollout is the same whatever the batch size, and two processes that take their rows of it sample what one would; the
global random state is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from posttrain.models.checks import refuse_to_sample
from posttrain.rollouts.roomy import roomy_cache
from posttrain.tokens import template
from posttrain.tokens.batch import Example


@dataclass(frozen=True)
class Rollout:
    """N = prompts × group_size completions, group by group."""

    prompt_ids: list[list[int]]  # N lists; the group's copies are the same list
    completion_ids: list[list[int]]  # N lists, the stop token included where one was sampled
    logps: list[Tensor]  # N × [length], float32 on the CPU, at the temperature of the rollout
    finished: list[bool]  # N: False where max_new_tokens ran out before a stop token

    def examples(self) -> list[Example]:
        return [Example.of(p, c) for p, c in zip(self.prompt_ids, self.completion_ids, strict=True)]

    def texts(self, tokenizer) -> list[str]:
        """The completions as text, without the stop token and other special tokens: what a reward function reads."""
        return tokenizer.batch_decode(self.completion_ids, skip_special_tokens=True)


def draw_uniforms(rows: int, max_new_tokens: int, *, seed: int, step: int) -> Tensor:
    """[rows, max_new_tokens] in [0, 1), a pure function of (seed, step)."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.rand(rows, max_new_tokens, generator=generator)


@torch.no_grad()
def sample(
    model,
    prompt_ids: list[list[int]],
    *,
    max_new_tokens: int,
    stop_ids: list[int],
    pad_id: int,
    group_size: int = 1,
    temperature: float = 1.0,
    uniforms: Tensor | None = None,
    batch_rows: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Rollout:
    """One rollout of a Hugging Face causal model. temperature 0 is greedy; else uniforms [N, max_new_tokens] is needed.

    stop_ids: ids that end an answer (the template's turn-end token, eos). batch_rows: at most so many rows at once; the
    answers stay the same. The model's train flag and the random state are left as they were. progress is called with
    the number of rows that have ended.
    """
    if temperature < 0 or (temperature > 0 and uniforms is None):
        raise ValueError("sampling needs a temperature above 0 and `uniforms`; temperature 0 is greedy")
    asked = [p for p in prompt_ids for _ in range(group_size)]  # N prompts, one a row
    device, n = model.device, len(asked)
    if uniforms is not None:
        assert uniforms.shape == (n, max_new_tokens), f"uniforms [{n}, {max_new_tokens}], got {list(uniforms.shape)}"
        uniforms = uniforms.to(device)
    if batch_rows is not None and batch_rows < n:
        same = partial(sample, model, max_new_tokens=max_new_tokens, stop_ids=stop_ids, pad_id=pad_id, temperature=temperature)  # fmt: skip
        return _in_parts(same, asked, batch_rows, uniforms, progress)
    stops = torch.tensor(sorted(stop_ids), device=device)
    tokens = torch.full((n, max_new_tokens), pad_id, device=device)
    logps = torch.zeros(n, max_new_tokens, device=device)
    lengths = torch.full((n,), max_new_tokens, device=device)
    finished = torch.zeros(n, dtype=torch.bool, device=device)

    was_training = model.training
    model.eval()
    try:
        # 1. Prefill: one row per different prompt.
        place = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompt_ids)))}
        logits, mask, cache = prefill(model, list(map(list, place)), pad_id, room=max_new_tokens)  # [P, V], [P, width]
        width = mask.shape[1]

        # 2. Give every row its prompt's.
        if len(place) < n:
            of_row = torch.tensor([place[tuple(prompt)] for prompt in asked], device=device)  # [N]
            cache.batch_select_indices(of_row)
            logits, mask = logits[of_row], mask[of_row]
        position = mask.sum(-1, keepdim=True)  # [rows, 1] of the token about to be sampled
        mask = torch.cat([mask, mask.new_ones(n, max_new_tokens)], dim=1)
        rows = torch.arange(n, device=device)  # which of the N completions the rows of the batch are

        # 3. One token per row and step.
        for t in range(max_new_tokens):
            logp = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)  # [rows, V]
            token = logp.argmax(-1) if temperature == 0 else inverse_transform(logp.exp(), uniforms[rows, t])
            tokens[rows, t] = token
            logps[rows, t] = logp.gather(-1, token[:, None]).squeeze(-1)
            ended = torch.isin(token, stops)
            if ended.any():
                lengths[rows[ended]], finished[rows[ended]] = t + 1, True
                going = (~ended).nonzero().squeeze(-1)
                rows, token, mask, position = rows[going], token[going], mask[going], position[going]
                if progress is not None:
                    progress(n - len(rows))
                if len(rows) == 0:
                    break
                cache.batch_select_indices(going)
            if t + 1 < max_new_tokens:
                logits = model(
                    input_ids=token[:, None],
                    attention_mask=mask[:, : width + t + 1],
                    position_ids=position,
                    past_key_values=cache,
                    use_cache=True,
                ).logits[:, -1]
                position = position + 1
    finally:
        model.train(was_training)

    tokens, logps, lengths = tokens.cpu(), logps.cpu(), lengths.tolist()
    return Rollout(
        prompt_ids=asked,
        completion_ids=[row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)],
        logps=[row[:length] for row, length in zip(logps, lengths, strict=True)],
        finished=finished.tolist(),
    )


def _in_parts(
    sample_rows: Callable[..., Rollout],
    asked: list[list[int]],  # N prompts, one a row
    batch_rows: int,
    uniforms: Tensor | None,  # [N, max_new_tokens]
    progress: Callable[[int], None] | None,
) -> Rollout:
    """The same rollout, at most batch_rows rows at a time: prompts of like length together, so little is padding."""
    order = sorted(range(len(asked)), key=lambda i: len(asked[i]))
    made: dict[int, tuple] = {}  # {row: what stands of it in a rollout}
    for start in range(0, len(order), batch_rows):
        part, before = order[start : start + batch_rows], len(made)
        rollout = sample_rows(
            [asked[i] for i in part],
            uniforms=None if uniforms is None else uniforms[part],
            progress=None if progress is None else lambda ended, before=before: progress(before + ended),
        )
        rows = zip(rollout.completion_ids, rollout.logps, rollout.finished, strict=True)
        made |= dict(zip(part, rows, strict=True))
    completion_ids, logps, finished = map(list, zip(*(made[i] for i in range(len(asked))), strict=True))
    return Rollout(asked, completion_ids, logps, finished)


def prefill(model: Any, prompt_ids: list[list[int]], pad_id: int, room: int = 0) -> tuple[Tensor, Tensor, DynamicCache]:
    """Read the prompts, padded on the left: (logits of the next token [P, V], which columns are real [P, width], the
    cache of keys and values). Position ids count real tokens only. room: for how many tokens more the cache is made."""
    device, width = model.device, max(map(len, prompt_ids))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompt_ids], device=device)
    mask = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompt_ids], device=device)
    cache = roomy_cache(model.config, room) if room else DynamicCache(config=model.config)
    refuse_to_sample(model, cache)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        # An index, not 1: a slice would not be contiguous, and the head be copied for every row of the batch.
        logits_to_keep=torch.tensor([width - 1], device=device),
    ).logits[:, -1]
    return logits, mask, cache


def sample_own(
    model: Any,
    tokenizer: Any,
    asked: list[list[int]],
    own: list[int],
    rl: Any,
    *,
    seed: int,
    number: int,
    batch_rows: int | None = None,
) -> Rollout:
    """This process's part of rollout `number`: rl.group_size answers to each of its own prompts among those asked.

    It takes its rows of the uniforms of the whole rollout, so it samples what a single process would have sampled
    there."""
    uniforms = draw_uniforms(len(asked) * rl.group_size, rl.max_new_tokens, seed=seed, step=number)
    return sample(
        model,
        [asked[i] for i in own],
        group_size=rl.group_size,
        max_new_tokens=rl.max_new_tokens,
        temperature=rl.temperature,
        stop_ids=template.stop_ids(tokenizer),
        pad_id=tokenizer.pad_token_id,
        uniforms=uniforms.view(len(asked), rl.group_size, -1)[own].flatten(0, 1),
        batch_rows=batch_rows,
    )


def inverse_transform(probs: Tensor, uniform: Tensor) -> Tensor:
    """The first token at which the cumulative probability exceeds u: probs [rows, V], uniform [rows] -> [rows].

    u is scaled by the sum that float32 really reached and kept below it, so a token of probability 0 is never chosen.
    """
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1:]
    threshold = torch.minimum(uniform[:, None] * total, total * (1 - 2**-22))
    return (cumulative <= threshold).sum(-1)
