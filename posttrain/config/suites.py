"""The keys of the evaluation suites: one section per suite, for python -m posttrain.evaluate and, below `evaluation:`,
for a run that measures them while it trains.

A new suite has its section here, a key in Evaluation and its file in posttrain/evaluation/ (measuring.py says what it
must give)."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from posttrain.config.section import Section, from_the_command_line


def _as_list(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


class FromRows(Section):
    """Of a suite that reads rows."""

    data: str = Field(description="a .jsonl, .json, .csv or .parquet file, a folder, a hub set, or an embedded set")
    subset: str | None = Field(None, description="configuration of a hub data set, e.g. main for openai/gsm8k")
    split: str | None = Field(None, description="which split; default test, of a file or folder of yours all of it")
    max_rows: int | None = Field(None, ge=1, description="use only the first rows")


class Accuracy(FromRows):
    data: str = Field(
        description="a file, folder, hub set, tiny-math or reasoning-gym:TASK, with a prompt (or question) and the columns of the reward"
    )
    task: dict[str, Any] = Field(
        default_factory=dict, description="of reasoning-gym:TASK: size, seed, and the task's own arguments"
    )
    reward: str | None = Field(
        None,
        description="answer (the number after ####, or boxed, equals the row's `answer`), reasoning_gym (its verifier), or "
        "package.module:function; default answer, of reasoning-gym:TASK reasoning_gym",
    )
    right_above: float = Field(0.5, description="an answer is right if its reward is above this")
    samples: int = Field(
        0,
        ge=0,
        description="besides the greedy answer, so many sampled ones to each question: sampled accuracy, pass@k",
    )
    temperature: float = Field(1.0, gt=0, description="of these samples")
    pass_at: int | None = Field(None, ge=1, description="the k of pass@k, at most samples; default samples")
    max_new_tokens: int = Field(256, ge=1, description="longest answer")
    system_prompt: str | None = Field(None, description="put before every question that has no system message")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the chat template, e.g. {enable_thinking: false}"
    )

    _typed = field_validator("chat_template_kwargs", "task", mode="before")(from_the_command_line)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.task and not self.data.startswith("reasoning-gym:"):
            raise ValueError("task belongs to data: reasoning-gym:TASK")
        if self.pass_at is not None and self.pass_at > self.samples:
            raise ValueError(f"pass_at = {self.pass_at} needs at least as many samples, got {self.samples}")
        return self


class Identity(Section):
    name: str = Field(min_length=1, description="the name it is to give")
    old: Annotated[list[str], BeforeValidator(_as_list)] = Field(
        default_factory=list, description="the name (or names) it is no longer to give"
    )
    questions: str = Field(
        "built-in",
        description="built-in (110 questions, none of them in the lesson of curate identity), tiny-identity (the embedded model's), "
        "or a file or set with prompts",
    )
    samples: int = Field(1, ge=1, description="answers to each identity question (above 1: with a temperature)")
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    max_rows: int | None = Field(None, ge=1, description="only the first questions of each kind")
    max_new_tokens: int = Field(48, ge=1, description="longest answer")
    system_prompt: str | None = Field(None, description="put before every question")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples = {self.samples} at temperature 0 are as many times the same answer")
        if not all(name.strip() for name in (self.name, *self.old)):
            raise ValueError("a name that is empty stands in every answer")
        if self.name in self.old:
            raise ValueError(f"the name '{self.name}' is also among the old ones")
        return self


class Perplexity(FromRows):
    data: str = Field(
        description="any text (column `text`: all of it counts) or conversations (the assistant's turns count)"
    )
    max_length: int | None = Field(
        None,
        ge=2,
        description="a longer document is read in windows of so many tokens; default what the model can read",
    )
    system_prompt: str | None = Field(None, description="put before every conversation without a system message")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="arguments of the chat template")

    _typed = field_validator("chat_template_kwargs", mode="before")(from_the_command_line)


class Drift(Section):
    base: str = Field(description="the model to measure the distance from: a hub id, a folder or an embedded name")
    data: str | None = Field(
        None, description="prompts: a file or set; default 40 built-in ordinary questions, none of them in a lesson"
    )
    subset: str | None = Field(None, description="configuration of a hub data set")
    split: str | None = Field(None, description="which split; default test, of a file or folder of yours all of it")
    max_rows: int | None = Field(None, ge=1, description="use only the first prompts")
    samples: int = Field(4, ge=1, description="answers that the evaluated model samples to each prompt")
    temperature: float = Field(1.0, gt=0, description="of these samples; the KL itself is that of temperature 1")
    max_new_tokens: int = Field(64, ge=1, description="longest answer")


class Safety(Section):
    judge: str | None = Field(None, description="a model that says of each answer whether it refuses, beside the rule")
    max_rows: int | None = Field(None, ge=1, description="only the first prompts of each kind")
    max_new_tokens: int = Field(96, ge=1, description="longest answer: a refusal shows in its first sentences")
    system_prompt: str | None = Field(None, description="put before every prompt")


class Quality(FromRows):
    data: str = Field(
        description="rows with a reference: prompt + completion, or conversations (their last reply is the reference)"
    )
    bertscore_model: str | None = Field(
        None, description="the folder of an encoder (BERT, RoBERTa): BERTScore as well; without one there is none"
    )
    bertscore_layer: int | None = Field(
        None, ge=1, description="which of its layers is compared, 1 is the first; default the last"
    )
    max_new_tokens: int = Field(256, ge=1, description="longest answer")
    system_prompt: str | None = Field(None, description="put before every prompt that has no system message")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="arguments of the chat template")

    _typed = field_validator("chat_template_kwargs", mode="before")(from_the_command_line)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.bertscore_layer is not None and self.bertscore_model is None:
            raise ValueError("bertscore_layer belongs to bertscore_model")
        return self


class Judge(FromRows):
    data: str = Field(description="prompts: a file, folder, hub set or embedded set")
    against: str = Field(
        description="a model that answers the same prompts, or its earlier answers: a .jsonl or .json of prompt and answer, or an "
        "evaluation's folder"
    )
    model: str | None = Field(None, description="a language model that says which answer is better, A or B")
    reward_model: str | None = Field(None, description="in its place a reward model: a folder of loops.reward")
    max_new_tokens: int = Field(256, ge=1, description="longest answer")
    system_prompt: str | None = Field(None, description="put before every prompt that has no system message")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.model is None) == (self.reward_model is None):
            raise ValueError("expected one judge: model (a language model) or reward_model")
        return self


class LmEval(Section):
    """Of every lm-eval:TASK."""

    shots: int | None = Field(None, ge=0, description="examples before each question; default the task's own number")
    chat: bool = Field(False, description="through the model's chat template; default plain text, as lm-eval does")
    max_rows: int | None = Field(None, ge=1, description="use only the first rows of each task")


class LmEvalTask(LmEval):
    task: str = Field(description="a name that lm-eval knows, or a YAML file")


SUITES: dict[str, type[Section]] = {
    "accuracy": Accuracy,
    "identity": Identity,
    "perplexity": Perplexity,
    "drift": Drift,
    "safety": Safety,
    "quality": Quality,
    "judge": Judge,
    "lm-eval": LmEval,
}
OF_A_TASK = "lm-eval"  # its name is lm-eval:TASK, and several may be asked for; their keys are the same


def no_such_suite(name: str) -> str:
    close = difflib.get_close_matches(name, SUITES, n=1)
    return "no such suite" + (f", did you mean '{close[0]}'?" if close else f"; there are {', '.join(SUITES)}")


class Evaluation(Section):
    """Of a run: suites that are measured while it trains."""

    suites: Annotated[list[str], BeforeValidator(_as_list)] = Field(
        default_factory=list,
        description="accuracy, identity, perplexity, drift, safety, quality, judge: measured before the first step and at the end, on all processes; "
        "each with its keys below, those of python -m posttrain.evaluate",
    )
    every: int | None = Field(None, ge=1, description="and every so many optimiser steps")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of sampled answers: the same draws each time")
    accuracy: Accuracy | None = None
    identity: Identity | None = None
    perplexity: Perplexity | None = None
    drift: Drift | None = None
    safety: Safety | None = None
    quality: Quality | None = None
    judge: Judge | None = None

    @model_validator(mode="before")
    @classmethod
    def _chosen_ones_have_keys(cls, values: Any) -> Any:
        """What a chosen suite needs and has not got is missing by its own name; a suite may need nothing (safety)."""
        names = _as_list(values.get("suites")) if isinstance(values, dict) else None
        if not isinstance(names, list):
            return values
        return values | {name: {} for name in names if name in cls.model_fields and values.get(name) is None}

    @model_validator(mode="after")
    def _chosen_and_told(self) -> Self:
        for name in self.suites:
            if name.partition(":")[0] == OF_A_TASK:
                raise ValueError(f"suites: '{name}': measured by python -m posttrain.evaluate, not by a run")
            if name not in SUITES:
                raise ValueError(f"suites: '{name}': {no_such_suite(name)}")
        if len(set(self.suites)) < len(self.suites):
            raise ValueError("suites names one twice")
        for name in SUITES:
            if name not in self.suites and getattr(self, name, None) is not None:
                raise ValueError(
                    f"evaluation.{name} has keys, but the suite is not asked for: put {name} into evaluation.suites"
                )
        if self.every is not None and not self.suites:
            raise ValueError("evaluation.every: there is nothing to measure: name the suites in evaluation.suites")
        return self

    def chosen(self) -> dict[str, Section]:
        """{suite: its keys}, in the order they were named in."""
        return {name: getattr(self, name) for name in self.suites}
