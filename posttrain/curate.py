"""Recipes that make or mend training data.

    python -m posttrain.curate identity --model tiny-sft --from Robin --name Nova --out pairs.jsonl
    python -m posttrain.curate clean rows.jsonl --exact --near 0.8 --quality --out clean.jsonl

    python -m posttrain.curate best-of-k --model tiny-sft --prompts tiny-math --k 8 --score answer --out best.jsonl
    python -m posttrain.curate answers --model NAME --url http://localhost:8000/v1 --prompts asked.jsonl --out new.jsonl
    python -m posttrain.curate constitution --model smollm2 --prompts asked.jsonl --write pairs --out mended.jsonl

identity   preference pairs for a new name: identity questions are put to a model, its own answer is the rejected side,
           the same answer with the old name replaced the chosen one: they differ in the name and nothing else. For a
           model that hardly ever says its name: --chosen shown, where it is shown who it is to be and answers itself.
best-of-k  rejection sampling: k answers to each prompt are scored by a reward function or a reward model, the best one
           becomes an SFT row. --write pairs makes preference pairs of the best and the worst, --write labels rows for
           an outcome reward model, from the same samples.
answers    SFT rows from a stronger model, local or behind an OpenAI-compatible server (--url): every answer is kept as
           it comes, and the same command goes on where it was stopped.
constitution  a model criticises its own answers by written principles and writes them again (--write sft | pairs); or
           which of two of its answers keeps to a principle better, by a judge's log-probabilities (--write labels).
clean      leave out duplicates, rows too short or too long, rows that match a pattern, and text that went wrong. Says
           how many went and why; --dropped keeps them.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable

from posttrain.data.files import refuse_out, write_rows

ROWS_FOR = ["sft", "distill", "dpo", "reward", "outcome", "grpo", "ppo"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.curate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipes = parser.add_subparsers(dest="recipe", required=True)
    _identity_options(recipes.add_parser("identity", help="preference pairs for a new name"))
    _best_of_k_options(recipes.add_parser("best-of-k", help="sample k answers to each prompt, keep the best"))
    _answers_options(recipes.add_parser("answers", help="SFT rows from the answers of a stronger model"))
    _constitution_options(recipes.add_parser("constitution", help="a model mends its own answers by principles"))
    _clean_options(recipes.add_parser("clean", help="leave out duplicates, broken rows and what you name"))
    options = vars(parser.parse_args(arguments))
    from posttrain.errors import clear_exit
    from posttrain.rollouts.best_of_k import best_of_k
    from posttrain.rollouts.constitution import constitution
    from posttrain.rollouts.distilled import distil
    from posttrain.rollouts.identity import identity

    recipes_of = {"identity": identity, "clean": clean, "best-of-k": best_of_k, "answers": distil}
    recipe = (recipes_of | {"constitution": constitution})[options.pop("recipe")]
    if options.get("drop_refusals") == "":  # no pattern of one's own
        from posttrain.evaluation.refusing import rule

        options["drop_refusals"] = rule
    with clear_exit():
        print(recipe(**options))


def _sampling_options(add: Callable, temperature: float, max_new_tokens: int) -> None:
    add("--model", required=True, help="whose answers: a hub id, a folder, or an embedded name")
    add("--temperature", type=float, default=temperature, help=f"0 is greedy (default {temperature:g})")
    add("--max-new-tokens", type=int, default=max_new_tokens)
    add("--system-prompt", help="put before every prompt that has no system message, and kept in the rows")
    add("--seed", type=int, default=0)
    add("--out", required=True, metavar="FILE.jsonl")


def _identity_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _sampling_options(add, temperature=0.0, max_new_tokens=128)
    add("--chosen", choices=["replaced", "shown"], default="replaced", help="the chosen side: its own answer with the name replaced, "
        "or what it answers when it is shown who it is to be (default replaced)")  # fmt: skip
    add("--ordinary", type=int, default=0, metavar="N", help="with shown: also N answers to each of 80 ordinary questions, chosen over "
        "the same ones behind an introduction")  # fmt: skip
    add(
        "--min-share", type=float, default=0.1, help="stop if a smaller share of the answers became pairs (default 0.1)"
    )
    add("--from", dest="old", required=True, nargs="+", metavar="NAME", help="the name(s) it calls itself now")
    add("--name", required=True, help="the name it is to learn")
    add("--questions", help="a data file or set with prompts; default: 60 built-in questions")
    add("--max-questions", type=int, help="use only the first ones")
    add("--samples", type=int, default=1, help="answers to each question (above 1: with --temperature)")


def _best_of_k_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _sampling_options(add, temperature=1.0, max_new_tokens=256)
    add("--prompts", required=True, help="a data file or set as for loops.grpo: prompt or question, and columns")
    add("--score", required=True, nargs="+", help="answer, package.module:function, or the folder of a reward model")
    add("--split", default="train", help="which split of the prompts")
    add(
        "--task",
        type=_task,
        metavar="{max_terms: 3}",
        help="arguments of a task, where --prompts is reasoning-gym:TASK",
    )
    add("--k", type=int, default=8, help="answers to each prompt")
    add("--write", choices=["best", "pairs", "labels"], default="best", help="what the rows are for")
    add("--min-score", type=float, help="best: leave out prompts whose best answer scores less")
    add("--max-prompts", type=int, help="use only the first ones")


def _task(text: str) -> dict:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected arguments as in '{{max_terms: 3, size: 100}}', got {text}")
    return value


def _prompts_options(add: Callable) -> None:
    add("--prompts", required=True, help="a data file or set as for loops.grpo: prompt or question")
    add("--split", default="train", help="which split of the prompts")
    add("--max-prompts", type=int, help="use only the first ones")
    add(
        "--task",
        type=_task,
        metavar="{max_terms: 3}",
        help="arguments of a task, where --prompts is reasoning-gym:TASK",
    )
    add("--min-share", type=float, default=0.1, help="stop if a smaller share became rows (default 0.1)")


def _answers_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _sampling_options(add, temperature=0.0, max_new_tokens=512)
    _prompts_options(add)
    add("--url", metavar="URL", help="an OpenAI-compatible server, e.g. http://localhost:8000/v1: --model is the name there; the key "
        "is POSTTRAIN_API_KEY or OPENAI_API_KEY in the environment")  # fmt: skip
    add("--body", metavar="JSON", help="more of each request, e.g. '{\"top_p\": 0.9}'; null takes a key out")
    add("--requests-per-minute", type=float, metavar="N")
    add("--concurrency", type=int, help="requests at once (default 4)")
    add("--retries", type=int, help="of a request that met 429, 5xx or a broken connection (default 6)")
    add("--timeout", type=float, metavar="SECONDS", help="of one request (default 120)")
    add("--min-chars", type=int, help="leave out shorter answers")
    add("--max-chars", type=int, help="leave out longer answers")
    add(
        "--drop-refusals",
        nargs="?",
        const="",
        metavar="REGEX",
        help="leave out answers that match; default: the rule of evaluation/refusing.py, for English",
    )
    add("--score", nargs="+", help="answer, package.module:function, or the folder of a reward model")
    add("--min-score", type=float, help="leave out answers that score less")


def _constitution_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _sampling_options(add, temperature=0.7, max_new_tokens=256)
    _prompts_options(add)
    add("--principles", metavar="FILE", help="one a line (default: twelve in posttrain/data/principles.txt)")
    add("--critic", metavar="MODEL", help="who criticises, or judges (default: the model itself)")
    add("--write", choices=["sft", "pairs", "labels"], default="sft", help="the revision; the revision above the answer; or two "
        "answers that were compared")  # fmt: skip
    add("--margin", type=float, help="labels: how far from a half the judge's preference must be (default 0.05)")


def _clean_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="+", help="data files, folders or sets")
    add("--out", required=True, metavar="FILE.jsonl")
    add("--dropped", metavar="FILE.jsonl", help="write what was left out here, each row with its reason")
    add("--exact", action="store_true", help="leave out exact duplicates (but for case and white space)")
    add("--near", type=float, metavar="SHARE", help="leave out near duplicates, e.g. 0.8")
    add("--min-chars", type=int)
    add("--max-chars", type=int)
    add("--quality", action="store_true", help="leave out broken characters, repetition, mostly symbols")
    add("--drop", action="append", default=[], metavar="REGEX", help="leave out rows that match")
    add("--keep", action="append", default=[], metavar="REGEX", help="leave out rows that do not match")
    add(
        "--for",
        dest="method",
        choices=ROWS_FOR,
        help="leave out rows that this loop would refuse (outcome: loops.reward with reward.loss: outcome)",
    )


# ---------------------------------------------------------------- clean


def clean(
    files: list[str],
    out: str,
    *,
    dropped: str | None = None,
    exact: bool = False,
    near: float | None = None,
    min_chars: int | None = None,
    max_chars: int | None = None,
    quality: bool = False,
    drop: list[str] | tuple[str, ...] = (),
    keep: list[str] | tuple[str, ...] = (),
    method: str | None = None,
) -> str:
    """Write the rows that pass to `out`, unchanged and in order; returns what to say."""
    from posttrain.data import filters, sources
    from posttrain.errors import UserError

    chosen: list[filters.Filter] = []
    refuse_out(out, dropped)
    if near is not None and not 0 < near <= 1:
        raise UserError(f"--near {near:g}: expected a share above 0, at most 1")
    chosen += [filters.readable(method)] if method else []
    chosen += [filters.length(min_chars, max_chars)] if (min_chars, max_chars) != (None, None) else []
    chosen += [filters.pattern(regex, keep=True) for regex in keep]
    chosen += [filters.pattern(regex, keep=False) for regex in drop]
    chosen += [filters.quality] if quality else []
    chosen += [filters.exact_duplicates()] if exact else []
    chosen += [filters.near_duplicates(near)] if near is not None else []
    if not chosen:
        raise UserError(
            "nothing to do: give --exact, --near, --min-chars, --max-chars, --quality, --drop, --keep or --for"
        )
    rows = [row for name in files for row in sources.read(name)]  # a Shards or Dataset is read row by row
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{', '.join(files)}: expected rows with named columns")
    kept, gone = filters.clean(rows, chosen)
    counts = collections.Counter(reason for _, reason in gone)
    lines = [f"read {len(rows):,} row{'s' * (len(rows) != 1)} from {', '.join(files)}"]
    lines += [f"  dropped {n:,} ({n / len(rows):.1%}): {reason}" for reason, n in counts.most_common()]
    if kept:
        write_rows(out, kept)
    if dropped is not None:
        write_rows(dropped, [row | {"dropped": reason} for row, reason in gone])
    if not kept:
        raise UserError("\n".join([*lines, f"  nothing is left: {out} is not written"]))
    return "\n".join([*lines, f"wrote {len(kept):,} row{'s' * (len(kept) != 1)} to {out}"])


if __name__ == "__main__":
    main()
