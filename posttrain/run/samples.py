"""samples.md: the same prompts before and after a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_samples(path: Path, samples: Sequence[tuple[str, str, str]], method: str) -> None:
    """The same prompts before and after the run, answered greedily (a reward model: the same answers scored)."""
    about = {
        "reward": "The scores of the same answers, before and after this run.",
        "pretrain": "The same beginnings, continued greedily before and after this run. ⏹ = the model ended the document.",
    }
    answers = "Greedy answers to the same prompts, before and after this run. ⏹ = the model ended its turn itself."
    lines = ["# Samples", "", about.get(method, answers), ""]
    for prompt, before, after in samples:
        lines += [f"**{prompt}**", "", f"- before: `{before}`", f"- after: `{after}`", ""]
    path.write_text("\n".join(lines), encoding="utf-8")
