"""Results for people: the table, report.md, and the bars. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.evaluation.comparing import Difference
from posttrain.evaluation.results import Results
from posttrain.evaluation.scores import Score

SHOWN = 3  # answers of each part that stand in report.md


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join("---" for _ in header) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def scores_of(results: Results) -> list[tuple[str, str, list[Score | None]]]:
    """(suite, name, the score of each model) in the order in which they were measured."""
    rows: dict[tuple[str, str], list[Score | None]] = {}
    for number, model in enumerate(results.models):
        for suite, outcome in model.outcomes.items():
            for score in outcome.scores:
                rows.setdefault((suite, score.name), [None] * len(results.models))[number] = score
    return [(suite, name, scores) for (suite, name), scores in rows.items()]


def table(results: Results) -> str:
    """One row per score, one column per model."""
    rows = []
    for suite, name, scores in scores_of(results):
        first = next(score for score in scores if score is not None)
        better = {"higher": "higher is better", "lower": "lower is better", "neither": ""}[first.better]
        what = ", ".join(dict.fromkeys(text for text in (first.unit, better, *(s.note for s in scores if s)) if text))
        rows.append([f"{suite}: {name}", *("" if s is None else str(s) for s in scores), what])
    return markdown_table(["score", *(model.name for model in results.models), ""], rows)


def verdicts(differences: list[Difference]) -> list[str]:
    """One line per score and pair, and what many verdicts together are worth."""
    lines = [f"{d.b} against {d.a}, {d.suite} {d.score}: {d}" for d in differences]
    if len(differences) > 1:
        lines.append(
            f"Each verdict by itself errs in one case of 20 where there is no difference: of {len(differences)}, expect "
            f"{len(differences) / 20:.1f} by chance."
        )
    return lines


def said(results: Results) -> str:
    """What the command prints."""
    differences, lines = results.differences(), [table(results)]
    if differences:
        lines += ["", *verdicts(differences)]
    return "\n".join([*lines, "", *remarks(results)]).rstrip()


def remarks(results: Results) -> list[str]:
    """What must be read with the figures: how files were made, and what the suites say; what all models share, once."""
    lines = [*results.unlike]
    lines += [f"{suite}: {text}" for m in results.models for suite, o in m.outcomes.items() for text in o.remarks]
    return list(dict.fromkeys(lines))


def write(path: Path, results: Results) -> None:
    settings = ", ".join(f"{key} {value}" for key, value in results.about.get("settings", {}).items())
    versions = ", ".join(f"{key} {results.about[key]}" for key in ("posttrain", "torch", "transformers"))
    lines = ["# Evaluation", "", f"{settings}; {versions}.", "", table(results), "", "![scores](scores.png)", ""]
    lines += ["95 % intervals: Wilson's for shares, bootstrap over prompts or documents for the rest.", ""]
    if differences := results.differences():
        lines += ["## Compared, prompt by prompt", "", *(f"- {line}" for line in verdicts(differences)), ""]
    if notes := remarks(results):
        lines += ["## To be read with the figures", "", *(f"- {line}" for line in notes), ""]
    lines += ["## What each number is", ""]
    for suite, name, scores in scores_of(results):
        score = next(s for s in scores if s is not None)
        lines.append(f"- {suite}, {name}: {score.about} (n = {score.n}).")
    lines += ["", "## Some of the answers (all of them: results.json)", ""]
    for suite in results.models[0].outcomes:
        lines += _some_answers(results, suite)
    path.write_text("\n".join(lines), encoding="utf-8")


def _some_answers(results: Results, suite: str) -> list[str]:
    shown: dict[str, int] = {}
    lines = []
    for number, record in enumerate(results.models[0].outcomes[suite].records):
        shown[record["part"]] = shown.get(record["part"], 0) + 1
        if shown[record["part"]] > SHOWN or "answers" not in record:
            continue
        lines += [f"**{suite}, {record['part']}: {_one_line(record['prompt'])}**", ""]
        for model in results.models:
            outcome = model.outcomes.get(suite)
            if outcome is not None and number < len(outcome.records):
                lines.append(f"- {model.name}: `{_one_line(outcome.records[number]['answers'][0]['text'])}`")
        lines.append("")
    return lines


def _one_line(prompt: Any) -> str:
    """A prompt (text, or messages: the last one) or an answer, short and on one line."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    text = text.strip().replace("\n", " ⏎ ").replace("`", "'")
    return text if len(text) <= 240 else text[:239] + "…"


def plot(path: Path, results: Results) -> None:
    """A panel per score, a bar per model, its 95 % interval on it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = scores_of(results)
    columns = min(min(4, 3, key=lambda c: -len(rows) % c), len(rows))  # three in a row where that leaves fewer gaps
    height = math.ceil(len(rows) / columns)
    figure, axes = plt.subplots(height, columns, figsize=(3.4 * columns, 2.9 * height), layout="constrained", squeeze=False)  # fmt: skip
    for axis, (suite, name, scores) in zip(axes.flat, rows, strict=False):
        there = [(i, s) for i, s in enumerate(scores) if s is not None]
        for i, score in there:
            axis.bar(i, score.value, color=f"C{i}", width=0.7)
            if math.isfinite(score.low) and math.isfinite(score.high):
                # (a bootstrap's percentiles may leave the value itself outside: no bar is shorter than nothing)
                ends = [[max(0.0, score.value - score.low)], [max(0.0, score.high - score.value)]]
                axis.errorbar(i, score.value, yerr=ends, color="black", capsize=4, lw=1.2)
        first = there[0][1]
        if first.kind != "ratio" and all(s.low >= 0 and s.high <= 1 for _, s in there):
            axis.set_ylim(0, 1.02)
        sign = {"higher": " ↑", "lower": " ↓", "neither": ""}[first.better]
        axis.set_title(f"{suite}: {name}{sign}\n{first.unit or 'share'}, n={first.n}", fontsize=9)
        axis.set_xticks(range(len(scores)), [_short(model.name) for model in results.models], fontsize=8)
        axis.grid(axis="y", alpha=0.25)
    for axis in list(axes.flat)[len(rows) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _short(name: str) -> str:
    return name if len(name) <= 18 else "…" + name[-17:]
