"""What a real model can do before and after each lesson (loops/real.py), on prompts that no lesson has: one Lesson of
the report's table. What a lesson teaches is measured, and beside it what it should have left alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from posttrain import models
from posttrain.data import procedural, questions
from posttrain.evaluation.intervals import Proportion
from posttrain.rollouts.asking import ask, one_line
from posttrain.rollouts.rewards import reasoning_gym
from posttrain.tokens import template
from posttrain.tokens.batch import Example, collate

LONGEST = 48  # tokens of an answer to a problem or to a question about the name
WHO = ["Who are you?", "Give me your name.", "Write a two-line email signature with your name."]


@dataclass(frozen=True)
class Perplexity:
    """exp(mean negative log-likelihood per token) of fixed answers, with the 95 % bootstrap interval over answers."""

    value: float
    low: float
    high: float
    answers: int


@dataclass(frozen=True)
class Lesson:
    """A model at one point: as it comes, or after a lesson."""

    name: str
    sampled: Proportion  # held-out problems, one answer each at temperature 1: verified as right, and ended
    greedy: Proportion  # the same problems, the greedy answer
    worked: Proportion  # of the sampled answers: shows a calculation
    finished: Proportion  # of the sampled answers: ended by itself
    length: float  # of the sampled answers, tokens
    new_name: Proportion  # identity questions in other words than any lesson's
    old_name: Proportion
    closed: Proportion  # closed questions with the right word in the answer
    unasked: Proportion  # ordinary answers that say the new name
    perplexity: Perplexity  # of what the model said to ordinary questions before the first lesson
    answers: list[str]  # to probes()
    seconds: float = 0.0  # of the lesson

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def from_json(row: dict[str, Any]) -> Lesson:
    kinds = {"perplexity": Perplexity} | {k: Proportion for k, v in row.items() if isinstance(v, dict) and "hits" in v}
    return Lesson(**{k: kinds[k](**v) if k in kinds else v for k, v in row.items()})


@dataclass(frozen=True)
class Exam:
    """What is asked, always the same; `speaking` is the autocast that the lessons are computed in."""

    name: str  # reasoning-gym:TASK
    task: dict[str, Any]  # its arguments; the test split is asked
    problems: int
    new: str
    old: str
    speaking: Callable[[], AbstractContextManager]

    def rows(self) -> list[dict[str, Any]]:
        return procedural.rows(self.name, "test", self.task | {"size": self.problems, "seed": 0})

    def probes(self) -> list[str]:
        """The ten questions whose answers stand side by side in the report."""
        closed = [question for question, _ in questions.CLOSED[:2]]
        return [*(row["question"] for row in self.rows()[:3]), *WHO, *closed, *questions.ORDINARY_TEST[:2]]

    def ordinary(self, model, tokenizer) -> list[tuple[list[int], list[int]]]:
        """(prompt, answer) in ids: what the model says to ordinary questions now, for perplexities to come."""
        rollout = self.say(model, tokenizer, questions.ORDINARY_TEST, max_new_tokens=64, temperature=0.7)
        return list(zip(rollout.prompt_ids, rollout.completion_ids, strict=True))

    def take(self, name: str, model, tokenizer, ordinary: list, *, seconds: float = 0.0) -> Lesson:
        """ordinary: what the first model said (`ordinary` above)."""

        def greedy(asked: list[str], longest: int = LONGEST) -> list[str]:
            return self.say(model, tokenizer, asked, max_new_tokens=longest).texts(tokenizer)

        rows = self.rows()
        asked, n = [row["question"] for row in rows], len(rows)
        drawn = self.say(model, tokenizer, asked, max_new_tokens=LONGEST, temperature=1.0)
        best = self.say(model, tokenizer, asked, max_new_tokens=LONGEST)

        def right(rollout) -> Proportion:
            given = reasoning_gym(rollout.texts(tokenizer), [row["problem"] for row in rows], rollout.finished)
            return Proportion(sum(reward == 1 for reward in given), n)

        who, closed = greedy(questions.IDENTITY_TEST), greedy([question for question, _ in questions.CLOSED], 32)
        plain = greedy(questions.ORDINARY_TEST)
        known = [any(w in text for w in words) for text, (_, words) in zip(closed, questions.CLOSED, strict=True)]
        return Lesson(
            name=name,
            sampled=right(drawn),
            greedy=right(best),
            worked=Proportion(sum("=" in text for text in drawn.texts(tokenizer)), n),
            finished=Proportion(sum(drawn.finished), n),
            length=sum(map(len, drawn.completion_ids)) / n,
            new_name=Proportion(sum(self.new in text for text in who), len(who)),
            old_name=Proportion(sum(self.old in text for text in who), len(who)),
            closed=Proportion(sum(known), len(known)),
            unasked=Proportion(sum(self.new in text for text in plain), len(plain)),
            perplexity=self._perplexity(model, tokenizer, ordinary),
            answers=[one_line(text.strip()) for text in greedy(self.probes())],
            seconds=seconds,
        )

    def say(self, model, tokenizer, asked: list[str], **how: Any) -> Any:
        prompts = [template.prompt_ids(tokenizer, [{"role": "user", "content": question}]) for question in asked]
        with self.speaking():
            return ask(model, tokenizer, prompts, label="measuring", **how)

    @torch.no_grad()
    def _perplexity(self, model, tokenizer, ordinary: list) -> Perplexity:
        logps = models.CompletionLogps(model)
        nll, tokens = [], []
        for start in range(0, len(ordinary), 16):
            part = [Example.of(prompt, answer) for prompt, answer in ordinary[start : start + 16]]
            batch = collate(part, tokenizer.pad_token_id).to(model.device)
            with self.speaking():
                nll += (-logps(batch)[0].sum(1)).tolist()
            tokens += [len(answer) for _, answer in ordinary[start : start + 16]]
        return perplexity(nll, tokens)


def perplexity(nll: list[float], tokens: list[int], resamples: int = 1000) -> Perplexity:
    """nll, tokens: of each answer, summed over it (nats) and counted. Token-weighted: one sum over all answers.

    nll [4, 3] over [1, 3] tokens: exp(7 / 4) = 5.754603"""
    drawn, n = random.Random(0), len(nll)

    def of(chosen: list[int]) -> float:
        return float(torch.tensor(sum(nll[i] for i in chosen) / sum(tokens[i] for i in chosen)).double().exp())

    again = sorted(of(drawn.choices(range(n), k=n)) for _ in range(resamples))
    low, high = again[int(0.025 * resamples)], again[int(0.975 * resamples) - 1]
    return Perplexity(of(list(range(n))), low, high, n)
