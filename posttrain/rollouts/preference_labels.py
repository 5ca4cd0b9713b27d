"""Which of two answers keeps to a principle better, asked of a model: RLAIF's labels (Bai et al. 2022, section 4; Lee
et al. 2023, arXiv 2309.00267).

The judge is shown both answers as A and B, and does not write: the log-probabilities of the two letters are read.

    order (x, y):  d₁ = log P(A) − log P(B)      order (y, x):  d₂ = log P(A) − log P(B)
    preference for x: (d₁ − d₂) / 2, as a probability σ((d₁ − d₂) / 2)      favour for the place A: (d₁ + d₂) / 2

A favour for a place that is the same in both orders cancels exactly. How large it is, and how many pairs have another
winner in the other order, is told: a judge that hears the place alone labels noise.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.data.filters import normalised
from posttrain.data.messages import Messages
from posttrain.models import CompletionLogps
from posttrain.rollouts.either import in_chat, log_odds
from posttrain.rollouts.speaking import Speaker, one_prompt
from posttrain.tokens.batch import Example, collate

QUESTION = (
    "Two answers to the same conversation are compared by a principle.\n\nConversation:\n{conversation}\n\nPrinciple: {principle}\n\n"
    "Answer A:\n{a}\n\nAnswer B:\n{b}\n\nWhich answer keeps to the principle better? Answer with one letter, A or B."
)


class Judge:
    """A model that is asked for one of two letters."""

    def __init__(self, speaker: Speaker):
        self.tokenizer, self.limit = speaker.tokenizer, speaker.limit
        self.device, self.logps = speaker.model.device, CompletionLogps(speaker.model.eval())

    def favours_a(self, asked: list[Messages], batch_size: int = 8) -> list[float | None]:
        """log P(A) − log P(B) as the answer to each, in nats; None where it does not fit into the model."""
        pairs = [in_chat(self.tokenizer, messages, ("A", "B")) for messages in asked]
        fits = [self.limit is None or max(map(len, pair)) <= self.limit for pair in pairs]
        read = functools.partial(self._read, batch_size=2 * batch_size)
        odds = iter(log_odds(read, [pair for pair, fit in zip(pairs, fits, strict=True) if fit]))
        return [next(odds) if fit else None for fit in fits]

    @torch.no_grad()
    def _read(self, rows: Sequence[Example], batch_size: int) -> list[Tensor]:
        found: list[Tensor] = []
        for start in range(0, len(rows), batch_size):
            batch = collate(rows[start : start + batch_size], self.tokenizer.pad_token_id).to(self.device)
            found += self.logps(batch)[0]  # 0 where nothing is scored
        return found


def labelled(
    speaker: Speaker,
    judge: Judge,
    rows: list[dict],
    drawn: list[str],
    left_out: collections.Counter[str],
    margin: float,
) -> tuple[list[dict], str]:
    """({prompt, chosen, rejected, principle, preference} rows, what to say of the judge). margin: how far from ½ the
    preference must be."""
    prompts = [row["prompt"] for row in rows]
    pairs = []
    for i, (x, y) in enumerate(
        zip(speaker(prompts, label="answers"), speaker(prompts, draw=1, label="answers"), strict=True)
    ):
        problem = x.problem or y.problem
        if problem is None and normalised(x.text) == normalised(y.text):
            problem = "are twice the same"
        if problem is not None:
            left_out[f"answers {problem}"] += 1
        else:
            pairs.append((i, x.text, y.text))
    first = judge.favours_a([question(rows[i]["prompt"], drawn[i], x, y) for i, x, y in pairs])
    second = judge.favours_a([question(rows[i]["prompt"], drawn[i], y, x) for i, x, y in pairs])
    found, places, turned = [], [], 0
    for (i, x, y), d1, d2 in zip(pairs, first, second, strict=True):
        if d1 is None or d2 is None:
            left_out[f"comparisons do not fit into the judge's {judge.limit} tokens"] += 1
            continue
        places.append((d1 + d2) / 2)
        turned += (d1 > 0) == (d2 > 0)
        preference = 1 / (1 + math.exp(-(d1 - d2) / 2))
        if abs(preference - 0.5) <= margin:
            left_out["are ties"] += 1
            continue
        chosen, rejected = (x, y) if preference > 0.5 else (y, x)
        pair = {"prompt": one_prompt(rows[i]), "chosen": chosen, "rejected": rejected}
        found.append(pair | {"principle": drawn[i], "preference": max(preference, 1 - preference)})
    if not places:
        return found, ""
    mean = sum(places) / len(places)
    noise = ": it hears the place rather than the answers, and its labels are noise" if 2 * turned > len(places) else ""
    return found, (
        f"\nthe judge favours the first place by {mean:+.2f} nats (mean of {len(places)} pairs); in {turned} of {len(places)} the other "
        f"order has the other winner{noise}"
    )


def question(prompt: Messages, principle: str, a: str, b: str) -> Messages:
    conversation = "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
    return [{"role": "user", "content": QUESTION.format(conversation=conversation, principle=principle, a=a, b=b)}]
