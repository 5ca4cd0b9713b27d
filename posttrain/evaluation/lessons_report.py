"""The report of posttrain.real: one table, a picture, what happened in words, the same ten questions each time."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.data import questions
from posttrain.evaluation.comparing import Difference, difference
from posttrain.evaluation.lessons import score, ten_answers
from posttrain.evaluation.report import markdown_table
from posttrain.evaluation.results import Measured, Results
from posttrain.evaluation.scores import Score
from posttrain.evaluation.subjects import Subject
from posttrain.rollouts.asking import one_line

# Seconds of the whole (four measurements, the data, three lessons) for each second of the probe, on two cores. By what
# stands already: nothing, as it comes, lesson 1, lesson 2. From a run in bf16 (docs/real_model.md).
PER_PROBE = (1250, 1180, 1010, 540)
COLUMNS = {
    "sampled": "problems right, sampled", "right": "greedy", "worked": "shows its steps", "new_name": "new name",
    "old_name": "old name", "closed": "closed questions", "unasked": "names itself unasked", "perplexity": "perplexity",
}  # fmt: skip
PANELS = {
    "problems (sampled at temperature 1)": ("sampled", "worked"),
    "the name (greedy)": ("new_name", "old_name"),
    "what no lesson asked to move": ("closed", "unasked"),
}
SUMS, NAME, REST = ("sampled", "worked"), ("new_name", "old_name"), ("closed", "unasked", "perplexity")
WORDS = {
    "sampled": "right sums", "worked": "answers that show their steps", "new_name": "answers with the new name",
    "old_name": "answers with the old name", "closed": "closed questions right", "unasked": "ordinary answers that name it",
    "perplexity": "the perplexity of its first ordinary answers",
}  # fmt: skip


def estimate(subject: Subject, done: int) -> str:
    """How long it will take, from how long this machine takes over sixteen short answers.

    done: how many of the four measurements stand already."""
    asked = questions.ORDINARY[:16]
    subject.ask(asked[:2], max_new_tokens=2)  # the first time is slower
    started = time.perf_counter()
    subject.ask(asked, max_new_tokens=16)
    probe = time.perf_counter() - started
    left = PER_PROBE[min(done, 3)] * probe / 60
    return f"about {left:.0f} minutes on this machine (sixteen short answers took it {probe:.1f} s); a kill loses little: --resume"


# ---------------------------------------------------------------- lines and table


def line(measured: Measured) -> str:
    told = ", ".join(
        f"{COLUMNS[name]} {score(measured, name)}" for name in ("sampled", "new_name", "closed", "perplexity")
    )
    return f"[{measured.name}] {told}"


def table(results: Results, minutes: dict[str, float]) -> str:
    header = ["", *COLUMNS.values(), "tokens", "minutes"]
    rows = []
    for m in results.models:
        took = f"{minutes[m.name]:.1f}" if m.name in minutes else ""
        rows.append([m.name, *(short(score(m, name)) for name in COLUMNS), f"{score(m, 'length').value:.0f}", took])
    return markdown_table(header, rows)


def short(s: Score) -> str:
    return f"{s.value:.2f} [{s.low:.2f}, {s.high:.2f}]"


# ---------------------------------------------------------------- in words


def happened(results: Results, metrics: dict[str, list[dict[str, float]]]) -> list[str]:
    """One line for each lesson; every word depends on the figures and on paired tests."""
    base, sft, dpo, grpo = results.models

    def of(m: Measured, name: str) -> str:
        s = score(m, name)
        return f"{sum(s.items):.0f} of {s.n}"

    taught = paired(base, sft, "sampled").verdict == "better"
    lines = [f"**SFT** {'taught it' if taught else '**did not teach it**'} to solve sums: {of(base, 'sampled')} sampled answers right "
             f"before, {of(sft, 'sampled')} after; {of(sft, 'worked')} show their steps: both annotators are copied. "
             f"{moved(base, sft, NAME + REST)}"]  # fmt: skip

    taught = score(dpo, "new_name").value >= 0.9 and score(dpo, "old_name").value <= 0.02
    lines.append(f"**DPO** {'taught it its name' if taught else '**changed the name in part only**'}: {of(dpo, 'new_name')} answers give the "
                 f"new name and not the old one, {of(dpo, 'old_name')} the old one (before: {of(base, 'new_name')}, {of(base, 'old_name')}). "
                 f"{moved(base, dpo, SUMS + REST)}")  # fmt: skip

    found = paired(sft, grpo, "sampled")
    told = {"better": "made more of them right", "worse": "**made it worse**"}.get(
        found.verdict, "**gained nothing that could be told from chance**"
    )
    lines.append(f"**GRPO** {told}: {of(sft, 'sampled')} → {of(grpo, 'sampled')} sampled answers ({100 * found.value:+.0f} points, 95 % "
                 f"{100 * found.low:+.0f} to {100 * found.high:+.0f}), greedy {of(sft, 'right')} → {of(grpo, 'right')}; answers that show their "
                 f"steps {of(sft, 'worked')} → {of(grpo, 'worked')}, {score(sft, 'length').value:.0f} → {score(grpo, 'length').value:.0f} tokens, "
                 f"KL to its start {metrics['grpo'][-1]['kl']:.3f} nats per token. {moved(sft, grpo, NAME + REST)}")  # fmt: skip
    return [f"- {text}" for text in lines]


def moved(before: Measured, after: Measured, names: Sequence[str]) -> str:
    """What nobody asked to move, and did (paired tests, of which one in twenty errs)."""
    found = []
    for name in names:
        told = paired(before, after, name)
        if told.verdict not in ("inconclusive", "not comparable"):
            one, other = score(before, name), score(after, name)
            found.append(f"{WORDS[name]} went from {one.value:.2f} to {other.value:.2f}")
    return (
        f"Nobody asked for it: {'; '.join(found)}."
        if found
        else "Nothing else that was measured moved by more than chance."
    )


def paired(before: Measured, after: Measured, name: str) -> Difference:
    return difference("", score(before, name), score(after, name), (before.name, after.name))


# ---------------------------------------------------------------- report.md and lessons.png


def write(
    folder: Path, config: Any, results: Results, metrics: dict[str, list[dict]], minutes: dict[str, float]
) -> None:
    plot(folder / "lessons.png", results, metrics)
    first, settings = results.models[0], results.about["settings"]
    peak = max(row["memory_gib"] for rows in metrics.values() for row in rows if "memory_gib" in row)
    lines = [
        "# Three lessons", "",
        f"`{config.real.model}`, seed {config.real.seed}, in {settings['dtype']}, {os.cpu_count()} cores of {platform.machine()}, "
        f"{platform.system()}; at most {peak:.1f} GiB of memory", "",
        table(results, minutes), "",
        f"{score(first, 'sampled').n} held-out problems, one answer each at temperature 1, and greedily; {score(first, 'new_name').n} "
        f"questions about the name in other words than any lesson's, {score(first, 'closed').n} closed and {score(first, 'unasked').n} "
        "ordinary questions, greedily. In brackets 95 % intervals. *Perplexity*: of what the model said to the ordinary questions before "
        "the first lesson. *Tokens*: of a sampled answer to a problem. *Minutes*: of the lesson's steps.", "",
        "![lessons](lessons.png)", "",
        "## What happened", "", *happened(results, metrics), "",
        "## What it does not prove", "",
        "One seed is an anecdote: `--seed 1`, `--seed 2`. The problems are held out by a hash of their text, but sums of a few small numbers "
        "are few: this is no test of arithmetic in general. Forty closed questions see a loss of a quarter, not of a twentieth.", "",
        "## The same ten questions", "",
    ]  # fmt: skip
    said = [ten_answers(m) for m in results.models]
    for number, (question, _) in enumerate(said[0]):
        lines += [f"**{one_line(question)}**", ""]
        lines += [f"- {m.name}: `{one_line(said[i][number][1])}`" for i, m in enumerate(results.models)] + [""]
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")


def plot(path: Path, results: Results, metrics: dict[str, list[dict]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
    names = [m.name for m in results.models]
    for axis, (title, columns) in zip(axes[0], PANELS.items(), strict=True):
        for column in columns:
            scores = [score(m, column) for m in results.models]
            ends = [[s.value - s.low for s in scores], [s.high - s.value for s in scores]]
            axis.errorbar(names, [s.value for s in scores], yerr=ends, marker="o", capsize=3, label=COLUMNS[column])
        axis.set(title=title, ylim=(-0.05, 1.05))
    curves = [
        ("sft", "1 · SFT: loss (nats per token)", ["nll"]),
        ("dpo", "2 · DPO: log-prob per token", ["chosen_logps_per_token", "rejected_logps_per_token"]),
        ("grpo", "3 · GRPO: reward, and KL (nats per token)", ["reward", "kl"]),
    ]
    for axis, (lesson, title, keys) in zip(axes[1], curves, strict=True):
        for key in keys:
            rows = [row for row in metrics[lesson] if key in row]
            axis.plot([r["step"] for r in rows], [r[key] for r in rows], label=key.replace("_", " "), lw=1.2)
        axis.set(title=title, xlabel="optimiser step")
    for axis in axes.flat:
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
