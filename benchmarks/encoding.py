"""Rows of text -> token ids: seconds and memory of reading and encoding, in one pass and turn by turn.

python -m benchmarks.encoding                     20,000 rows of one turn, 1,000 of ten; half a minute
python -m benchmarks.encoding --rows 1000000      so many of one turn alone, in a process of its own: memory
python -m benchmarks.encoding --model smollm2     its tokenizer, not the embedded one
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import posttrain  # noqa: F401  (sets OMP_WAIT_POLICY before torch is imported)

from transformers import AutoTokenizer  # isort: skip

from benchmarks.peak import peak_rss
from posttrain.config.supervised import SftData
from posttrain.data.rows import load_rows
from posttrain.errors import clear_exit
from posttrain.models.fetching import smollm2
from posttrain.tiny.names import path_of
from posttrain.tokens import encoder, one_pass, template
from posttrain.tokens.examples import sft_examples

QUESTION = (
    "Natalia sold clips to {} of her friends in April, and then she sold half as many clips in May. How many clips did "
    "Natalia sell altogether in April and May, if each of her {} friends bought {} more on the first day of June?"
)
ANSWER = (
    "Natalia sold {}/2 = {} clips in May.\nNatalia sold {}+{} = {} clips altogether in April and May. In June she sold "
    "{} more, that is {} in all.\n#### {}"
)


def write(path: Path, rows: int, turns: int) -> None:
    """Of GSM8K's length: 170 tokens of SmolLM2's a turn."""
    rng = random.Random(0)

    def filled(text: str) -> str:
        return text.format(*(rng.randint(2, 9999) for _ in range(text.count("{}"))))

    with open(path, "w") as file:
        for _ in range(rows):
            both = (("user", QUESTION), ("assistant", ANSWER))
            chat = [{"role": role, "content": filled(text)} for _ in range(turns) for role, text in both]
            file.write(json.dumps({"messages": chat}) + "\n")


def once(path: Path, name: str, turn_by_turn: bool = False, processes: int | None = None) -> tuple[float, float, float]:
    """(seconds of reading, seconds of encoding, tokens a row)"""
    tokenizer = AutoTokenizer.from_pretrained(name)
    template.prepare_tokenizer(tokenizer)
    data = SftData(name=str(path), max_length=8192)
    started = time.perf_counter()
    rows = load_rows(data, "sft")
    read = time.perf_counter() - started
    before = encoder.workers, one_pass.OnePass.__call__
    encoder.workers = before[0] if processes is None else lambda: processes
    if turn_by_turn:
        one_pass.OnePass.__call__ = lambda self, conversations: [None] * len(conversations)
    try:
        items = sft_examples(rows, tokenizer, 8192, data).items
    finally:
        encoder.workers, one_pass.OnePass.__call__ = before
    return read, time.perf_counter() - started - read, sum(map(len, items)) / len(items)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--model", default="tiny-sft")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    with clear_exit(), tempfile.TemporaryDirectory() as scratch:
        name = str(smollm2()[0] if options.model == "smollm2" else path_of(options.model))
        if options.alone:
            before = peak_rss()
            read, encoded, tokens = once(options.alone, name)
            print(
                f"read in {read:.1f} s, encoded in {encoded:.1f} s, {tokens:.0f} tokens a row; memory {before:,.0f} MB, then {peak_rss():,.0f} MB"
            )
            return
        path = Path(scratch) / "rows.jsonl"
        if options.rows:
            write(path, options.rows, 1)
            print(f"{options.rows:,} rows of one turn: ", end="", flush=True)
            subprocess.run(
                [sys.executable, "-m", "benchmarks.encoding", "--alone", str(path), "--model", options.model],
                check=True,
            )
            return
        for rows, turns in ((20_000, 1), (1_000, 10)):
            write(path, rows, turns)
            several = encoder.workers()
            found = {
                f"in one pass, {several} processes": once(path, name)[1],
                "in one pass, 1 process": once(path, name, processes=1)[1],
                "turn by turn, 1 process": once(path, name, turn_by_turn=True, processes=1)[1],
            }
            print(
                f"{rows:,} rows of {turns} turn{'s' * (turns > 1)}: "
                + ", ".join(
                    f"{way} {seconds:.1f} s ({1e3 * seconds / rows:.2f} ms a row)" for way, seconds in found.items()
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
