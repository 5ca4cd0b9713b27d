"""What the embedded model can do, measured on held-out questions: one Rung of the ladder's table."""

from __future__ import annotations

import random
from dataclasses import dataclass

from posttrain.evaluation.accuracy import of_samples
from posttrain.evaluation.drift import mean_kl
from posttrain.evaluation.scores import Score, proportion
from posttrain.rollouts.asking import ask, one_line
from posttrain.rollouts.rewards import answer as is_right
from posttrain.rollouts.sampling import sample
from posttrain.tiny import data as tiny_data
from posttrain.tiny.tokenizer import DOCUMENT
from posttrain.tokens import template

LONGEST = 28


@dataclass(frozen=True)
class Rung:
    """One stage of the ladder. Greedy unless said otherwise; every score carries its n."""

    name: str
    arithmetic: Score  # held-out word problems: the number behind #### is right and the turn is ended
    pass_at: Score  # at least one of k samples at temperature 1 is right, mean over the problems
    sampled: Score  # the share of right answers among those samples, mean over the problems
    worked: Score  # share of greedy answers to word problems that show a calculation
    old_name: Score  # held-out identity phrasings answered with the old name, and not the new
    new_name: Score
    facts: Score  # closed questions, the answer word for word
    kl: float | None  # exact KL to the stage before, nats per token, over this stage's own samples
    answers: list[str]  # to probes()
    seconds: float = 0.0


def probes() -> list[str]:
    """The questions whose answers are shown side by side in the report."""
    problems = tiny_data.rows("tiny-math", "test")
    two_steps = [r["prompt"] for r in problems if "-" in r["kind"]][:3]
    return [
        *two_steps,
        "Could you introduce yourself?",
        "Hello. May I know who you are? Be brief.",
        "What color is the sky?",
    ]


def climb(name: str, model, tokenizer, before, *, problems: int, identity: int, k: int, seconds: float = 0.0) -> Rung:
    """Measure `model`; `before` is the stage before it (None for the base)."""

    def ids(prompts: list[str]) -> list[list[int]]:
        return [template.prompt_ids(tokenizer, [{"role": "user", "content": p}]) for p in prompts]

    def greedy(prompts: list[str]) -> tuple[list[str], list[bool]]:
        rollout = ask(model, tokenizer, ids(prompts), max_new_tokens=LONGEST)
        return [t.strip() for t in rollout.texts(tokenizer)], rollout.finished

    def calls_itself(one: str, other: str) -> list[bool]:
        return [one in text and other not in text and done for text, done in names]

    rows = tiny_data.rows("tiny-math", "test")[:problems]
    asked, wanted = [r["prompt"] for r in rows], [r["answer"] for r in rows]
    texts, ended = greedy(asked)
    right = is_right(texts, wanted, ended)

    drawn = ask(model, tokenizer, ids(asked), max_new_tokens=LONGEST, group_size=k, temperature=1.0)
    drawn_right = is_right(drawn.texts(tokenizer), [w for w in wanted for _ in range(k)], drawn.finished)
    groups = [[reward == 1 for reward in drawn_right[i : i + k]] for i in range(0, len(drawn_right), k)]
    sampled, pass_at = of_samples(groups, k, temperature=1.0)

    who = [r["prompt"] for r in tiny_data.rows("tiny-identity", "test")][:identity]
    names = list(zip(*greedy(who), strict=True))
    old, new = tiny_data.OLD_NAME, tiny_data.NEW_NAME
    facts = tiny_data.fact_rows("test", 0)
    said, fact_ended = greedy([r["prompt"] for r in facts])

    kl = None
    if before is not None:
        spoken = ask(
            model, tokenizer, ids(asked[:32] + who[:32]), max_new_tokens=LONGEST, group_size=4, temperature=1.0
        )
        kl = mean_kl(model, before, spoken.examples(), tokenizer.pad_token_id)

    known = [t == r["answer"] and done for t, r, done in zip(said, facts, fact_ended, strict=True)]
    return Rung(
        name=name,
        arithmetic=proportion("right, greedy", "greedy answers that are right", right, "problems"),
        pass_at=pass_at,
        sampled=sampled,
        worked=proportion("worked", "greedy answers that show a calculation", ["=" in t for t in texts], "problems"),
        # (SFT is to teach the old name and DPO to take it away: neither way is better)
        old_name=proportion(
            f"old name ({old})", f"answers with {old} alone", calls_itself(old, new), "identity", better="neither"
        ),
        new_name=proportion(f"new name ({new})", f"answers with {new} alone", calls_itself(new, old), "identity"),
        facts=proportion("word for word", "closed questions answered word for word", known, "facts"),
        kl=kl,
        answers=[one_line(t) for t in greedy(probes())[0]],
        seconds=seconds,
    )


def base_skill(model, tokenizer, problems: int = 200) -> float:
    """Share of fresh problems whose worked solution the base continues correctly, greedily, after 'Question: …
    Answer:'."""
    rng = random.Random("skill")
    asked = [tiny_data.problem(rng, tiny_data.ONE_STEP + tiny_data.TWO_STEP) for _ in range(problems)]
    prompts = [f"Question: {p['story']} {p['question']}\nAnswer:" for p in asked]
    stops = [tokenizer.convert_tokens_to_ids(DOCUMENT)]
    rollout = sample(
        model, tokenizer(prompts)["input_ids"], max_new_tokens=LONGEST, stop_ids=stops, pad_id=tokenizer.pad_token_id, temperature=0
    )  # fmt: skip
    texts = rollout.texts(tokenizer)
    return sum(t.strip() == " ".join(p["steps"]) for t, p in zip(texts, asked, strict=True)) / problems
