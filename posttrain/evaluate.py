"""What can a model do, and how surely? Suites of measurements, each score with its n and a 95 % interval; several
models side by side on the same prompts, with a verdict on every difference.

    python -m posttrain.evaluate --model tiny-sft tiny-dpo --suite accuracy identity \\
        --accuracy.data tiny-math --identity.name Nova --identity.old Robin --identity.questions tiny-identity
    python -m posttrain.evaluate --compare outputs/monday outputs/tuesday

accuracy     right answers to problems with a known answer, greedy and of several samples (pass@k)
identity     which name it gives, and what a lesson on a name has changed besides
perplexity   how surprised it is by a text, token by token
drift        how far it is from the model it came from (exact KL, same likeliest token), on its own answers
safety       refusals of harmful requests, and of harmless ones that look like them
quality      answers beside references: BLEU, chrF, ROUGE-L, BERTScore; length, finished answers, repetition
judge        how often its answers are preferred to another model's, by a language model or a reward model
lm-eval:TASK a task of EleutherAI's lm-evaluation-harness, by its name or as a YAML file of your own

Writes results.json (every score, every answer), report.md and scores.png into --out. The first model is the one that
the others are compared with. docs/evaluate.md says what each number means, and what it does not."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from posttrain.config.command_line import parse, suite_options
from posttrain.config.loading import describe
from posttrain.config.suites import SUITES
from posttrain.errors import UserError, clear_exit


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.evaluate", description=__doc__, epilog=keys(), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    many = {"nargs": "+", "action": "extend", "default": []}
    add("--model", **many, metavar="NAME", help="a hub id, a folder, an adapter, smollm2, tiny-base, tiny-sft, tiny-dpo or tiny-grpo; several: side by side")  # fmt: skip
    add("--suite", **many, metavar="NAME", help=", ".join(SUITES))
    add("--out", metavar="FOLDER", default="outputs/evaluate", help="default outputs/evaluate")
    add("--overwrite", action="store_true", help="replace an evaluation that stands there")
    add("--compare", nargs="+", metavar="RESULTS", help="results.json files (or their folders) to compare; loads no model, writes nothing")  # fmt: skip
    add("--batch-size", type=int, default=8, help="rows that the model reads at once: memory, not figures (default 8)")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="float32: figures do not depend on the batch size (default)")  # fmt: skip
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda where there is one")
    add("--seed", type=int, default=0, help="of samples (default 0)")
    options, rest = parser.parse_known_args(arguments)
    with clear_exit("\n(python -m posttrain.evaluate --help lists every suite and key)"):
        if options.compare is not None:
            compare(options.compare, options.model or options.suite or rest)
        else:
            run(options, rest)


def keys() -> str:
    """Every key of every suite, for --help."""
    lines = ["keys of the suites (a last part that only one chosen suite has is enough: --samples 8):"]
    for suite, section in SUITES.items():
        lines.append("")
        for key, kind, default, meaning in describe(section, f"{suite}."):
            lines.append(f"  --{key}  [{kind}]  default: {default}")
            lines += textwrap.wrap(meaning, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def compare(paths: list[str], more: list[str]) -> None:
    from posttrain.evaluation.report import said
    from posttrain.evaluation.results import side_by_side

    if more:
        raise UserError(f"--compare reads result files and nothing else, got {more[0]} as well")
    if len(paths) < 2:
        raise UserError("--compare needs two result files, or more")
    print(said(side_by_side(paths)))


def run(options: argparse.Namespace, rest: list[str]) -> None:
    config, overrides = parse(rest)
    if config is not None:
        raise UserError("--config is for the loops: give the suites' keys here, --accuracy.data tiny-math")
    if not options.model or not options.suite:
        raise UserError("--model and --suite are needed, or --compare A B")
    if options.batch_size < 1 or not 0 <= options.seed < 2**32:
        raise UserError(f"--batch-size must be at least 1, --seed from 0 to {2**32 - 1}")
    chosen = suite_options(options.suite, overrides)
    from posttrain.evaluation import report, results
    from posttrain.evaluation.measuring import evaluate

    folder = Path(options.out)
    results.refuse_folder(folder, options.overwrite)
    settings = {name: getattr(options, name) for name in ("device", "dtype", "batch_size", "seed")}
    found, measured = None, []
    try:
        for found in evaluate(options.model, chosen, **settings, tell=lambda line: print(line, file=sys.stderr)):
            results.write(folder, found)
            measured.append(found.models[-1].name)
            print(f"measured {measured[-1]}", file=sys.stderr)
    except KeyboardInterrupt:
        sys.exit(f"interrupted: {kept(folder, measured)}")
    except UserError as problem:
        if not measured:
            raise
        raise UserError(f"{problem}\n({kept(folder, measured)})") from None
    report.write(folder / "report.md", found)
    report.plot(folder / "scores.png", found)
    print(report.said(found))
    print(f"\nwrote {folder}/results.json, report.md, scores.png")


def kept(folder: Path, measured: list[str]) -> str:
    """What is there of an evaluation that has come to no end."""
    if not measured:
        return "no model was measured to its end, nothing is written"
    held = f"{folder}/results.json holds {', '.join(measured)}"
    return f"{held}: measure the others into another --out, and --compare puts the files side by side"


if __name__ == "__main__":
    main()
