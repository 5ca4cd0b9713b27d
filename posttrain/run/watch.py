"""Warnings that teach: what the metrics of a run say when it dies quietly. A pure function of the rows, told once."""

from __future__ import annotations

from collections.abc import Sequence

STEPS = 10  # how many steps in a row a sign has to last
MOST_NEGATIVE_K1 = -0.01  # nats per token
CHOSEN_FALL = 0.5  # nats per token, against the first steps


def lessons(metrics: Sequence[dict[str, float]]) -> dict[str, str]:
    """{name: sentence} for every sign that the last rows of a run show."""
    out, last = {}, metrics[-STEPS:]
    if len(last) == STEPS:
        if _all(last, "kl_k1", lambda x: x < MOST_NEGATIVE_K1):
            out["kl_k1"] = (
                f"kl_k1 has been below {MOST_NEGATIVE_K1} for {STEPS} steps. KL(policy || reference) cannot be negative: the tokens were not "
                "sampled from the policy that is trained (another temperature or mask, stale log-probs), or the sign is turned"
            )
        if _all(last, "dead_groups", lambda x: x == 1):
            reward = last[-1]["reward"]
            out["dead_groups"] = (
                f"every group has been dead for {STEPS} steps (mean reward {reward:.3g}): all advantages are 0 and only the KL term moves the "
                "weights. Take problems that the model solves sometimes, or a reward with more than two values"
            )
        if _all(last, "finished", lambda x: x == 0):
            out["finished"] = (
                f"no answer has ended by itself for {STEPS} steps: raise max_new_tokens, or teach the model to stop first (SFT)"
            )
        if "reward" in last[-1] and _all(last, "entropy", lambda x: x < 1e-3):
            out["entropy"] = (
                f"the entropy has been below 0.001 nats for {STEPS} steps: the policy has stopped exploring, all samples are the same"
            )
    name = "chosen_logps_per_token"
    if len(metrics) >= 2 * STEPS and name in metrics[0] and name in metrics[-1]:
        fall = _mean(metrics[:STEPS], name) - _mean(last, name)
        if fall > CHOSEN_FALL:
            out[name] = (
                f"the chosen answers have lost {fall:.2f} nats per token since the first {STEPS} steps (more than {CHOSEN_FALL}): the margin "
                "grows because the rejected ones fall faster. Add an NLL term (dpo.sft_weight; orpo has one), or lower training.learning_rate"
            )
    return out


def _all(rows: Sequence[dict[str, float]], name: str, holds) -> bool:
    return all(name in row and holds(row[name]) for row in rows)


def _mean(rows: Sequence[dict[str, float]], name: str) -> float:
    values = [row[name] for row in rows if name in row]
    return sum(values) / len(values)
