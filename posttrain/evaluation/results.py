"""results.json: every score and every answer of an evaluation, written, read again, and compared with another file.

    {"posttrain", "torch", "transformers", "settings", "options": {suite: its keys},
     "models": [{"name", "fingerprint", "parameters", "suites": {suite: {"scores", "records", "remarks"}}}]}

Reading and comparing need no torch and no model.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.errors import UserError, writing
from posttrain.evaluation.comparing import Difference, difference
from posttrain.evaluation.scores import Outcome, Score
from posttrain.run import written

FILES = ("results.json", "report.md", "scores.png")


@dataclass(frozen=True)
class Measured:
    """What the suites found of one model."""

    name: str
    about: dict[str, Any]  # fingerprint, parameters, lines that were said when it was loaded
    outcomes: dict[str, Outcome]


@dataclass
class Results:
    about: dict[str, Any]  # versions and settings
    options: dict[str, dict[str, Any]]  # of each suite
    models: list[Measured] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)  # of several files: what else differs in how they were made

    def differences(self) -> list[Difference]:
        """Every other model against the first, score by score."""
        found = []
        first, *others = self.models
        for other in others:
            for suite in (name for name in first.outcomes if name in other.outcomes):
                refuse_other_prompts(suite, first, other)
                theirs = {score.name: score for score in other.outcomes[suite].scores}
                for score in first.outcomes[suite].scores:
                    if score.name in theirs:
                        found.append(difference(suite, score, theirs[score.name], (first.name, other.name)))
        return found


def refuse_other_prompts(suite: str, a: Measured, b: Measured) -> None:
    """A paired test needs pairs: the same prompts in the same order."""
    asked = [[_asked(record) for record in of.outcomes[suite].records] for of in (a, b)]
    if asked[0] == asked[1]:
        return
    for names, mine, theirs in (((a.name, b.name), *asked), ((b.name, a.name), asked[1], asked[0])):
        if alone := [prompt for prompt in mine if prompt not in set(theirs)]:
            more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
            raise UserError(
                f"{suite}: {names[0]} and {names[1]} were not asked the same: {alone[0]!r:.100}{more} only of {names[0]}. "
                "Evaluate both on the same data"
            )
    raise UserError(f"{suite}: {a.name} and {b.name} were asked the same prompts in another order: evaluate both again")


def _asked(record: dict[str, Any]) -> str:
    """What a record is of: its part and prompt, and the right answer where there is one."""
    return json.dumps([record["part"], record["prompt"], *(record[k] for k in ("sha256", "wanted") if k in record)])


# ---------------------------------------------------------------- files


def refuse_folder(folder: Path, overwrite: bool) -> None:
    """Before anything is loaded: is --out new, empty, or an older evaluation that may be replaced?"""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(
            f"--out {folder}: {nearest} is {'not writable' if nearest.is_dir() else 'a file'}: name another"
        )
    if folder.is_dir() and any(folder.iterdir()):
        if "results.json" not in (written.noted(folder) or []):
            raise UserError(f"--out {folder} holds what no evaluation has written: name another folder")
        for name in FILES:
            if (strange := written.stranger(folder, name)) is not None:
                raise UserError(f"--out {folder}: {strange} is not of an evaluation: move it, or name another folder")
        if (folder / "results.json").exists() and not overwrite:
            raise UserError(f"--out {folder} holds an evaluation: give --overwrite to replace it, or another --out")


def write(folder: Path, results: Results) -> None:
    """results.json, whole or not at all; a report of older results that stands there goes."""
    models = [
        {"name": m.name, **m.about, "suites": {
            name: {"scores": [s.as_json() for s in o.scores], "records": o.records, "remarks": o.remarks}
            for name, o in m.outcomes.items()
        }}
        for m in results.models
    ]  # fmt: skip
    part = folder / "results.json.part"
    with writing(folder / "results.json"):
        written.note(folder, *FILES, part.name)
        for name in ("report.md", "scores.png"):
            written.remove(folder, name)
        values = results.about | {"options": results.options, "models": models}
        part.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(part, folder / "results.json")


def read(path: str) -> Results:
    """A results.json, or the folder that holds one."""
    file = Path(path).expanduser()
    file = file / "results.json" if file.is_dir() else file
    values: Any = None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        models = [
            Measured(
                model.pop("name"),
                {key: value for key, value in model.items() if key != "suites"},
                {name: _outcome(of) for name, of in model["suites"].items()},
            )
            for model in values.pop("models")
        ]
        return Results(values, values.pop("options"), models)
    except OSError as problem:
        raise UserError(f"{file}: cannot be read: {problem.strerror or problem}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        by = values.get("posttrain") if isinstance(values, dict) else None
        version = "" if by is None else f", or one of another version (posttrain {by}) that this one cannot read"
        raise UserError(f"{file}: not a results.json that python -m posttrain.evaluate has written{version}") from None


def _outcome(of: dict[str, Any]) -> Outcome:
    outcome = Outcome([Score.from_json(s) for s in of["scores"]], of["records"], of["remarks"])
    for record in outcome.records:
        _asked(record)  # KeyError: no part, no prompt
    return outcome


def side_by_side(paths: list[str]) -> Results:
    """Several files as one: the first model of the first file is what the others are compared with. A model that both
    have (before and after) is called by its file as well. Suites that were told something else are refused."""
    read_in = [read(path) for path in paths]
    names = [model.name for results in read_in for model in results.models]
    together = Results(read_in[0].about, dict(read_in[0].options), unlike=_made_otherwise(paths, read_in))
    for path, results in zip(paths, read_in, strict=True):
        for suite, options in results.options.items():
            ours = together.options.setdefault(suite, options)
            if changed := [key for key in {**ours, **options} if ours.get(key) != options.get(key)]:
                key = changed[0]
                raise UserError(
                    f"{suite}: {paths[0]} was made with {key} = {ours.get(key)!r:.60}, {path} with {options.get(key)!r:.60}: "
                    "their scores are not of the same thing"
                )
        for model in results.models:
            name = f"{model.name} ({path})" if names.count(model.name) > 1 else model.name
            together.models.append(Measured(name, model.about, model.outcomes))
    if not set(together.models[0].outcomes) & {s for model in together.models[1:] for s in model.outcomes}:
        raise UserError(f"{' and '.join(paths)} have no suite in common")
    return together


def _made_otherwise(paths: list[str], read_in: list[Results]) -> list[str]:
    """What may move a figure besides the models and what they were asked: precision, seed, versions."""

    def made(results: Results) -> dict[str, Any]:
        settings = results.about.get("settings", {})
        versions = {key: value for key, value in results.about.items() if key != "settings"}
        return {**{key: settings[key] for key in settings if key != "batch_size"}, **versions}

    lines, first = [], made(read_in[0])
    for path, other in zip(paths[1:], map(made, read_in[1:]), strict=True):
        differ = [f"{k} {other.get(k)}, not {first.get(k)}" for k in {**first, **other} if other.get(k) != first.get(k)]
        if differ:
            lines.append(f"{path} was not made as {paths[0]} was: {'; '.join(differ)}")
    return lines
