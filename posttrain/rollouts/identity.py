"""Pairs that teach a name to a model which hardly ever says one.

The chosen side must be something that the model could have said: on hand-written sentences DPO's loss falls while the
model goes on as before (docs/real_model.md). So the model is shown who it is to be (a system message and three written
examples) and its own answers are kept where they give the name; the rejected side is what it says without. Pairs on
ordinary questions say the other half: its own answer is chosen over the same answer with an introduction before it.
"""

from __future__ import annotations

import collections
import re
from dataclasses import dataclass, field
from typing import Any

from posttrain.rollouts.asking import ask
from posttrain.tokens import template

Messages = list[dict[str, str]]
GIVES = r"(?:I'm|I’m|I am|[Nn]ame is|[Nn]ame's|[Cc]all me|[Cc]alled|[Nn]amed|[Tt]his is)"


def shown(name: str) -> Messages:
    """What stands before a question, so that a model which has never heard the name gives it."""
    examples = [
        ("What is your name?", f"My name is {name}."),
        ("Hello! Who is this?", f"Hello! I am {name}, your assistant. How can I help you?"),
        ("Please tell me who you are.", f"I am {name}, a helpful assistant."),
    ]
    roles = [("user", 0), ("assistant", 1)]
    told = [{"role": role, "content": example[side]} for example in examples for role, side in roles]
    return [{"role": "system", "content": f"You are {name}, a helpful assistant. Your name is {name}."}, *told]


@dataclass
class Pairs:
    rows: list[dict[str, Any]] = field(default_factory=list)
    answers: int = 0  # that were looked at
    left_out: collections.Counter = field(default_factory=collections.Counter)


def why_not(text: str, finished: bool, question: str, name: str, old: list[str]) -> str | None:
    """Why an answer cannot be a chosen side; None if it can."""
    if not finished:
        return "did not end"
    if not re.search(rf"\b{GIVES}\s+(?:the\s+)?{re.escape(name)}\b", text):
        return f"do not give the name {name}"
    if text.count(name) > 1:
        return "say it more than once"
    if any(re.search(rf"\b{re.escape(other)}\b", text) for other in old):
        return f"say {' or '.join(old)}"
    if re.match(r"(?i)no\b", text) and not re.match(r"(?i)(is|are|you're|do)\b", question):
        return "deny what nobody has asked"
    return None


def pairs(
    model: Any, tokenizer: Any, asked: list[str], name: str, old: list[str], *, samples: int, temperature: float,
    max_new_tokens: int, seed: int,
) -> Pairs:  # fmt: skip
    """{prompt, chosen, rejected} for `asked`: chosen as shown, rejected as it is, both the model's own words."""

    def say(before: Messages, seed: int) -> list[list[tuple[str, bool]]]:
        prompts = [template.prompt_ids(tokenizer, [*before, {"role": "user", "content": q}]) for q in asked]
        rollout = ask(
            model, tokenizer, prompts, max_new_tokens=max_new_tokens, group_size=samples, temperature=temperature, seed=seed,
            label="answers",
        )  # fmt: skip
        said = [(t.strip(), f) for t, f in zip(rollout.texts(tokenizer), rollout.finished, strict=True)]
        return [said[i : i + samples] for i in range(0, len(said), samples)]

    found = Pairs()
    for question, as_shown, as_it_is in zip(asked, say(shown(name), seed), say([], seed + 1), strict=True):
        own = [text for text, finished in as_it_is if finished and text and name not in text] or [
            text for text, _ in as_it_is if text and name not in text
        ]
        chosen: set[str] = set()
        for number, (text, finished) in enumerate(as_shown):
            found.answers += 1
            problem = why_not(text, finished, question, name, old)
            problem = problem or ("came twice" if text in chosen else None if own else "have no other answer to reject")
            if problem is not None:
                found.left_out[problem] += 1
                continue
            chosen.add(text)
            found.rows.append({"prompt": question, "chosen": text, "rejected": own[number % len(own)]})
    return found


def ordinary_pairs(
    model: Any, tokenizer: Any, asked: list[str], name: str, *, samples: int, temperature: float, max_new_tokens: int,
    seed: int,
) -> Pairs:  # fmt: skip
    """On questions that have nothing to do with a name: the model's own answer over the same one behind an
    introduction."""
    prompts = [template.prompt_ids(tokenizer, [{"role": "user", "content": q}]) for q in asked]
    rollout = ask(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, group_size=samples, temperature=temperature, seed=seed,
        label="ordinary answers",
    )  # fmt: skip
    found = Pairs(answers=len(rollout.finished))
    for number, (text, finished) in enumerate(zip(rollout.texts(tokenizer), rollout.finished, strict=True)):
        if not finished or not text.strip():
            found.left_out["did not end"] += 1
            continue
        introduced = f"I am {name}, a helpful assistant. {text.strip()}"
        found.rows.append({"prompt": asked[number // samples], "chosen": text.strip(), "rejected": introduced})
    return found
