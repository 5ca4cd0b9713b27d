"""Which of two answers is better? Two judges of it: a language model that is asked, or a reward model's two scores.

A language model reads both answers behind a question, and the log-prob of "A" is weighed against that of "B". Most such
judges favour a place (the first, or the second), so each pair is judged in both orders: who wins in both has won, and
two verdicts that contradict each other are a tie. A reward model reads one answer at a time and knows no place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from posttrain import models
from posttrain.errors import UserError
from posttrain.evaluation import results
from posttrain.evaluation.subjects import Messages, Subject
from posttrain.models import scalar
from posttrain.rollouts.either import Two, in_chat, in_text, log_odds
from posttrain.tokens import template
from posttrain.tokens.batch import Example

QUESTION = (
    "A user wrote to an assistant:\n{prompt}\n\nTwo answers:\n\n[A]\n{a}\n\n[B]\n{b}\n\n"
    "Which of the two answers is better for the user? Reply with one letter, A or B."
)


@dataclass(frozen=True)
class Verdict:
    """On one pair, seen from the evaluated model."""

    won: float  # 1, 0; ½: a tie
    preference: float  # how likely the judge thinks it is that the answer is the better one, 0 to 1
    first: float | None  # share of the two orders in which the first place won; None: a judge without places
    said: list[float]  # log-odds of the evaluated model in each order; or the two scores

    @property
    def contradictory(self) -> bool:
        return self.first is not None and self.won == 0.5


def of_orders(first: float, second: float) -> Verdict:
    """first: log-odds of the answer when it stands first; second: when it stands second.

    >>> of_orders(1.0, -1.0) == Verdict(0.5, 0.5, 1.0, [1.0, -1.0])  # the first place wins both times
    True
    """
    wins = [1.0 if odds > 0 else 0.0 if odds < 0 else 0.5 for odds in (first, second)]
    won = wins[0] if wins[0] == wins[1] else 0.5
    return Verdict(won, (_sigmoid(first) + _sigmoid(second)) / 2, (wins[0] + 1 - wins[1]) / 2, [first, second])


def of_scores(mine: float, theirs: float) -> Verdict:
    """The preference is Bradley and Terry's: σ(mine − theirs)."""
    won = 1.0 if mine > theirs else 0.0 if mine < theirs else 0.5
    return Verdict(won, _sigmoid(mine - theirs), None, [mine, theirs])


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def by_language_model(judge: Subject, asked: Sequence[tuple[Messages, str, str]]) -> list[Verdict]:
    """(prompt, the model's answer, the other's) of each. Through the judge's chat template where it has one, else as
    plain text that ends in "Answer:"."""
    rows = [_question(judge, prompt, *two) for prompt, a, b in asked for two in ((a, b), (b, a))]
    lengths = [max(map(len, two)) for two in rows]
    _refuse_longer(judge, list(map(max, lengths[::2], lengths[1::2])), "its answers has")
    odds = log_odds(judge.logps, rows)  # of A over B: two for each pair
    return [of_orders(odds[i], -odds[i + 1]) for i in range(0, len(odds), 2)]


def _question(judge: Subject, prompt: Messages, a: str, b: str) -> Two:
    text = QUESTION.format(prompt=spoken(prompt), a=a, b=b)
    if getattr(judge.tokenizer, "chat_template", None) is not None:
        return in_chat(judge.tokenizer, [{"role": "user", "content": text}], ("A", "B"))
    return in_text(judge.tokenizer, f"{text}\n\nAnswer:", (" A", " B"))


def refuse_no_room(
    judge: Subject | RewardModel, prompts: Sequence[Messages], others: Sequence[str] | None, max_new_tokens: int
) -> None:
    """Before anybody answers: can the judge read answers of the full length? others: the other model's, where they are
    there already. (Of a judge with another tokenizer it is an estimate.)"""
    if judge.limit is None:
        return
    if isinstance(judge, RewardModel):
        longest = [len(template.prompt_ids(judge.tokenizer, prompt)) + max_new_tokens for prompt in prompts]
    else:
        room = max_new_tokens * (2 if others is None else 1)
        asked = zip(prompts, others or [""] * len(prompts), strict=True)
        longest = [max(map(len, _question(judge, prompt, "", other))) + room for prompt, other in asked]
    _refuse_longer(judge, longest, f"answers of up to {max_new_tokens} tokens may have")


def _refuse_longer(judge: Subject | RewardModel, longest: Sequence[int], has: str) -> None:
    """longest: of each prompt, the tokens that the judge must read."""
    for number, length in enumerate(longest, start=1):
        if judge.limit is not None and length > judge.limit:
            raise UserError(
                f"{judge.name}, the judge, reads at most {judge.limit} tokens, and prompt {number} with {has} {length}: lower "
                "--judge.max_new_tokens, or leave the prompt out"
            )


def spoken(prompt: Messages) -> str:
    """The conversation as the judge reads it: one question as it stands, several turns by who says them."""
    turns = [m for m in prompt if m["role"] != "system"] or prompt
    return turns[0]["content"] if len(turns) == 1 else "\n".join(f"{m['role']}: {m['content']}" for m in turns)


class RewardModel:
    """One of loops.reward's, or a hub model of that kind, with its own tokenizer and template."""

    def __init__(self, name: str, device: torch.device | str, key: str):
        self.name = name
        self.scorer: nn.Module
        self.scorer, self.tokenizer = scalar.load_reward_model(name, device=device, key=key)

    @property
    def limit(self) -> int | None:
        """Tokens that it reads at most; None: its config names no limit."""
        return models.reads_at_most(self.scorer.model)

    def __call__(self, asked: Sequence[tuple[Messages, str, str]], batch_size: int) -> list[Verdict]:
        examples = []
        for prompt, *answers in asked:
            for answer in answers:
                ids = template.prompt_ids(self.tokenizer, prompt)
                examples.append(Example.of(ids, template.completion_ids(self.tokenizer, prompt, answer)))
        lengths = list(map(len, examples))
        _refuse_longer(self, list(map(max, lengths[::2], lengths[1::2])), "one of its answers has")
        scores = scalar.score_examples(self.scorer, examples, self.tokenizer.pad_token_id, batch_size)
        return [of_scores(scores[i], scores[i + 1]) for i in range(0, len(scores), 2)]


# ---------------------------------------------------------------- the other's answers


def is_file(against: str) -> bool:
    path = Path(against).expanduser()
    return path.suffix in (".json", ".jsonl") or (path / "results.json").is_file()


def earlier_answers(path: str, prompts: Sequence[Any], key: str) -> list[str]:
    """To each of the prompts, from rows {"prompt", "answer"} (.jsonl, or a list in .json), or from the results.json of
    an evaluation (any suite; its first model)."""
    file = Path(path).expanduser()
    file = file / "results.json" if file.is_dir() else file
    found: dict[str, str] = {}
    if file.name == "results.json":
        for outcome in results.read(str(file)).models[0].outcomes.values():
            for record in outcome.records:
                if record.get("answers"):
                    found.setdefault(_same(record["prompt"]), record["answers"][0]["text"])
    else:
        try:
            text = file.read_text(encoding="utf-8-sig")
            lines = [line for line in text.split("\n") if line.strip()]  # (splitlines knows of more ends than JSON)
            rows = [json.loads(line) for line in lines] if file.suffix == ".jsonl" else json.loads(text)
            for row in rows:
                found.setdefault(_same(row["prompt"]), str(row["answer"]))
        except OSError as problem:
            raise UserError(f"{key} {file}: cannot be read: {problem.strerror or problem}") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f'{key} {file}: expected rows {{"prompt": …, "answer": …}}, or a results.json') from None
    missing = [prompt for prompt in prompts if _same(prompt) not in found]
    if missing:
        raise UserError(
            f"{key} {file}: no answer to {len(missing)} of {len(prompts)} prompts, e.g. {str(missing[0])!r:.80}"
        )
    return [found[_same(prompt)] for prompt in prompts]


def _same(prompt: Any) -> str:
    """A question alone and the same question as a list of one message are one prompt."""
    if isinstance(prompt, list) and len(prompt) == 1 and prompt[0].get("role") == "user":
        prompt = prompt[0]["content"]
    return json.dumps(prompt, ensure_ascii=False)
