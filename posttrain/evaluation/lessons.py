"""What is measured before and after each lesson of posttrain.real: three suites, on prompts that no lesson has. What a
lesson teaches, and beside it what it should have left alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from posttrain.config.section import Section
from posttrain.config.suites import Accuracy, Identity, Perplexity
from posttrain.data import questions, worked
from posttrain.evaluation.results import Measured
from posttrain.evaluation.scores import Score, mean, proportion
from posttrain.evaluation.subjects import Subject

LONGEST = 48  # tokens of an answer to a problem or to a question about the name


def options(real: Any, ordinary: Path) -> dict[str, Section]:
    """The keys of the three suites. real: config.real; ordinary: where ordinary_rows() were written."""
    task = real.task | {"size": real.problems, "seed": 0}
    names = {"name": real.new_name, "old": [real.old_name]}
    return {
        "accuracy": Accuracy(data=worked.TASK, task=task, samples=1, temperature=1.0, max_new_tokens=LONGEST),
        "identity": Identity(**names, max_new_tokens=LONGEST),
        "perplexity": Perplexity(data=str(ordinary)),
    }


def ordinary_rows(subject: Subject) -> list[dict[str, str]]:
    """What the model says to ordinary questions before the first lesson, up to its last whole sentence: SFT rows, whose
    perplexity tells how far later models have moved from it."""
    asked = questions.ORDINARY_TEST
    said = [answer.text for (answer,) in subject.ask(asked, max_new_tokens=64, temperature=0.7)]
    whole = [text[: 1 + max(text.rfind(end) for end in ".!?")] for text in said]
    return [{"prompt": q, "completion": text} for q, text in zip(asked, whole, strict=True) if text]


def score(measured: Measured, name: str) -> Score:
    """The suites' scores by their names; and, of the sampled answers to the problems, the share that shows a
    calculation ("worked") and their mean length ("length")."""
    if name in ("worked", "length"):
        drawn = [record["sampled"][0] for record in measured.outcomes["accuracy"].records]
        if name == "length":
            return mean(name, "tokens of a sampled answer", [a["tokens"] for a in drawn], "problems", better="neither")
        about = "sampled answers that show a calculation"
        return proportion(name, about, ["=" in a["text"] for a in drawn], "problems", better="neither")
    return next(s for outcome in measured.outcomes.values() for s in outcome.scores if s.name == name)


def ten_answers(measured: Measured) -> list[tuple[str, str]]:
    """(question, greedy answer): three problems, three questions about the name, two closed and two ordinary ones."""
    found = []
    for suite, part, count in (("accuracy", "problems", 3), ("identity", "identity", 3), ("identity", "closed", 2), ("identity", "ordinary", 2)):  # fmt: skip
        records = [record for record in measured.outcomes[suite].records if record["part"] == part]
        found += [(record["prompt"], record["answers"][0]["text"]) for record in records[:: max(1, len(records) // count)][:count]]  # fmt: skip
    return found


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """A run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def seconds_of(rows: list[dict[str, float]]) -> float:
    """Of all steps; the clock of a run that was resumed begins again."""
    clock = [0.0, *(row["seconds"] for row in rows)]
    return sum(b - a if b > a else b for a, b in itertools.pairwise(clock))
