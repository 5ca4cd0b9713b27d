"""curves.png: one panel for every metric of a run, each with a line on what healthy looks like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# metric -> what a healthy run looks like: the small print under its panel
HEALTHY = {
    "loss": "falls, then flattens",
    "nll": "falls, then flattens (nats per token)",
    "validation_loss": "falls with the training loss; rising = overfitting",
    "dpo_loss": "starts at ln 2 = 0.693 (ipo: 1/(2 beta)^2, apo: 1), falls",
    "divergence": "falls (nats per token)",
    "teacher_kl": "falls (nats per token, estimated from the sampled ones)",
    "z0": "bounded: how far the model has drifted anyway",
    "accuracy": "rises towards 1 (DPO's first step has ties only, and shows 0)",
    "margin": "rises; look at chosen below, too",
    "rewards": "near the log-odds of being right",
    "rewards_chosen": "near or above 0; falling = the good answers get less likely",
    "rewards_rejected": "falls below 0",
    "chosen_logps_per_token": "does not fall",
    "rejected_logps_per_token": "falls, and below chosen",
    "validation_accuracy": "follows the training accuracy",
    "reward": "rises",
    "reward_held_out": "rises with the reward",
    "dead_groups": "below 1: a group of equal rewards teaches nothing",
    "resamples": "further rollouts for this step (dynamic sampling)",
    "groups_left_over": "sampled and thrown away (dynamic sampling)",
    "groups_missing": "0; above = max_resamples was too few",
    "overlong_punishment": "near 0; -1 = every answer reaches the end",
    "importance_weight": "1; else the sampler is not the trainer",
    "importance_cut": "near 0: tokens at the cap, or outside the range",
    "kl": "small and bounded (nats per token)",
    "kl_k1": "near kl; far below 0 = sampler and trainer disagree",
    "clip_fraction": "0 with one update per rollout; small otherwise",
    "ratio": "1 with one update per rollout; near 1 otherwise",
    "completion_length": "settles; pinned at the maximum = never stops",
    "finished": "1, or rising towards it",
    "p_stop": "rises: how sure the model is where answers end",
    "parse_failures": "falls",
    "entropy": "falls slowly; 0 = nothing left to explore",
    "explained_variance": "above 0, rising: the critic knows more than the mean",
    "value": "follows the return",
    "return": "the reward, less the KL that was paid",
    "policy_loss": "says nothing about progress: watch the reward",
    "value_loss": "falls; grows with the reward's scale",
    "value_clip_fraction": "small",
    "kl_coef": "settles (moves with kl_target only)",
    "grad_norm": "bounded, without spikes",
    "critic_grad_norm": "bounded, without spikes",
    "learning_rate": "the schedule",
    "tokens_per_second": "steady (prompts and answers, padding not counted)",
    "memory_gib": "flat after the first steps: a rise is a leak",
}
GAP = "comes near the dashed line; far below it, it will not be said"
NOTES = {
    "reward": {
        "loss": "starts at ln 2 = 0.693, falls",
        "rewards_chosen": "above rejected; only the difference is learned",
        "rewards_rejected": "below chosen",
    },
    "kto": {
        "loss": "starts at a half of the mean weight, falls",
        "accuracy": "answers on their label's side of z0: rises",
    },
    "grpo": {"loss": "says nothing about progress: watch the reward"},
    "dpo": {"loss": "dpo_loss + sft_weight x NLL: falls"},
}


def plot_curves(path: Path, metrics: Sequence[dict[str, float]], method: str, own: Sequence[float] = ()) -> None:
    """One panel per metric that this run has, each with a line on what healthy looks like.

    own: log-prob per token of the model's own greedy answers, before and after: a chosen side must come near to it."""
    found = dict.fromkeys(name for row in metrics for name in row if name not in ("step", "seconds"))
    found = [name for name in found if not name.startswith("eval/") or not name.endswith(("/low", "/high", "/n"))]
    names = [name for name in HEALTHY if name in found] + [name for name in found if name not in HEALTHY]
    if not names:
        return
    from matplotlib.figure import Figure  # not pyplot: the backend of a notebook that runs a loop stays what it is

    columns = min(4, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        rows = [row for row in metrics if name in row]
        axis.plot([r["step"] for r in rows], [r[name] for r in rows], lw=1.3, marker="." if len(rows) < 15 else None)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel(legend(name, method), fontsize=7, color="0.4")
        if name.startswith("eval/"):
            _interval(axis, rows, name)
        if name == "chosen_logps_per_token" and len(own) == 2:
            ends = (rows[0]["step"], rows[-1]["step"])
            axis.plot(ends, own, lw=1.0, ls="--", color="0.4", label="its own greedy answers")
            axis.set_xlabel(GAP, fontsize=7, color="0.4")
            axis.legend(fontsize=7)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    figure.savefig(path, dpi=110)


def _interval(axis: Any, rows: Sequence[dict[str, float]], name: str) -> None:
    """The band about a suite's score, where it has one."""
    known = [row for row in rows if f"{name}/low" in row and f"{name}/high" in row]
    low, high = ([row[f"{name}/{end}"] for row in known] for end in ("low", "high"))
    axis.fill_between([row["step"] for row in known], low, high, alpha=0.2, lw=0)
    axis.set_xlabel(f"{legend(name, '')}, n = {rows[-1][f'{name}/n']:.0f}", fontsize=7, color="0.4")


def legend(name: str, method: str) -> str:
    """One line on what a healthy curve of this metric looks like."""
    if name.startswith("watched/"):
        return "only measured: falling while the reward rises = over-optimised"
    if name.startswith("eval/"):
        return "a suite's score and its 95 % interval"
    if name.startswith("logged/"):
        return "logged by a reward function (log_metric)"
    return NOTES.get(method, {}).get(name, HEALTHY.get(name, "one of the reward functions: rises"))
