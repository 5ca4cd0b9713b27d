"""Suites and models brought together: every suite measures every model, on the same prompts.

What a new suite must give:

1. its keys: a Section in config/suites.py, and a line in SUITES and in Evaluation there (they become --NAME.KEY of the
   command, and evaluation.NAME.KEY of a run);
2. a file here with a class, and a line in SUITES below:

       class Mine:
           def __init__(self, options): …                       reads its data and refuses what is wrong with it, before
                                                                any model is loaded
           def __call__(self, subject: Subject) -> Outcome: …   measures a *loaded* model: a command's, or a run's

   The model is met through the Subject alone (subjects.py): ask(prompts) -> answers with text, finished, tokens, logp;
   rollout(ids) where the tokens matter; logps(examples) to read a text; beside(name) for another model. A model that
   such a suite also needs may be handed in as an optional argument, so that a run need not load it twice.
3. an Outcome (scores.py): scores made by proportion(), mean(), ratio() or corpus(), each with *one item per record* of
   its part, in the records' order, so that two models can be compared in pairs; records with "part", "prompt" and
   everything that was said; what must stand beside a figure as the score's note;
4. a test whose model says what it is told to (tests/posttrain/evaluation/), with figures by hand.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any

import torch

from posttrain import models
from posttrain.config.section import Section
from posttrain.errors import UserError
from posttrain.evaluation.accuracy import Accuracy
from posttrain.evaluation.drift import Drift
from posttrain.evaluation.harness import LmEval
from posttrain.evaluation.judge import Judge
from posttrain.evaluation.naming import Identity
from posttrain.evaluation.perplexity import Perplexity
from posttrain.evaluation.quality import Quality
from posttrain.evaluation.results import Measured, Results
from posttrain.evaluation.safety import Safety
from posttrain.evaluation.scores import Outcome
from posttrain.evaluation.subjects import Subject

Suite = Callable[[Subject], Outcome]
SUITES: dict[str, Callable[[Any], Suite]] = {
    "accuracy": Accuracy,
    "identity": Identity,
    "perplexity": Perplexity,
    "drift": Drift,
    "safety": Safety,
    "quality": Quality,
    "judge": Judge,
    "lm-eval": LmEval,
}


def prepare(options: dict[str, Section]) -> dict[str, Suite]:
    """Every suite with its data read: what is wrong is said now."""
    return {name: SUITES[name.partition(":")[0]](of_suite) for name, of_suite in options.items()}


def measure(subject: Subject, suites: dict[str, Suite]) -> Measured:
    """All suites of one loaded model."""
    return Measured(subject.name, subject.about(), {name: suite(subject) for name, suite in suites.items()})


def evaluate(
    names: list[str],
    options: dict[str, Section],
    *,
    device: str = "auto",
    dtype: str = "float32",
    batch_size: int = 8,
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[Results]:
    """The results after each model, so that a model which fails late costs no other its figures. One model is held at a
    time, besides the bases and judges."""
    if len(set(names)) < len(names):
        raise UserError("--model names a model twice: give each once")
    on = models.device_of(device)
    suites = prepare(options)
    for name in names:
        models.loading.find(name, "--model")
    results = Results(about(on, dtype, batch_size, seed), {n: o.model_dump(mode="json") for n, o in options.items()})
    others: dict[str, Subject] = {}
    for name in names:
        subject, lines = Subject.load(
            name, device=on, compute=getattr(torch, dtype), batch_size=batch_size, seed=seed, others=others
        )
        for line in lines:
            tell(f"{name}: {line}")
        results.models.append(measure(subject, suites))
        del subject  # before the next one is loaded
        yield results


def about(device: str, dtype: str, batch_size: int, seed: int) -> dict[str, Any]:
    """What results.json says of how its figures were made."""

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a copy of the files that was never installed
            return "not installed"

    settings = {"device": device, "dtype": dtype, "batch_size": batch_size, "seed": seed}
    return {**{package: version(package) for package in ("posttrain", "torch", "transformers")}, "settings": settings}
