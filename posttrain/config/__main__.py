"""Configs without running them.

python -m posttrain.config template dpo > my_dpo.yaml        every key with its meaning and default, ready to run
python -m posttrain.config validate configs/*.yaml            all problems of all files, each with its line
python -m posttrain.config show configs/dpo_tiny.yaml --dpo.beta 0.2    what results, and where each value comes from
python -m posttrain.config list                               what is there, each with its paper
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from posttrain.config.command_line import parse
from posttrain.config.loading import load, resolve, type_name
from posttrain.config.methods import METHODS, module_of
from posttrain.config.section import section_in
from posttrain.config.stages import SEVERAL, refuse_incomplete
from posttrain.errors import UserError, clear_exit

# What stands in a template where a key has no default: the embedded model and data, so that it runs as it is.
EXAMPLES = {
    "model.name": "tiny-sft",
    "pretrain.model.shape": {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "pretrain.model.tokenizer": "tiny",
    "pretrain.data.name": "tiny-text",
    "pretrain.training.max_steps": 100,
    "sft.data.name": "tiny-sft",
    "distill.data.name": "tiny-sft",
    "distill.distill.teacher": "tiny-dpo",
    "dpo.data.name": "tiny-identity",
    "simpo.data.name": "tiny-identity",
    "kto.data.name": "tiny-outcome",
    "reward.data.name": "tiny-preference",
    "grpo.data.name": "tiny-math",
    "ppo.data.name": "tiny-math",
    "ppo.ppo.reward": "answer",
    "evaluation.accuracy.data": "tiny-math",
    "evaluation.identity.name": "Nova",
    "evaluation.perplexity.data": "tiny-sft",
    "evaluation.drift.base": "tiny-sft",
    "evaluation.quality.data": "tiny-sft",
    "evaluation.judge.data": "tiny-math",
    "evaluation.judge.against": "tiny-base",
    "evaluation.judge.model": "tiny-sft",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.config", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{template,validate,show,list}")
    one = commands.add_parser("template", help="every key of a method with its meaning and default, ready to run")
    one.add_argument("method", choices=list(METHODS), metavar="METHOD", help=", ".join(METHODS))
    one = commands.add_parser("validate", help="all problems of all files, each with its line")
    one.add_argument("files", nargs="+", metavar="FILE", help="config files, or folders of them")
    one = commands.add_parser("show", help="what results of a file and --KEY VALUE …, and where each value comes from")
    one.add_argument("file", metavar="FILE")
    one = commands.add_parser("list", help="what is there")
    one.add_argument("files", nargs="*", default=["configs"], metavar="FILE", help="config files or folders (configs)")
    options, keys = parser.parse_known_args(arguments)
    if keys and options.command != "show":
        parser.error(f"unrecognized arguments: {' '.join(keys)}")
    with clear_exit():
        if options.command == "template":
            template(options.method)
        elif options.command == "show":
            show(options.file, keys)
        else:
            {"validate": validate, "list": list_}[options.command](options.files)


def template(method: str) -> None:
    print(f"# Every key of {module_of(method)} with its default.   python -m {module_of(method)} --config THIS_FILE")
    print("\n".join(_template_lines(METHODS[method], method)))


def _template_lines(kind: type[BaseModel], method: str, prefix: str = "", given: BaseModel | None = None) -> list[str]:
    """given: the group's default, where it is not made of its keys' defaults (a ladder's stages)."""
    lines, indent = [], "  " * prefix.count(".")
    for name, field in kind.model_fields.items():
        if field.exclude:
            continue
        annotation, key = field.annotation, prefix + name
        if (group := section_in(annotation)) is not None:
            own = field.get_default(call_default_factory=True) if method in SEVERAL else None
            inner = [f"{indent}{name}:", *_template_lines(group, method, f"{key}.", own)]
            if group is not annotation:  # it may be left out, and here it is
                inner = [f"{indent}# {line.removeprefix(indent)}" for line in inner]
            lines += ([""] if not indent else []) + inner
            continue
        value = EXAMPLES.get(f"{method}.{key}", EXAMPLES.get(key, PydanticUndefined))
        if value is PydanticUndefined and given is not None:
            value = getattr(given, name)
        elif value is PydanticUndefined:
            value = field.get_default(call_default_factory=True)
        choices = type_name(annotation)
        about = f"{field.description or ''} [{choices}]"
        lines += textwrap.wrap(about, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ")
        lines.append(f"{indent}{name}: {_yaml(value)}")
    return lines


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def validate(arguments: list[str]) -> None:
    files = [file for argument in arguments for file in _yaml_files(argument)]
    if not files:
        raise UserError(f"no .yaml file in {', '.join(arguments)}")
    bad = 0
    for file in files:
        try:
            config = load(file)
            refuse_incomplete(config)
            print(f"{file}: fine, a config for {module_of(config.method)}")
        except UserError as problem:
            bad += 1
            print(f"{file}: {str(problem).removeprefix(f'{file}: ')}")
    if bad:
        raise UserError(f"{bad} of {len(files)} files have problems")


def _yaml_files(argument: str) -> list[Path]:
    """A file, or those of a folder, and behind them those of its variants/."""
    path = Path(argument)
    if not path.is_dir():
        return [path]
    folders = [path, path / "variants"]
    return [file for folder in folders for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])]


def show(path: str, keys: list[str]) -> None:
    other, overrides = parse(keys)
    if other is not None:
        raise UserError(f"show takes one file: {path} or {other}?")
    config, places = resolve(path, overrides, origin="command line")
    print(f"# {module_of(config.method)}, run folder {config.folder}")
    print("\n".join(_shown(config, places)))


def _shown(section: BaseModel, places: dict[str, str], prefix: str = "", indent: str = "") -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), prefix + name
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:", *_shown(value, places, f"{key}.", indent + "  ")]
        elif not field.exclude:
            lines.append(f"{f'{indent}{name}: {_yaml(value)}':<50}  # {places.get(key, 'default')}")
    return lines


def list_(arguments: list[str]) -> None:
    files = [file for argument in arguments for file in _yaml_files(argument)]
    if not files:
        raise UserError(f"no .yaml file in {', '.join(arguments)}")
    if missing := [str(file) for file in files if not file.exists()]:
        raise UserError(f"{', '.join(missing)}: no such file")
    rows = []
    for file in files:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
        about = lines[0].removeprefix("#").strip() if lines and lines[0].startswith("#") else ""
        try:
            config = load(file)
            rows.append((str(file), config.method, getattr(getattr(config, "model", None), "name", ""), about))
        except UserError as problem:
            rows.append((str(file), "?", "", str(problem).splitlines()[0]))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip())


if __name__ == "__main__":
    main()
