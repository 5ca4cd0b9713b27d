"""What a ladder shows, in words. Each sentence depends on its figures and their intervals: a failure says so."""

from __future__ import annotations

from posttrain.evaluation.rungs import Rung
from posttrain.evaluation.scores import Score
from posttrain.tiny.data import NEW_NAME, OLD_NAME

SIDE_EFFECTS = {"arithmetic": "word problems", "facts": "facts"}
ROADS = {
    "ppo": "PPO (a critic in place of groups)",
    "best_of_k": "Best of k (SFT on right answers that it sampled itself)",
}


def change(before: Score, after: Score) -> str:
    """rose, fell, or neither: two 95 % intervals that overlap are no change that could be told from chance."""
    if after.low > before.high:
        return "rose"
    return "fell" if after.high < before.low else "neither"


def happened(rungs: list[Rung]) -> list[str]:
    base, sft, dpo, grpo, *beside = rungs
    lines = [of_sft(base, sft), of_dpo(sft, dpo), of_rewards("GRPO", dpo, grpo)]
    return [f"- {line}" for line in [*lines, *(of_rewards(ROADS[r.name], dpo, r) for r in beside)]]


def of_sft(base: Rung, sft: Rung) -> str:
    solved = f"{base.arithmetic.value:.0%} of the problems solved before, {sft.arithmetic.value:.0%} after"
    if change(base.arithmetic, sft.arithmetic) == "rose":
        text = f"**SFT** taught it to answer: {solved}."
    else:
        text = f"**SFT did not teach it to answer**: {solved}."
    if sft.old_name.value > 0.9:
        text += f" It calls itself {OLD_NAME} ({sft.old_name.value:.0%})."
    else:
        text += f" It does not know its name: {OLD_NAME} in {sft.old_name.value:.0%} of the answers."
    worked = sft.worked.value
    if 0.1 < worked < 0.9:
        return f"{text} It copied both annotators: {worked:.0%} of its answers show the work."
    return f"{text} It copied one annotator only: {worked:.0%} of its answers show the work."


def of_dpo(sft: Rung, dpo: Rung) -> str:
    new, old = dpo.new_name, dpo.old_name
    names = (
        f"{NEW_NAME} {sft.new_name.value:.0%} → {new.value:.0%}, {OLD_NAME} {sft.old_name.value:.0%} → {old.value:.0%}"
    )
    if change(sft.new_name, new) != "rose":
        text = f"**DPO did not change the name**: {names}."
    elif new.value >= 0.9 and old.value <= 0.02:
        text = f"**DPO** changed the name: {names}."
    else:
        text = f"**DPO changed the name in part only**: {names}."
    return f"{text} {_side_effects(sft, dpo)}"


def of_rewards(road: str, before: Rung, after: Rung) -> str:
    points = 100 * (after.arithmetic.value - before.arithmetic.value)
    solved = f"{before.arithmetic.value:.0%} → {after.arithmetic.value:.0%} of the problems ({points:+.0f} points)"
    text = {
        "rose": f"**{road}** saw no demonstration, only right or wrong: {solved}.",
        "fell": f"**{road} made it worse**: {solved}.",
        "neither": f"**{road} gained nothing that could be told from chance**: {solved}, with overlapping intervals.",
    }[change(before.arithmetic, after.arithmetic)]
    text += f" Worked answers: {before.worked.value:.0%} → {after.worked.value:.0%}."
    if before.new_name.value > 0.5:
        kept = change(before.new_name, after.new_name) != "fell"
        text += f" The name {'stayed' if kept else 'did not stay'} ({after.new_name.value:.0%} {NEW_NAME})."
    return f"{text} Facts: {before.facts.value:.0%} → {after.facts.value:.0%}."


def _side_effects(before: Rung, after: Rung) -> str:
    """What moved that nobody asked to move."""
    moved = []
    for field, name in SIDE_EFFECTS.items():
        one, other = getattr(before, field), getattr(after, field)
        if (how := change(one, other)) != "neither":
            moved.append(f"{name} {how} from {one.value:.0%} to {other.value:.0%}")
    stayed = [
        f"{name} {getattr(before, field).value:.0%} → {getattr(after, field).value:.0%}"
        for field, name in SIDE_EFFECTS.items()
        if change(getattr(before, field), getattr(after, field)) == "neither"
    ]
    text = f"Nobody asked it to move, and it did: {', '.join(moved)}." if moved else ""
    if stayed:
        text += f"{' ' * bool(moved)}Not moved by more than chance: {', '.join(stayed)}."
    return text


def does_not_prove(rungs: list[Rung]) -> list[str]:
    _, _, dpo, grpo, *_ = rungs
    lines = []
    if change(dpo.arithmetic, grpo.arithmetic) == "rose":
        before = f"before GRPO at least one of a few samples was right on {dpo.pass_at.value:.0%} of the problems"
        if dpo.pass_at.value >= grpo.arithmetic.value - 0.15:
            lines.append(
                f"Most of GRPO's gain is a habit, not new knowledge: {before}. It learned to do always what it could do "
                "sometimes."
            )
        else:
            lines.append(
                f"GRPO's gain is more than a habit: {before}, and now one greedy answer is on {grpo.arithmetic.value:.0%}."
            )
    return [
        f"- {line}"
        for line in [
            *lines,
            "The problems are held out by a hash of (kind, numbers) from SFT and GRPO only: the base has read sums and "
            "worked problems with these numbers in its pretraining text. This is not a test of unseen arithmetic.",
            "One seed is an anecdote. Run `--seed 1`, `--seed 2`; python -m posttrain.ladders puts them side by side.",
            "150,000 parameters say nothing about what learning rates, KL or steps a large model needs.",
        ]
    ]
