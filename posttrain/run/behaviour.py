"""A run that has learned nothing must not look healthy: did what the model *says* move, as the loss did?

DPO's loss falls as soon as the rejected answers become unlikely; whether the chosen ones became likely enough to be
said is another question, and no curve of the loss answers it.
"""

from __future__ import annotations

from collections.abc import Sequence

FELL = 0.3  # share of its first value that the loss must have lost to promise a change
# Nats per token between the model's own greedy answer and the ones it was to learn. On SmolLM2: 1.7 and 1.8 after runs
# whose new name hardly any answer gives, 1.25 after one that nearly every answer gives (docs/real_model.md).
FAR = 1.5


def told(
    method: str, metrics: Sequence[dict[str, float]], samples: Sequence[tuple[str, str, str]], own: Sequence[float]
) -> str | None:
    """What the model says now, in one line, for SFT and DPO: how many of its greedy answers changed, and how near the
    chosen side stands to them."""
    if method not in ("sft", "dpo") or not samples:
        return None
    line = f"{sum(before != after for _, before, after in samples)} of {len(samples)} greedy answers changed"
    if method == "dpo" and metrics and own:
        few = metrics[-max(1, len(metrics) // 10) :]
        chosen = sum(row["chosen_logps_per_token"] for row in few) / len(few)
        line += f"; chosen answers stand at {chosen:.1f} nats per token, its own at {own[-1]:.1f}"
    return line


def remark(
    method: str, metrics: Sequence[dict[str, float]], samples: Sequence[tuple[str, str, str]], own: Sequence[float]
) -> str | None:
    """The sentence for an SFT or DPO run whose loss fell while its behaviour did not move; None for any other.

    samples: (prompt, greedy answer before, after). own: log-prob per token that the model gave to these answers, before
    and after."""
    if method not in ("sft", "dpo") or len(metrics) < 4 or not samples or not own:
        return None
    few = max(1, len(metrics) // 10)
    loss = "dpo_loss" if method == "dpo" else "loss"
    first, last = (sum(row[loss] for row in part) / few for part in (metrics[:few], metrics[-few:]))
    if last > (1 - FELL) * first:
        return None
    still = all(before == after for _, before, after in samples)
    told = f"the loss fell from {first:.3g} to {last:.3g}, but "
    unmoved = f"none of {len(samples)} greedy answers changed"
    if method == "dpo":
        chosen = sum(row["chosen_logps_per_token"] for row in metrics[-few:]) / few
        if own[-1] - chosen > FAR:
            return f"{told}{unmoved + ', and ' if still else ''}" + (
                f"the chosen answers stand at {chosen:.1f} nats per token where the model's own stand at {own[-1]:.1f}: it will "
                "hardly say them. Chosen answers near what the model says (python -m posttrain.curate identity --chosen shown), "
                "dpo.sft_weight: 1.0, a higher learning rate or SFT on the chosen answers first bring them nearer"
            )
    if still:
        return f"{told}{unmoved}: a higher learning rate, more steps, or other prompts in the data than those that are asked"
    return None
