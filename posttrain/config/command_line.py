"""The command line of a run: --config FILE --KEY VALUE …, read and validated before torch is imported.

    python -m loops.dpo --config configs/dpo_tiny.yaml --dpo.beta 0.2 --learning-rate 1e-4

A leaf name that is unique (or stands in training) may be given without its group, and dashes are underscores. Where a
command has options of its own and reads no config, it uses argparse.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import PurePath
from typing import Any

from pydantic import create_model

from posttrain.config.loading import describe, load, validate
from posttrain.config.methods import METHODS, module_of
from posttrain.config.section import Section
from posttrain.config.stages import SEVERAL, refuse_incomplete
from posttrain.config.suites import OF_A_TASK, SUITES, LmEvalTask, no_such_suite
from posttrain.config.trackers import refuse_missing
from posttrain.errors import UserError, clear_exit


def early_check(method: str) -> Any:
    """The first statement of a loop run as a command: parse and validate sys.argv before torch is imported."""
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        print(help_text(method))
        sys.exit(0)
    with clear_exit(f"\n(python -m {module_of(method)} --help lists every key)"):
        path, overrides = parse(arguments)
        config = load(path, overrides, method=method, origin="command line")
        refuse_incomplete(config)
        if method not in SEVERAL:
            refuse_missing(config.tracking.to)
        return config


def parse(arguments: list[str]) -> tuple[str | None, dict[str, Any]]:
    """["--config", "a.yaml", "--dpo.beta", "0.2", "--resume"] -> ("a.yaml", {"dpo.beta": "0.2", "resume": True})

    Values stay text: the key's own type decides what they mean, so a model may be called 010. A key without a value is
    true; several values, or [a, b], make a list; null and none mean no value."""
    path: str | None = None
    overrides: dict[str, Any] = {}
    i = 0
    while i < len(arguments):
        argument = arguments[i]
        if not argument.startswith("--") or argument == "--":
            hint = f"; did you mean --config {argument}?" if argument.endswith((".yaml", ".yml")) else ""
            raise UserError(f"command line: expected --KEY VALUE, got '{argument}'{hint}")
        key, equals, given = argument[2:].partition("=")
        values = [given] if equals else []
        i += 1
        while not equals and i < len(arguments) and not arguments[i].startswith("--"):
            values.append(arguments[i])
            i += 1
        if key in overrides or (key == "config" and path is not None):
            raise UserError(f"command line: --{key} is given twice")
        if key == "config":
            if len(values) != 1:
                raise UserError("command line: --config takes one file")
            path = values[0]
            continue
        if len(values) == 1 and values[0].startswith("[") and values[0].endswith("]"):
            values = [v.strip() for v in values[0][1:-1].split(",")]
            overrides[key] = values
        elif len(values) == 1:
            overrides[key] = None if values[0] in ("null", "none", "None") and not _takes(key, values[0]) else values[0]
        else:
            overrides[key] = values or True
    return path, overrides


def suite_options(names: list[str], overrides: dict[str, Any]) -> dict[str, Section]:
    """(["accuracy"], {"accuracy.data": "tiny-math"}) -> {"accuracy": Accuracy(data="tiny-math", …)}, in the order of
    `names`. lm-eval:some/FILE.yaml is called lm-eval:FILE. UserError with every problem found."""
    suites = [_suite_of(name) for name in names]
    for key in overrides:
        suite = key.partition(".")[0].replace("_", "-")
        if suite in SUITES and suite not in suites:
            raise UserError(f"--{key} is given, but the suite is not asked for: add --suite {suite}")
    fields: dict[str, Any] = {name.replace("-", "_"): (SUITES[name], ...) for name in dict.fromkeys(suites)}
    chosen = validate(create_model("Chosen", __base__=Section, **fields), {}, {}, None, overrides, "command line")
    found: dict[str, Section] = {}
    for name in dict.fromkeys(names):
        suite, _, task = name.partition(":")
        options = getattr(chosen, suite.replace("-", "_"))
        if task:
            options = LmEvalTask(task=task, **options.model_dump())
            name = f"{suite}:{PurePath(task).stem if task.endswith(('.yaml', '.yml')) else task}"
        if name in found:
            raise UserError(f"--suite: two tasks are called {name}: rename one of the files")
        found[name] = options
    return found


def _suite_of(name: str) -> str:
    """ "lm-eval:TASK" -> "lm-eval"; every other suite is called by its name alone."""
    suite, colon, task = name.partition(":")
    if suite == OF_A_TASK and not task:
        raise UserError(f"--suite '{name}': which task? {OF_A_TASK}:NAME, or {OF_A_TASK}:FILE.yaml")
    if suite not in SUITES or (colon and suite != OF_A_TASK):
        raise UserError(f"--suite '{name}': {no_such_suite(suite)}")
    return suite


def _takes(key: str, word: str) -> bool:
    """Is `word` one of the choices of this key (model.adapter: none)?"""
    leaf = key.replace("-", "_").rsplit(".", 1)[-1]
    kinds = [kind.split(" | ") for m in METHODS.values() for k, kind, *_ in describe(m) if k.rsplit(".", 1)[-1] == leaf]
    return any(word in kind and not {"int", "float", "str", "bool"} & set(kind) for kind in kinds)


def help_text(method: str) -> str:
    lines = [
        f"python -m {module_of(method)} --config FILE [--KEY VALUE ...]",
        "",
        "Every key below may stand in the YAML file (as nested groups) or on the command line, where it wins.",
        "A unique last part is enough: --learning-rate 1e-4 (--seed is training.seed). Several values make a list.",
    ]
    group = None
    for key, kind, default, meaning in describe(METHODS[method]):
        if "." not in key:
            lines.append("")
        elif key.split(".")[0] != group:
            group = key.split(".")[0]
            lines += ["", f"{group}:"]
        lines.append(f"  --{key}  [{kind}]  default: {default}")
        lines += textwrap.wrap(meaning, 100, initial_indent=" " * 8, subsequent_indent=" " * 8, break_on_hyphens=False)
    return "\n".join(lines)
