"""What a run is told: YAML and overrides, read and validated. The keys themselves stand in keys.py and methods.py.

    config = load("configs/dpo_tiny.yaml", overrides={"dpo.beta": 0.2})

Unknown keys are refused, all problems are reported at once, each with where it stands, and nothing here imports torch:
a wrong config fails in a fraction of a second.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from posttrain.config.methods import (
    METHODS,
    REFUSED,
    module_of,
)
from posttrain.config.section import Section, section_in
from posttrain.config.yaml_file import read_yaml
from posttrain.errors import UserError


def load(
    path: str | os.PathLike | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    method: str | None = None,
    origin: str = "overrides",
) -> Any:
    """Read a YAML file, apply overrides, validate. The method is the one group of the file that names one (sft:, dpo:
    …).

    overrides: {"dpo.beta": 0.2}; a unique leaf name will do ("beta"). origin: what messages call the overrides.
    Raises UserError with every problem found.
    """
    return resolve(path, overrides, method=method, origin=origin)[0]


def resolve(
    path: str | os.PathLike | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    method: str | None = None,
    origin: str = "overrides",
) -> tuple[Any, dict[str, str]]:
    """load(), and where each value came from: {"dpo.beta": "command line"}; what is not among them is a default."""
    values, places = read_yaml(Path(path)) if path is not None else ({}, {})
    present = [name for name in METHODS if name in values]
    if method is None:
        if len(present) != 1:
            raise UserError(
                f"{path}: cannot tell the method: exactly one of the groups {', '.join(METHODS)} must stand in it, found {present or 'none'}"
            )
        method = present[0]
    elif present and method not in present:
        raise UserError(f"{path}: this is a config for {module_of(present[0])}, not for {module_of(method)}")
    config = validate(METHODS[method], values, places, path, overrides or {}, origin)
    if config.output.dir is None:
        config.output.dir = f"outputs/{Path(path).stem}" if path is not None else f"outputs/{config.method}"
    return config, places


def validate(kind: type[Section], values: dict, places: dict, path: Any, overrides: dict[str, Any], origin: str) -> Any:
    """values with the overrides put in -> a `kind`. places: where each value came from, for the messages."""
    problems: list[str] = []
    keys = [key for key, *_ in describe(kind)]
    given: set[str] = set()
    for name, value in _flat(overrides, keys).items():
        key = name.replace("-", "_")
        if key not in keys and not _open_ended(key, keys):
            matches = [k for k in keys if k.rsplit(".", 1)[-1] == key]
            matches = [
                k for k in matches if k == f"training.{key}"
            ] or matches  # --seed is training.seed, not data.seed
            matches = [k for k in matches if not k.startswith("evaluation.")] or matches  # --samples is output.samples
            if len(matches) > 1:
                problems.append(f"{origin}: '{name}' could be {' or '.join(matches)}: give the group too")
                continue
            key = matches[0] if matches else key
        if key in given:
            problems.append(f"{origin}: {key} is given twice")
        given.add(key)
        _put(values, key, os.fspath(value) if isinstance(value, os.PathLike) else value)
        places[key] = origin

    config: Any = None
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        problems += [_sentence(e, keys, places, path) for e in error.errors()]
    if problems:
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError("\n  ".join([f"{head} in the configuration", *problems]))
    return config


def _sentence(error: Any, keys: list[str], places: dict[str, str], path: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    named = sorted((k for k in places if "." in k and k in error["msg"]), key=lambda k: places[k].startswith(str(path)))
    where = next((places[k] for k in (key, *_parents(key), *named) if k in places), str(path or "configuration"))
    if error["type"] == "extra_forbidden":
        if "." in (name := str(error["loc"][-1])):  # a dot is for the command line
            group, _, leaf = name.rpartition(".")
            return f"{where}: '{name}' is no key of a file: write {leaf} below {group.replace('.', ': ')}:"
        leaf = key.rsplit(".", 1)[-1]
        if leaf in REFUSED:
            return f"{where}: '{leaf}' {REFUSED[leaf]}"
        return f"{where}: unknown key '{leaf}'" + _in(key) + _suggestion(key, keys)
    if error["type"] == "missing":
        in_file = "in the file or " if path is not None else ""
        return f"{where}: '{key}' is missing: give it {in_file}as --{key} VALUE"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = error["input"] if where == "command line" else repr(error["input"])
    got = "" if error["type"] == "value_error" else f", got {given}"
    return f"{where}: {key + ': ' if key else ''}{message}{got}"


def _in(key: str) -> str:
    return f" in {key.rsplit('.', 1)[0]}" if "." in key else ""


def _suggestion(key: str, keys: list[str]) -> str:
    group, _, leaf = key.rpartition(".")
    groups = {k.split(".")[0] for k in keys}
    siblings = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == group] if group else sorted(groups)
    if close := difflib.get_close_matches(leaf, siblings or sorted(groups), n=1, cutoff=0.6):
        return f", did you mean '{close[0]}'?"
    leaves = {k.rpartition(".")[2]: k for k in keys}
    if close := difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75):
        return f", did you mean '{leaves[close[0]]}'?"
    return f"; known here: {', '.join(siblings or sorted(groups))}"


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]


def _flat(overrides: dict[str, Any], keys: list[str], prefix: str = "") -> dict[str, Any]:
    """{"dpo": {"beta": 0.2}} means {"dpo.beta": 0.2}: a group is merged into the file's, never put in its place."""
    out: dict[str, Any] = {}
    for name, value in overrides.items():
        whole = prefix + str(name)
        if isinstance(value, dict) and any(k.startswith(whole + ".") for k in keys):
            out |= _flat(value, keys, whole + ".")
        else:
            out[whole] = value
    return out


def _open_ended(key: str, keys: list[str]) -> bool:
    return any(key.startswith(k + ".") for k in keys if k.endswith((".overrides", ".shape", ".chat_template_kwargs")))


def _put(values: dict, key: str, value: Any) -> None:
    if ".overrides." in key:  # ladder.grpo.overrides.training.max_steps: the rest is one key of the stage's own config
        head, _, tail = key.partition(".overrides.")
        parts = [*head.split("."), "overrides", tail]
    else:
        parts = key.split(".")
    for part in parts[:-1]:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[parts[-1]] = value


def describe(kind: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Every leaf key of a config class: (key, type, default, meaning)."""
    out = []
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if (group := section_in(annotation)) is not None:
            out += describe(group, f"{prefix}{name}.")
            continue
        default = "(required)" if field.is_required() else str(field.get_default(call_default_factory=True))
        out.append((prefix + name, type_name(annotation), default, field.description or ""))
    return out


def type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if args := get_args(annotation):
        if get_origin(annotation) in (list, dict):
            return f"{get_origin(annotation).__name__} of {type_name(args[-1])}"
        return " | ".join("none" if a is type(None) else type_name(a) for a in args)
    return getattr(annotation, "__name__", str(annotation)).lower()


def flat(values: dict, prefix: str = "") -> dict[str, Any]:
    """{"dpo": {"beta": 0.1}} -> {"dpo.beta": 0.1}"""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def save(config: Section, path: Path) -> None:
    """The resolved config as YAML; load() reads it back. Without output.overwrite: that was said of one start, not of
    the next."""
    values = config.model_dump()
    del values["output"]["overwrite"]
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
