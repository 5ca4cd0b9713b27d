"""Best of k (rejection sampling): sample k answers to each prompt, score them all, and keep what a loop can learn from.

    best     {prompt, completion}        the highest score: SFT on it is rejection-sampling fine-tuning (as in Llama 2)
    pairs    {prompt, chosen, rejected}  highest and lowest, where they differ
    labels   {prompt, completion, label} every answer; right where its score is above ½ (of an outcome model: above 0)

Run as `python -m posttrain.curate best-of-k`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Scored:
    prompt: object  # as the data had it: a string or messages
    text: str
    score: float
    finished: bool


def best_of_k(
    model: str,
    prompts: str,
    score: list[str],
    out: str,
    *,
    k: int = 8,
    write: str = "best",
    min_score: float | None = None,
    max_prompts: int | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    system_prompt: str | None = None,
    split: str = "train",
    task: dict[str, Any] | None = None,
    seed: int = 0,
) -> str:
    """Write the rows to `out`; returns what to say."""
    from posttrain.data.files import refuse_out, write_rows
    from posttrain.errors import UserError

    refuse_out(out)
    if k < 2 or temperature <= 0 or max_new_tokens < 1:
        raise UserError("--k must be at least 2, --temperature above 0, --max-new-tokens at least 1")
    groups = sample_and_score(
        model, prompts, score, k=k, max_prompts=max_prompts, temperature=temperature, max_new_tokens=max_new_tokens,
        system_prompt=system_prompt, split=split, task=task, seed=seed,
    )  # fmt: skip
    rows, left_out = as_rows(groups, write, min_score, right_above=0.0 if is_reward_model(score) else 0.5)
    first = sum(group[0].score for group in groups) / len(groups)
    best = sum(max(s.score for s in group) for group in groups) / len(groups)
    why = {
        "best": "scored too low, or did not end",
        "pairs": "had no two scores, or no answer that ended",
        "labels": "were empty, or did not end",
    }
    if not rows:
        raise UserError(f"nothing to write: {left_out} of {len(groups)} prompts {why[write]}")
    write_rows(out, rows)
    return (
        f"{k} answers to each of {len(groups)} prompts: mean score of the first {first:.3f}, of the best {best:.3f}\n"
        f"left out {left_out} that {why[write]}\nwrote {len(rows)} rows to {out}"
    )


def is_reward_model(score: list[str]) -> bool:
    return len(score) == 1 and Path(score[0]).expanduser().is_dir()


def as_rows(
    groups: list[list[Scored]], write: str, min_score: float | None = None, right_above: float = 0.5
) -> tuple[list[dict], int]:
    """(rows, how many prompts, or answers for labels, gave none). An answer that did not end is never one to learn."""
    rows, left_out = [], 0
    for group in groups:
        usable = [s for s in group if s.text.strip() and s.finished]
        best = max(usable, key=lambda s: s.score, default=None)
        worst = min(usable, key=lambda s: s.score, default=None)
        if write == "labels":
            rows += [{"prompt": s.prompt, "completion": s.text, "label": s.score > right_above} for s in usable]
            left_out += len(group) - len(usable)
        elif write == "best" and best is not None and (min_score is None or best.score >= min_score):
            rows.append({"prompt": best.prompt, "completion": best.text, "score": best.score})
        elif write == "pairs" and best is not None and best.score > worst.score:
            rows.append({"prompt": best.prompt, "chosen": best.text, "rejected": worst.text})
        else:
            left_out += 1
    return rows, left_out


def sample_and_score(
    model: str,
    prompts: str,
    score: list[str],
    *,
    k: int,
    max_prompts: int | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    system_prompt: str | None = None,
    split: str = "train",
    task: dict[str, Any] | None = None,
    seed: int = 0,
) -> list[list[Scored]]:
    """k scored answers to each prompt."""
    import torch

    from posttrain import models
    from posttrain.data.rows import load_rows
    from posttrain.models import scalar
    from posttrain.rollouts import calling, rewards
    from posttrain.rollouts.asking import ask
    from posttrain.rollouts.speaking import as_config, one_prompt
    from posttrain.tokens.examples import prompts as encode

    settings = as_config(prompts, split, max_prompts, system_prompt, task)
    data = load_rows(settings, "grpo")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    by_model = is_reward_model(score)
    functions = [] if by_model else rewards.find(score)
    rewards.refuse_bad_targets(functions, data)
    calling.refuse_missing(functions, rewards.offered(data))
    loaded, tokenizer, _ = models.load(model, device=device, key="--model")
    asked = encode(data, tokenizer, models.max_length(loaded, None), max_new_tokens, settings, "best-of-k").items
    ids = [p.ids for p in asked]
    rollout = ask(
        loaded, tokenizer, ids, max_new_tokens=max_new_tokens, group_size=k, temperature=temperature, seed=seed, label="answers"
    )  # fmt: skip
    texts, rows = rollout.texts(tokenizer), [p.row for p in asked for _ in range(k)]
    if by_model:
        reward_model, its_tokenizer = scalar.load_reward_model(score[0], device=device, key="--score")
        scalar.refuse_another_vocabulary(tokenizer, its_tokenizer, score[0])
        scores = scalar.score_examples(reward_model, rollout.examples(), its_tokenizer.pad_token_id, 64)
    else:
        scores, _ = rewards.score(functions, None, rewards.offer(rows, texts, rollout))
    scored = [
        Scored(one_prompt(row), text, value, done)
        for row, text, value, done in zip(rows, texts, scores, rollout.finished, strict=True)
    ]
    return [scored[i : i + k] for i in range(0, len(scored), k)]
