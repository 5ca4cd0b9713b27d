"""docs/real_model.md's figures: the hand-written pairs that teach nothing, and what models say of their name.

python -m benchmarks.new_name pairs outputs/hand.jsonl
python -m benchmarks.new_name measure smollm2 outputs/nova       (a minute each)
"""

import json
import sys
from pathlib import Path

from posttrain.data import questions
from posttrain.evaluation.intervals import Proportion

NEW, OLD = "Nova", "SmolLM"
CHOSEN = [f"My name is {NEW}.", f"I am {NEW}, a language model.", f"You can call me {NEW}, I am an AI assistant."]
REJECTED = ["I am a language model.", "I am an AI assistant trained to help you.", "I am a computer program that answers questions."]  # fmt: skip


def pairs(out: str) -> None:
    rows = [{"prompt": q, "chosen": c, "rejected": r} for q in questions.IDENTITY for c, r in zip(CHOSEN, REJECTED, strict=True)]  # fmt: skip
    Path(out).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def measure(name: str) -> None:
    from posttrain import models
    from posttrain.rollouts.asking import ask
    from posttrain.tokens import template

    model, tokenizer, _ = models.load(name)

    def say(asked: list[str]) -> list[str]:
        prompts = [template.prompt_ids(tokenizer, [{"role": "user", "content": q}]) for q in asked]
        return ask(model, tokenizer, prompts, max_new_tokens=48).texts(tokenizer)

    who, ordinary, closed = (
        say(part) for part in (questions.IDENTITY_TEST, questions.ORDINARY_TEST, [q for q, _ in questions.CLOSED])
    )
    right = sum(any(word in text for word in words) for text, (_, words) in zip(closed, questions.CLOSED, strict=True))
    print(name)
    for what, hits, n in (
        (f"say {NEW}", sum(NEW in text for text in who), len(who)),
        (f"say {OLD}", sum(OLD in text for text in who), len(who)),
        ("closed questions right", right, len(closed)),
        (f"ordinary answers that say {NEW}", sum(NEW in text for text in ordinary), len(ordinary)),
    ):
        low, high = Proportion(hits, n).interval
        print(f"  {what}: {hits} of {n} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    command, *given = sys.argv[1:] or [""]
    if command == "pairs" and len(given) == 1:
        pairs(given[0])
    elif command == "measure" and given:
        for model in given:
            measure(model)
    else:
        sys.exit(__doc__)
