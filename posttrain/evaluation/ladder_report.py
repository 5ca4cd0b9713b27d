"""The ladder's report: its models in one picture and one table, curves, answers side by side, and words."""

from __future__ import annotations

import json
import platform
import statistics
from pathlib import Path

from posttrain import ROOT
from posttrain.evaluation import report, verdicts
from posttrain.evaluation.report import markdown_table
from posttrain.evaluation.results import Measured, Results
from posttrain.evaluation.rungs import Rung, probes
from posttrain.evaluation.scores import Outcome
from posttrain.tiny import data as tiny_data


def table(rungs: list[Rung], config) -> str:
    header = [
        "stage",
        "arithmetic",
        f"pass@{config.ladder.pass_at}",
        "worked",
        "old name",
        "new name",
        "facts",
        "KL",
        "seconds",
    ]
    rows = [
        [
            r.name,
            f"**{r.arithmetic.value:.2f}** [{r.arithmetic.low:.2f}, {r.arithmetic.high:.2f}]",
            f"{r.pass_at.value:.2f}",
            f"{r.worked.value:.2f}",
            f"{r.old_name.value:.2f}",
            f"{r.new_name.value:.2f}",
            f"{r.facts.value:.2f}",
            "" if r.kl is None else f"{r.kl:.3f}",
            f"{r.seconds:.0f}",
        ]
        for r in rungs
    ]
    return markdown_table(header, rows)


def write(folder: Path, config, rungs: list[Rung], metrics: dict[str, list[dict]]) -> None:
    (folder / "rungs.json").write_text(json.dumps([numbers(r) for r in rungs], indent=1))
    report.plot(folder / "scores.png", as_results(rungs))
    plot(folder / "curves.png", rungs, metrics)
    n, who, facts = rungs[0].arithmetic.n, rungs[0].old_name.n, rungs[0].facts.n
    lines = [
        "# The ladder", "",
        f"seed {config.ladder.seed}, base `{config.ladder.base}`, one CPU thread of {platform.machine()}, {platform.system()}", "",
        "![scores](scores.png)", "",
        table(rungs, config), "",
        f"Greedy answers to {n} held-out word problems (95 % Wilson interval), {who} held-out identity questions and {facts} "
        f"closed facts; pass@{config.ladder.pass_at} from samples at temperature 1. *worked*: the greedy answer shows a "
        "calculation. KL: exact, nats per token, to the stage before, on this stage's own samples. Seconds: training "
        "(for the base: building it, or reading it from the cache). In the picture 95 % intervals, those of samples over problems.", "",
        "![curves](curves.png)", "",
        "## What happened", "",
        *verdicts.happened(rungs), "",
        *beside_ours(config, rungs),
        "## What it does not prove", "",
        *verdicts.does_not_prove(rungs), "",
        "## The same questions at each stage", "",
    ]  # fmt: skip
    for i, probe in enumerate(probes()):
        lines += [f"**{probe}**", "", *(f"- {r.name}: `{r.answers[i]}`" for r in rungs), ""]
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")


def beside_ours(config, rungs: list[Rung]) -> list[str]:
    """Is this ladder like those that were run over other seeds, bases and roundings? Told of the shipped one only."""
    file, ladder = ROOT / "benchmarks/expected/ladder_tiny.json", config.ladder
    changed = any(getattr(ladder, name).overrides for name in ("sft", "dpo", "grpo"))
    if changed or (ladder.problems, ladder.identity, ladder.pass_at) != (300, 100, 8) or not file.is_file():
        return []
    expected, outside = json.loads(file.read_text()), []
    for rung in rungs:
        for name, (low, high) in expected["stages"].get(rung.name, {}).items():
            value = numbers(rung)[name]
            if not low <= value <= high:
                outside.append(f"{name.replace('_', ' ')} after {rung.name} {value:.2f}, not {low:.2f} to {high:.2f}")
    text = f"outside it: {'; '.join(outside)}" if outside else "all of this ladder's figures are inside it"
    return [f"- Beside the range of {expected['ladders']} ladders ({expected['over']}): {text}.", ""]


def numbers(rung: Rung) -> dict:
    """The table's row as plain numbers, for rungs.json."""
    scores = {
        name: getattr(rung, name).value
        for name in ("arithmetic", "sampled", "worked", "old_name", "new_name", "facts", "pass_at")
    }
    return {"stage": rung.name, **scores, "kl": rung.kl, "seconds": rung.seconds}


def as_results(rungs: list[Rung]) -> Results:
    """What posttrain.evaluate would hold of these models, for its bars: the scores that people ask for."""
    groups = {"word problems": ("arithmetic", "sampled", "pass_at"), "identity": ("old_name", "new_name"), "facts": ("facts",)}  # fmt: skip
    models = [
        Measured(r.name, {}, {group: Outcome([getattr(r, f) for f in fields], []) for group, fields in groups.items()})
        for r in rungs
    ]
    return Results({}, {}, models)


def spread(folders: list[str]) -> str:
    """min / median / max of each number over several ladders, one row per stage."""
    ladders = [json.loads((Path(f) / "rungs.json").read_text()) for f in folders]
    columns = {"arithmetic": "arithmetic", "pass_at": "pass@k", "worked": "worked", "old_name": "old name",
               "new_name": "new name", "facts": "facts", "kl": "KL", "seconds": "seconds"}  # fmt: skip
    rows = []
    for stages in zip(*ladders, strict=True):
        row = [stages[0]["stage"]]
        for name in columns:
            values = [s[name] for s in stages if s[name] is not None]
            digits = 0 if name == "seconds" else 2
            row.append(" / ".join(f"{f(values):.{digits}f}" for f in (min, statistics.median, max)) if values else "")
        rows.append(row)
    return markdown_table(["stage", *columns.values()], rows)


def plot(path: Path, rungs: list[Rung], metrics: dict[str, list[dict]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.2), layout="constrained")
    names = [r.name for r in rungs]
    for label, field in (("word problems", "arithmetic"), ("worked", "worked"), ("facts", "facts")):
        axes[0, 0].plot(names, [getattr(r, field).value for r in rungs], marker="o", label=label)
    for label, field in (
        (f"old name ({tiny_data.OLD_NAME})", "old_name"),
        (f"new name ({tiny_data.NEW_NAME})", "new_name"),
    ):
        axes[0, 1].plot(names, [getattr(r, field).value for r in rungs], marker="o", label=label)
    axes[0, 0].set_title("skills (held out, greedy)", fontsize=10)
    axes[0, 1].set_title("identity (held out, greedy)", fontsize=10)
    for axis in axes[0, :2]:
        axis.set_ylim(-0.05, 1.05)

    def curve(axis, stage: str, keys: list[str]) -> None:
        for key in keys:
            rows = [r for r in metrics[stage] if key in r]
            axis.plot([r["step"] for r in rows], [r[key] for r in rows], label=key.replace("_", " "), lw=1.2)
        axis.set_xlabel("optimiser step", fontsize=8)

    curve(axes[0, 2], "sft", ["nll"])
    axes[0, 2].set_title("SFT: loss per token (nats)", fontsize=10)
    curve(axes[1, 0], "dpo", ["chosen_logps_per_token", "rejected_logps_per_token"])
    axes[1, 0].set_title("DPO: log-prob per token (chosen must not fall)", fontsize=10)
    curve(axes[1, 1], "grpo", ["reward", "dead_groups"])
    axes[1, 1].set_title("GRPO: reward, and groups that teach nothing", fontsize=10)
    curve(axes[1, 2], "grpo", ["kl"])
    axes[1, 2].set_title("GRPO: KL to the reference (k3, nats per token)", fontsize=10)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
