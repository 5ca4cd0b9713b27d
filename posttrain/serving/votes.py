"""What people voted, as rows to train on.

    votes.jsonl        {prompt, chosen, rejected, …}: what python -m loops.dpo --data.name votes.jsonl reads as it is
    votes.ties.jsonl   ties, both bad, and votes that make no pair: one answer is empty, both are the same, or the
                       better one was cut off (as a chosen answer it would teach to stop in the middle)

Both are counted for the win rate: wins, a tie (or both bad) counts half, with Wilson's 95 % interval.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from posttrain.data.files import refuse_out
from posttrain.evaluation.intervals import Proportion
from posttrain.serving.appended import Appended

Said = Literal["left", "right", "tie", "both_bad"]


@dataclass(frozen=True)
class Side:
    """One of the two answers."""

    model: str
    text: str
    finished: bool  # False: cut off at its most tokens
    seed: int
    reward: float | None = None


@dataclass(frozen=True)
class Vote:
    prompt: str
    left: Side
    right: Side
    said: Said
    temperature: float
    max_new_tokens: int

    @property
    def winner(self) -> Side | None:
        """None: neither. Of two answers that are the same, neither is better, whatever was said."""
        if self.left.text == self.right.text:
            return None
        return {"left": self.left, "right": self.right}.get(self.said)

    @property
    def apart(self) -> str | None:
        """Why it makes no pair to train on, in words; None: it makes one."""
        if self.said in ("tie", "both_bad"):
            return {"tie": "a tie", "both_bad": "both bad"}[self.said]
        if self.winner is None:
            return "the answers are the same, which is a tie"
        if not self.left.text.strip() or not self.right.text.strip():
            return "an answer is empty"
        if not self.winner.finished:
            return "the better answer was cut off: as a chosen one it would teach to stop in the middle"
        return None


class Votes:
    """The two files, and how often which model has won. A server that nobody votes on never opens them."""

    def __init__(self, path: str):
        """UserError: not a .jsonl file, or one that holds something else."""
        refuse_out(path)
        self.path = Path(path)
        self.pairs = Appended(self.path, _is_pair, "votes")
        self.ties = Appended(self.path.with_suffix(".ties.jsonl"), _is_tie, "votes")
        self.counts: Counter[tuple[str, str, str]] = Counter()  # (model, against, how it went for the first of them)
        self.made = 0  # pairs in the file
        self.opening, self.is_open = threading.Lock(), False

    def open(self) -> None:
        """For this server alone, from the first time on. UserError: another one writes there."""
        with self.opening:
            if self.is_open:
                return
            pairs = self.pairs.open()
            try:
                ties = self.ties.open()
            except BaseException:
                self.pairs.close()
                raise
            for row in pairs:
                self._count(row["chosen_model"], row["rejected_model"], "won")
            for row in ties:
                self._count(row["left"]["model"], row["right"]["model"], row["outcome"])
            self.made, self.is_open = len(pairs), True

    def close(self) -> None:
        self.pairs.close()
        self.ties.close()
        self.is_open = False

    def add(self, vote: Vote) -> None:
        """When it returns, the vote is on the disk. OSError: it is not."""
        left, right = vote.left.model, vote.right.model
        if vote.winner is None:
            outcome = "both_bad" if vote.said == "both_bad" else "tie"
        else:
            outcome = "won" if vote.winner is vote.left else "lost"
        if vote.apart is None:
            self.pairs.add(_pair(vote))
            self.made += 1
        else:
            self.ties.add(_tie(vote, outcome))
        self._count(left, right, outcome)

    def _count(self, model: str, against: str, outcome: str) -> None:
        self.counts[model, against, outcome] += 1

    def between(self, model: str, against: str) -> dict[str, Any]:
        """How often `model` won against the other; of a model against itself, how many votes there are."""

        def count(outcome: str, other_way: str) -> int:
            return self.counts[model, against, outcome] + self.counts[against, model, other_way] * (model != against)

        won, lost = count("won", "lost"), count("lost", "won")
        ties, both_bad = count("tie", "tie"), count("both_bad", "both_bad")
        n = won + lost + ties + both_bad
        names = {"model": model, "against": against, "votes": n}
        if model == against or not n:
            return names | {"ties": ties, "both_bad": both_bad, "win_rate": None}
        rate = Proportion(won + (ties + both_bad) / 2, n)
        more = {"won": won, "lost": lost, "ties": ties, "both_bad": both_bad, "win_rate": rate.value}
        return names | more | dict(zip(("low", "high"), rate.interval, strict=True))

    def standing(self, order: list[str]) -> list[dict[str, Any]]:
        """between() of all pairs of models that there are votes on. order: as the models are served; the win rate is
        that of the later one (the tuned one, mostly) against the earlier."""
        known = {name: place for place, name in enumerate(order)}

        def place(name: str) -> tuple[int, str]:
            return known.get(name, len(known)), name

        pairs = {tuple(sorted((a, b), key=place, reverse=True)) for (a, b, _), n in list(self.counts.items()) if n}
        return [self.between(a, b) for a, b in sorted(pairs, key=lambda pair: (place(pair[1]), place(pair[0])))]


def _pair(vote: Vote) -> dict[str, Any]:
    chosen, rejected = (vote.left, vote.right) if vote.winner is vote.left else (vote.right, vote.left)
    row = _asked(vote) | {"chosen": chosen.text, "rejected": rejected.text}
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        about = {"model": side.model, "finished": side.finished, "seed": side.seed} | _reward(side)
        row |= {f"{name}_{key}": value for key, value in about.items()}
    return row | {"left": "chosen" if chosen is vote.left else "rejected"} | _how(vote)


def _tie(vote: Vote, outcome: str) -> dict[str, Any]:
    """outcome: as it is counted: how it went for the left one."""
    sides = {
        name: {"text": side.text, "model": side.model, "finished": side.finished, "seed": side.seed} | _reward(side)
        for name, side in (("left", vote.left), ("right", vote.right))
    }
    return _asked(vote) | sides | {"vote": vote.said, "outcome": outcome, "why": vote.apart} | _how(vote)


def _asked(vote: Vote) -> dict[str, Any]:
    """A text that begins like a conversation of HH would be read as one (data/formats.py)."""
    as_messages = vote.prompt.startswith("\n\nHuman:")
    return {"prompt": [{"role": "user", "content": vote.prompt}] if as_messages else vote.prompt}


def _reward(side: Side) -> dict[str, Any]:
    return {} if side.reward is None else {"reward": side.reward}


def _how(vote: Vote) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"temperature": vote.temperature, "max_new_tokens": vote.max_new_tokens, "time": now}


def _is_pair(row: Any) -> bool:
    texts = ("chosen", "rejected", "chosen_model", "rejected_model")
    return isinstance(row, dict) and "prompt" in row and all(isinstance(row.get(name), str) for name in texts)


def _is_tie(row: Any) -> bool:
    if not isinstance(row, dict) or row.get("outcome") not in ("won", "lost", "tie", "both_bad"):
        return False
    sides = (row.get("left"), row.get("right"))
    return "prompt" in row and all(isinstance(side, dict) and isinstance(side.get("model"), str) for side in sides)
