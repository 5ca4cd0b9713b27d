"""Suite lm-eval:TASK: a task of EleutherAI's lm-evaluation-harness, on any model that the loops load.

TASK is a name that lm-eval knows (a task or a group), or a YAML file of your own, whose data_files are looked for
beside it first. lm-eval asks and counts: its figures, its prompts, its standard errors (the interval is ± 1.96 of them;
of a share at 0 or 1, where they are 0, Wilson's). It is handed the loaded model, so an adapter needs no folder.

Where the mean of what lm-eval logs of each item is its figure, two models are compared in pairs; of other figures (its
corpus scores) lm-eval keeps no value for an item, and they stand side by side without a verdict.
"""

from __future__ import annotations

import difflib
import logging
import math
from pathlib import Path
from typing import Any

import torch

from posttrain import hub
from posttrain.config.suites import LmEvalTask
from posttrain.errors import UserError, reason
from posttrain.evaluation.intervals import wilson
from posttrain.evaluation.scores import Better, Outcome, Score
from posttrain.evaluation.subjects import Subject

Z = 1.96  # standard errors to each side
LONGEST = 200  # characters of what an answer choice says in results.json


class LmEval:
    def __init__(self, options: LmEvalTask):
        self.options = options
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as missing:
            raise UserError(
                f"--suite lm-eval:{options.task} needs an extra ({missing}): pip install -r requirements-eval.txt"
            ) from None
        own = Path(options.task).suffix in (".yaml", ".yml")
        manager = TaskManager(include_defaults=not own)
        self.name = f"--suite lm-eval:{options.task}"
        if not own and options.task not in manager.all_tasks:
            close = difflib.get_close_matches(options.task, manager.all_tasks, n=3)
            hint = f", did you mean {' or '.join(close)}?" if close else ""
            raise UserError(f"{self.name}: lm-eval knows no such task{hint} (a file of yours ends in .yaml)")
        hub.use_cache_if_unreachable()
        try:
            self.loaded = manager.load([_own(Path(options.task)) if own else options.task])
        except UserError:
            raise
        except Exception as problem:  # whatever lm-eval and the hub say of a task that is broken, or not there
            raise UserError(
                f"{self.name}: the task or its data cannot be loaded: {reason(problem)} (a stock task fetches its data from the hub)"
            ) from None
        for task in self.loaded["tasks"].values():
            if options.shots is not None:
                task.set_config(key="num_fewshot", value=options.shots)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=1234)  # lm-eval's own default
            self._find_examples(task)

    def _find_examples(self, task: Any) -> None:
        """Where a task has nothing but its questions, the examples are others of them: lm-eval would take the very one
        that is asked, with its answer. And too few are said now."""
        shots = task.get_config("num_fewshot")
        if not shots or not hasattr(task, "sampler"):
            return
        told = task.fewshot_cfg
        if told.split is None and told.samples is None and not (task.has_training_docs() or task.has_validation_docs()):
            told.split = task.config.test_split
        there = len(task.sampler.fewshot_docs()) - (told.split == task.config.test_split)
        if shots > there:
            raise UserError(
                f"--lm-eval.shots {shots}: {task.config.task} has {there} examples to put before a question"
            )

    def __call__(self, subject: Subject) -> Outcome:
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        if self.options.chat and subject.tokenizer.chat_template is None:
            raise UserError(f"--lm-eval.chat: {subject.name} has no chat template")
        with subject.reading(), torch.random.fork_rng(devices=[]):
            wrapped = HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=subject.batch_size)
            try:
                found = evaluate(
                    wrapped,
                    self.loaded,
                    limit=self.options.max_rows,
                    bootstrap_iters=1000,
                    apply_chat_template=self.options.chat,
                    fewshot_as_multiturn=self.options.chat,  # examples as turns of their own: its command's default
                )
            except (AssertionError, ValueError) as problem:  # lm-eval's own refusals
                raise UserError(f"{self.name}: lm-eval cannot ask {subject.name}: {reason(problem)}") from None
        made = outcome(found, list(self.loaded["tasks"]))
        made.remarks.extend(cut(found, subject, wrapped.max_length, wrapped.max_gen_toks))
        return made


def outcome(found: dict[str, Any], tasks: list[str]) -> Outcome:
    """lm-eval's results as scores and records."""
    scores, records, bare = [], [], []
    items: dict[tuple[str, str], list[float]] = {}  # (task, "acc,none") -> of each item
    for task in tasks:
        samples = found["samples"][task]
        filters = list(dict.fromkeys(sample["filter"] for sample in samples))
        for name in filters:
            part = task if len(filters) == 1 else f"{task}, {name}"
            of_filter = sorted((s for s in samples if s["filter"] == name), key=lambda s: s["doc_id"])
            records += [_record(sample, part) for sample in of_filter]
            for metric in of_filter[0]["metrics"]:
                values = [sample[metric] for sample in of_filter]
                if all(isinstance(value, (int, float)) for value in values):
                    items[task, f"{metric},{name}"] = [float(value) for value in values]
    groups = [name for name in found.get("groups", {}) if name not in tasks]
    for name in [*groups, *tasks]:
        figures = found["results"][name]
        better = found.get("higher_is_better", {}).get(name, {})
        for key, value in figures.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = figures.get(f"{metric}_stderr,{filtered}")
            label = metric if filtered == "none" else f"{metric} ({filtered})"
            label = label if len(tasks) == 1 else f"{name} {label}"
            way: Better = {True: "higher", False: "lower"}.get(better.get(metric), "neither")  # type: ignore[assignment]
            own = items.get((name, key), [])
            part = name if len({s["filter"] for s in found["samples"].get(name, ())}) < 2 else f"{name}, {filtered}"
            scores.append(_score(label, f"{metric} of {name}, by lm-eval", value, error, own, part, way))
            if scores[-1].uncompared:
                bare.append(label)
    remarks = [f"lm-eval has no value for each item of {', '.join(bare)}: no verdict on it"] if bare else []
    return Outcome(scores, records, remarks)


def cut(found: dict[str, Any], subject: Subject, limit: int, answer: int) -> list[str]:
    """lm-eval takes from the beginning of a prompt what the model does not read. answer: tokens left for one that is
    generated, where its task does not say."""

    def too_long(prompt: str, *more: Any) -> bool:
        if not more:  # a text that is read: in windows
            return False
        if isinstance(more[0], str):  # a choice, whose last token is predicted and not read
            return tokens(prompt + more[0]) - 1 > limit
        return tokens(prompt) + more[0].get("max_gen_toks", answer) > limit

    def tokens(text: str) -> int:
        return len(subject.tokenizer(text)["input_ids"])

    remarks = []
    for task, samples in found["samples"].items():
        asked = {sample["doc_id"] for sample in samples}
        longer = {s["doc_id"] for s in samples if any(too_long(*arguments) for arguments in s["arguments"])}
        if longer:
            remarks.append(
                f"{subject.name}: {len(longer)} of {len(asked)} prompts of {task} are longer than the {limit} tokens that it reads: "
                "lm-eval has cut off their beginning"
            )
    return remarks


def _score(name: str, about: str, value: float, error: Any, items: list[float], part: str, better: Better) -> Score:
    """value ± 1.96 standard errors; in pairs where the items' mean is the value."""
    share = bool(items) and set(items) <= {0.0, 1.0}
    low = high = math.nan
    if isinstance(error, (int, float)) and math.isfinite(error):
        low, high = value - Z * error, value + Z * error
        if share:
            low, high = (max(0.0, low), min(1.0, high)) if error > 0 else wilson(sum(items), len(items))
    elif len(items) == 1 and share:  # of one lm-eval has no error
        low, high = wilson(sum(items), 1)
    if not items or not math.isclose(sum(items) / len(items), value, rel_tol=1e-6, abs_tol=1e-9):
        return Score(name, about, value, low, high, [], None, "mean", part, better, uncompared=True, unit=name)
    kind, unit = ("proportion", "") if share else ("mean", name)
    return Score(name, about, value, low, high, items, None, kind, part, better, unit=unit)  # type: ignore[arg-type]


def _record(sample: dict[str, Any], part: str) -> dict[str, Any]:
    asked = sample["arguments"][0]
    first = sample["filtered_resps"][0]
    if len(asked) == 1:  # a text that is read (loglikelihood_rolling)
        said = None
    elif isinstance(first, str):
        said = first
    else:  # log-probs of the choices: the likeliest one
        said = str(sample["arguments"][max(range(len(sample["resps"])), key=lambda i: _number(sample["filtered_resps"][i]))][1])  # fmt: skip
    metrics = {name: sample[name] for name in sample["metrics"] if isinstance(sample[name], (int, float))}
    answers = {} if said is None else {"answers": [{"text": said.strip()[:LONGEST]}]}
    return {"part": part, "prompt": asked[0], "wanted": str(sample["target"])[:LONGEST], **metrics, **answers}


def _number(response: Any) -> float:
    value = response[0] if isinstance(response, (list, tuple)) else response
    return float(value) if isinstance(value, (int, float)) else -math.inf


def _own(path: Path) -> dict[str, Any]:
    """A YAML of one's own; its data_files are found beside it, wherever the command was started."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not path.is_file():
        raise UserError(f"--suite lm-eval:{path}: no such file")
    task = load_yaml(path)
    kwargs = task.get("dataset_kwargs") or {}
    beside = lambda name: str(path.parent / name) if (path.parent / name).is_file() else name  # noqa: E731

    def found(files: Any) -> Any:
        if isinstance(files, dict):
            return {key: found(value) for key, value in files.items()}
        return [beside(name) for name in files] if isinstance(files, list) else beside(files)

    if "data_files" in kwargs:
        task["dataset_kwargs"] = kwargs | {"data_files": found(kwargs["data_files"])}
    return task
