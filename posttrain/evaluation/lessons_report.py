"""The report of loops.real: one table, a picture, what happened in words, the same ten questions after each lesson."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain.data import questions
from posttrain.evaluation.intervals import Proportion
from posttrain.evaluation.ladder_report import markdown_table
from posttrain.evaluation.lessons import Exam, Lesson
from posttrain.evaluation.verdicts import change

# Seconds of the whole (four exams, the data, three lessons) for each second of the probe, measured in bf16 and in
# float32 on two cores. By what stands already: nothing, as it comes, lesson 1, lesson 2.
PER_PROBE = (400, 370, 300, 170)
PANELS = {
    "problems (sampled, temperature 1)": {"sampled": "right", "worked": "shows its steps"},
    "the name (greedy)": {"new_name": "new name", "old_name": "old name"},
    "what no lesson asked to move": {"closed": "closed questions", "unasked": "names itself unasked"},
}


# ---------------------------------------------------------------- before it starts


@torch.no_grad()
def estimate(exam: Exam, model, tokenizer, done: int) -> str:
    """How long it will take, from how long this machine takes to read and to answer sixteen questions.

    done: how many of the four measurements stand already."""
    asked = questions.ORDINARY[:16]
    exam.say(model, tokenizer, asked[:2], max_new_tokens=2)  # the first time is slower
    started = time.perf_counter()
    exam.say(model, tokenizer, asked, max_new_tokens=16)
    probe = time.perf_counter() - started
    left = PER_PROBE[min(done, 3)] * probe / 60
    return f"about {left:.0f} minutes on this machine (sixteen short answers took it {probe:.1f} s); a kill loses little: --resume"


# ---------------------------------------------------------------- lines and table


def line(lesson: Lesson) -> str:
    return (
        f"[{lesson.name}] problems {lesson.sampled}, new name {lesson.new_name}, old name {lesson.old_name.value:.2f}, "
        f"closed questions {lesson.closed.value:.2f}, perplexity {lesson.perplexity.value:.2f}"
    )


def table(taken: list[Lesson]) -> str:
    header = ["", "problems right, sampled", "greedy", "shows its steps", "new name", "old name", "closed questions",
              "names itself unasked", "perplexity", "tokens", "minutes"]  # fmt: skip
    rows = [
        [
            a.name,
            f"**{share(a.sampled)}**",
            share(a.greedy),
            f"{a.worked.value:.2f}",
            f"**{share(a.new_name)}**",
            share(a.old_name),
            share(a.closed),
            share(a.unasked),
            f"{a.perplexity.value:.2f} [{a.perplexity.low:.2f}, {a.perplexity.high:.2f}]",
            f"{a.length:.0f}",
            f"{a.seconds / 60:.1f}" if a.seconds else "",
        ]
        for a in taken
    ]
    return markdown_table(header, rows)


def share(p: Proportion) -> str:
    return f"{p.value:.2f} [{p.interval[0]:.2f}, {p.interval[1]:.2f}]"


# ---------------------------------------------------------------- in words


def happened(taken: list[Lesson], metrics: dict[str, list[dict[str, float]]]) -> list[str]:
    """One line for each lesson; every word depends on the figures and their intervals."""
    base, sft, dpo, grpo = taken
    told = {"rose": "taught it", "neither": "**did not teach it**", "fell": "**made it worse**"}[
        change(base.sampled, sft.sampled)
    ]
    lines = [f"**SFT** {told} to solve sums: {base.sampled.value:.0%} of its samples right before, {sft.sampled.value:.0%} after. "
             f"Both annotators are copied: {sft.worked.value:.0%} of the answers show the steps. {moved(base, sft, NAME)}"]  # fmt: skip

    named = f"{dpo.new_name.hits:.0f} of {dpo.new_name.n} answers say the new name, {dpo.old_name.hits:.0f} the old one"
    taught = dpo.new_name.value >= 0.9 and dpo.old_name.value <= 0.02
    lines.append(f"**DPO** {'taught it its name' if taught else '**changed the name in part only**'}: {named} (before: "
                 f"{sft.new_name.hits:.0f} and {sft.old_name.hits:.0f}). {moved(sft, dpo, SUMS)}")  # fmt: skip

    points = 100 * (grpo.sampled.value - dpo.sampled.value)
    told = {"rose": "made more of them right", "neither": "**gained nothing that could be told from chance**",
            "fell": "**made it worse**"}[change(dpo.sampled, grpo.sampled)]  # fmt: skip
    last = metrics["grpo"][-1]
    lines.append(f"**GRPO** {told}: {dpo.sampled.value:.0%} → {grpo.sampled.value:.0%} of the samples ({points:+.0f} points), greedy "
                 f"{dpo.greedy.value:.0%} → {grpo.greedy.value:.0%}; answers that show the steps {dpo.worked.value:.0%} → {grpo.worked.value:.0%}, "
                 f"{dpo.length:.0f} → {grpo.length:.0f} tokens, KL to its start {last['kl']:.3f} nats per token. The name: "
                 f"{grpo.new_name.hits:.0f} of {grpo.new_name.n}. {moved(dpo, grpo, NAME)}")  # fmt: skip
    return [f"- {text}" for text in lines]


SUMS = (("sampled", "right sums"), ("worked", "answers that show their steps"))
NAME = (("new_name", "the new name"), ("old_name", "the old name"))


def moved(before: Lesson, after: Lesson, beside: Sequence[tuple[str, str]]) -> str:
    """What nobody asked to move, and did; beside: what this lesson is not about."""
    found = []
    for field, name in (
        *beside,
        ("closed", "closed questions"),
        ("unasked", "ordinary answers that name it"),
    ):
        one, other = getattr(before, field), getattr(after, field)
        if (how := change(one, other)) != "neither":
            found.append(f"{name} {how} from {one.value:.0%} to {other.value:.0%}")
    one, other = before.perplexity, after.perplexity
    if not one.low <= other.value <= one.high:
        found.append(f"the perplexity of its first ordinary answers went from {one.value:.2f} to {other.value:.2f}")
    stayed = "everything else that was measured stayed within its interval"
    return f"Nobody asked for it: {'; '.join(found)}." if found else f"Beside it, {stayed}."


# ---------------------------------------------------------------- report.md and lessons.png


def write(folder: Path, config, exam: Exam, taken: list[Lesson], metrics: dict[str, list[dict]]) -> None:
    plot(folder / "lessons.png", taken, metrics)
    first = taken[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024) / 2**10
    lines = [
        "# Three lessons", "",
        f"`{config.real.model}`, seed {config.real.seed}, {os.cpu_count()} cores of {platform.machine()}, {torch.get_num_threads()} threads, "
        f"{platform.system()}; at most {peak:.1f} GiB of memory", "",
        table(taken), "",
        f"{first.sampled.n} held-out problems ({exam.name}), {first.new_name.n} questions about the name in other words than any lesson's, "
        f"{first.closed.n} closed and {first.unasked.n} ordinary questions; greedy where nothing else is said; in brackets 95 % intervals "
        "(Wilson; of the perplexity: bootstrap over answers). *Perplexity*: of what the model said to the ordinary questions before the "
        "first lesson. *Tokens*: mean length of a sampled answer to a problem.", "",
        "![lessons](lessons.png)", "",
        "## What happened", "", *happened(taken, metrics), "",
        "## What it does not prove", "",
        "One seed is an anecdote: `--seed 1`, `--seed 2`. The problems are held out by a hash of their text, but sums of a few small numbers "
        "are few: this is no test of arithmetic in general. Forty closed questions see a loss of a quarter, not of a twentieth.", "",
        "## The same ten questions", "",
    ]  # fmt: skip
    for i, probe in enumerate(exam.probes()):
        lines += [f"**{probe}**", "", *(f"- {a.name}: `{a.answers[i]}`" for a in taken), ""]
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")


def plot(path: Path, taken: list[Lesson], metrics: dict[str, list[dict]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
    names = [a.name for a in taken]
    for axis, (title, fields) in zip(axes[0], PANELS.items(), strict=True):
        for field, label in fields.items():
            with_errors(axis, names, [getattr(a, field) for a in taken], label)
        axis.set(title=title, ylim=(-0.05, 1.05))
    curves: list[tuple[str, str, list[str]]] = [
        ("sft", "1 · SFT: loss (nats per token)", ["nll"]),
        ("dpo", "2 · DPO: log-prob per token", ["chosen_logps_per_token", "rejected_logps_per_token"]),
        ("grpo", "3 · GRPO: reward, and KL (nats per token)", ["reward", "kl"]),
    ]
    for axis, (lesson, title, keys) in zip(axes[1], curves, strict=True):
        for key in keys:
            rows: list[Any] = [row for row in metrics[lesson] if key in row]
            axis.plot([r["step"] for r in rows], [r[key] for r in rows], label=key.replace("_", " "), lw=1.2)
        axis.set(title=title, xlabel="optimiser step")
    for axis in axes.flat:
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def with_errors(axis, names: list[str], shares: list[Proportion], label: str) -> None:
    """The shares with their intervals, one after the other."""
    values = [p.value for p in shares]
    below = [p.value - p.interval[0] for p in shares]
    above = [p.interval[1] - p.value for p in shares]
    axis.errorbar(names, values, yerr=[below, above], marker="o", capsize=3, label=label)
