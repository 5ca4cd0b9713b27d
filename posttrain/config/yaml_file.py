"""A config file -> its values, and the line that each stands on. And what a file builds upon:

    extends: ../dpo_tiny.yaml     # everything of that file, except what stands here

Groups are merged key by key; a value, or a list, takes the place of the other file's. A file is for one method: where
it has a group of its own (kto:), the group of another method (dpo:) stays behind.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import yaml

from posttrain.config.methods import METHODS
from posttrain.errors import UserError

EXTENDS = "extends"


def read_yaml(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict, dict[str, str]]:
    """-> (values, {"training.seed": "sft.yaml, line 7"}), with those of the files that it extends.

    above: the files on the way here, each of which extends the next."""
    values, places = _one_file(path)
    if EXTENDS not in values:
        return values, places
    name, line = values.pop(EXTENDS), places.pop(EXTENDS)
    if not isinstance(name, str):
        raise UserError(f"{line}: extends takes one file, relative to this one, got {name!r}")
    base = Path(os.path.normpath(path.parent / name))
    above = (*above, path)
    if base.resolve() in [file.resolve() for file in above]:
        raise UserError(f"{line}: {' extends '.join(map(str, (*above, base)))}: a circle")
    if not base.is_file():
        raise UserError(f"{line}: extends {name}: {_no_such_file(base)}")
    under, lines = read_yaml(base, above)
    if any(method in values for method in METHODS):
        for method in METHODS.keys() & under.keys() - values.keys():
            del under[method]
            lines = {key: place for key, place in lines.items() if key.split(".")[0] != method}
    return _merged(under, values), lines | places


def _merged(under: dict, over: dict) -> dict:
    """over, on top of under. An empty group (None) changes nothing of a group."""
    out = dict(under)
    for name, value in over.items():
        below = under.get(name)
        if isinstance(below, dict) and (isinstance(value, dict) or value is None):
            out[name] = _merged(below, value or {})
        else:
            out[name] = value
    return out


def _one_file(path: Path) -> tuple[dict, dict[str, str]]:
    """One file, as it stands there. Broken YAML and duplicate keys are refused by line."""
    if not path.is_file():
        raise UserError(_no_such_file(path))
    try:
        text = path.read_text()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(
            f"{path}{f', line {mark.line + 1}' if mark else ''}: not valid YAML: {getattr(error, 'problem', None) or error}"
        ) from None
    if root is None:
        return {}, {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(
            f"{path}: expected groups such as model:, data:, training:, found a {type(root).__name__.removesuffix('Node').lower()}"
        )
    places: dict[str, str] = {}

    def walk(node: Any, prefix: str) -> None:
        if prefix.count(".") > 8:
            raise UserError(f"{path}: groups nested too deeply (an alias that contains itself?)")
        for key_node, value_node in node.value:
            key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
            if key in places:
                raise UserError(
                    f"{path}, line {line}: '{key}' is given twice (first on {places[key].rpartition(', ')[2]})"
                )
            places[key] = f"{path}, line {line}"
            if isinstance(value_node, yaml.MappingNode):
                walk(value_node, f"{key}.")

    walk(root, "")
    return values, places


def _no_such_file(path: Path) -> str:
    there = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, there, n=3, cutoff=0.5)
    hint = (
        f", did you mean {' or '.join(str(path.parent / name) for name in close)}?"
        if close
        else f"; {len(there)} .yaml files are there" * bool(there)
    )
    return f"{path}: no such file{hint}"
