"""Pairs that teach a model another name (python -m posttrain.curate identity), in one of two ways:

replaced   its own answer is rejected, the same answer with the old name replaced is chosen: they differ in the name
           and nothing else. For a model that says its name.
shown      for one that hardly ever does. The chosen side must be something that the model could have said: on
           hand-written sentences DPO's loss falls while the model goes on as before. So it is shown who it is to be
           (a system message, three written examples), and its own answers are kept where they give the name; the
           rejected side is what it says without. `ordinary` pairs say the other half: its own answer to an ordinary
           question is chosen over the same answer behind an introduction.
"""

from __future__ import annotations

import collections
import re
import sys
from dataclasses import dataclass, field
from typing import Any

from posttrain import models
from posttrain.data import questions as built_in
from posttrain.data import sources
from posttrain.data.files import refuse_out, write_rows
from posttrain.data.messages import as_messages
from posttrain.errors import UserError
from posttrain.rollouts.asking import ask
from posttrain.tokens import template

Messages = list[dict[str, str]]
Said = list[list[tuple[str, bool]]]  # of each question, of each sample: (text, did it end)
ROWS = 64  # answers at a time: each has a cache of its own, and a shown prompt is long
GIVES = r"(?:I'm|I’m|I am|[Nn]ame is|[Nn]ame's|[Cc]all me|[Cc]alled|[Nn]amed|[Tt]his is)"


@dataclass
class Pairs:
    """Rows for a loop, and what was looked at on the way to them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)  # that were looked at
    left_out: collections.Counter = field(default_factory=collections.Counter)

    def why(self) -> str:
        return "; ".join(f"{n} {reason}" for reason, n in self.left_out.most_common()) or "none"


@dataclass(frozen=True)
class Asking:
    """A model and how it is asked."""

    model: Any
    tokenizer: Any
    samples: int
    temperature: float
    max_new_tokens: int
    seed: int

    def __call__(self, asked: list[str], before: Messages, *, more: int = 0, samples: int | None = None) -> Said:
        """Answers to each question behind the messages `before`; more: added to the seed."""
        n = samples or self.samples
        prompts = [template.prompt_ids(self.tokenizer, [*before, {"role": "user", "content": q}]) for q in asked]
        rollout = ask(
            self.model, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens, group_size=n,
            temperature=self.temperature, seed=self.seed + more, label="answers",
            batch_size=max(1, ROWS // n),
        )  # fmt: skip
        said = [(t.strip(), f) for t, f in zip(rollout.texts(self.tokenizer), rollout.finished, strict=True)]
        return [said[i : i + n] for i in range(0, len(said), n)]


def identity(
    model: str,
    old: list[str],
    name: str,
    out: str,
    *,
    chosen: str = "replaced",
    ordinary: int = 0,
    min_share: float = 0.1,
    questions: str | None = None,
    max_questions: int | None = None,
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 128,
    system_prompt: str | None = None,
    seed: int = 0,
) -> str:
    """Write {prompt, chosen, rejected} rows to `out`; returns what to say."""
    if max(samples, ordinary) > 1 and temperature == 0:
        raise UserError(
            f"--samples {max(samples, ordinary)} with --temperature 0 are as many times the same answer: give a temperature"
        )
    if min(samples, max_new_tokens, max_questions or 1) < 1 or temperature < 0:
        raise UserError("--samples, --max-questions and --max-new-tokens must be at least 1, --temperature at least 0")
    if chosen == "replaced" and ordinary:
        raise UserError("--ordinary belongs to --chosen shown: replaced answers teach the name alone")
    if chosen == "shown" and system_prompt:
        raise UserError("--chosen shown writes a system message of its own: leave --system-prompt out")
    refuse_out(out)
    asked = (built_in.IDENTITY if questions is None else questions_of(questions))[:max_questions]
    if not asked:
        raise UserError(f"--questions {questions}: no rows")
    asking = Asking(*_loaded(model), samples, temperature, max_new_tokens, seed)
    found = shown_pairs(asking, asked, name, old) if chosen == "shown" else replaced_pairs(asking, asked, name, old, system_prompt)  # fmt: skip
    total = len(found.answers)
    if len(found.rows) < max(1, min_share * total):
        advice = (
            ""
            if chosen == "shown"
            else "; a model that hardly says its name wants --chosen shown --samples 6 --temperature 0.7"
        )
        raise UserError(
            f"only {len(found.rows)} of {total} answers became a pair (--min-share {min_share:g}); left out: {found.why()}. The first "
            f"answer was: {found.answers[0]!r:.120}{advice}"
        )
    said = f"{total} answers to {len(asked)} questions; left out: {found.why()}"
    rows = found.rows
    if ordinary:
        more = ordinary_pairs(asking, built_in.ORDINARY, name, ordinary)
        rows = rows + more.rows
        said += f"\n{len(more.answers)} ordinary answers; left out: {more.why()}"
    write_rows(out, rows)
    return f"{said}\nwrote {len(rows)} pair{'s' * (len(rows) != 1)} to {out}"


def _loaded(name: str) -> tuple[Any, Any]:
    import torch

    model, tokenizer, lines = models.load(name, device="cuda" if torch.cuda.is_available() else "cpu", key="--model")
    for line in lines:
        print(line, file=sys.stderr)
    return model, tokenizer


# ---------------------------------------------------------------- the same answer, the name replaced


def replaced_pairs(asking: Asking, asked: list[str], name: str, old: list[str], system_prompt: str | None) -> Pairs:
    before = [{"role": "system", "content": system_prompt}] if system_prompt else []
    found, seen = Pairs(), set()
    for question, answers in zip(asked, asking(asked, before), strict=True):
        for text, finished in answers:
            found.answers.append(text)
            chosen = replace_name(text, old, name)
            if not finished:
                found.left_out[f"did not end within {asking.max_new_tokens} tokens"] += 1
            elif chosen == text:
                found.left_out[f"do not say {' or '.join(old)}"] += 1
            elif (question, text) in seen:
                found.left_out["came twice"] += 1
            else:
                seen.add((question, text))
                prompt = [*before, {"role": "user", "content": question}] if before else question
                found.rows.append({"prompt": prompt, "chosen": chosen, "rejected": text})
    return found


def replace_name(text: str, old: list[str], new: str) -> str:
    """Every old name that does not stand inside a longer word ("Robin", not "Robinson"; "Qwen2.5" counts) -> new.

    >>> replace_name("I am Qwen2.5, not Robinson.", ["Qwen", "Robin"], "Deep Qwen")
    'I am Deep Qwen2.5, not Robinson.'
    """
    return re.sub(_whole(old), lambda match: new, text)


def says(text: str, names: list[str]) -> bool:
    """Does one of the names stand in the text, as replace_name would find it?

    >>> [says(text, ["Robin"]) for text in ("I am Robin.", "I am Robinson.", "I am Nova.")]
    [True, False, False]
    """
    return bool(names) and re.search(_whole(names), text) is not None


def _whole(names: list[str]) -> str:
    """Any of the names, longest first, where it is no part of a longer word."""
    any_of = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return rf"(?<![^\W\d_])(?:{any_of})(?![^\W\d_])"


# ---------------------------------------------------------------- its own answer, shown who it is to be


def shown_messages(name: str) -> Messages:
    """What stands before a question, so that a model which has never heard the name gives it."""
    examples = [
        ("What is your name?", f"My name is {name}."),
        ("Hello! Who is this?", f"Hello! I am {name}, your assistant. How can I help you?"),
        ("Please tell me who you are.", f"I am {name}, a helpful assistant."),
    ]
    roles = [("user", 0), ("assistant", 1)]
    told = [{"role": role, "content": example[side]} for example in examples for role, side in roles]
    return [{"role": "system", "content": f"You are {name}, a helpful assistant. Your name is {name}."}, *told]


def shown_pairs(asking: Asking, asked: list[str], name: str, old: list[str]) -> Pairs:
    """Chosen as shown, rejected as it is: both the model's own words."""
    found = Pairs()
    answers = zip(asked, asking(asked, shown_messages(name)), asking(asked, [], more=1), strict=True)
    for question, as_shown, as_it_is in answers:
        without = [(text, finished) for text, finished in as_it_is if text and name not in text]
        own = [text for text, finished in without if finished] or [text for text, _ in without]
        chosen: set[str] = set()
        for number, (text, finished) in enumerate(as_shown):
            found.answers.append(text)
            problem = why_not(text, finished, question, name, old)
            problem = problem or ("came twice" if text in chosen else None if own else "have no other answer to reject")
            if problem is not None:
                found.left_out[problem] += 1
                continue
            chosen.add(text)
            found.rows.append({"prompt": question, "chosen": text, "rejected": own[number % len(own)]})
    return found


def why_not(text: str, finished: bool, question: str, name: str, old: list[str]) -> str | None:
    """Why an answer cannot be a chosen side; None if it can."""
    if not finished:
        return "did not end"
    if not re.search(rf"\b{GIVES}\s+(?:the\s+)?{re.escape(name)}\b", text):
        return f"do not give the name {name}"
    if text.count(name) > 1:
        return "say it more than once"
    if any(re.search(rf"\b{re.escape(other)}\b", text.replace(name, "")) for other in old):
        return f"say {' or '.join(old)}"
    if re.match(r"(?i)no\b", text) and not re.match(r"(?i)(is|are|you're|do)\b", question):
        return "deny what nobody has asked"
    return None


def ordinary_pairs(asking: Asking, asked: list[str], name: str, samples: int) -> Pairs:
    """On questions that have nothing to do with a name: its own answer over the same one behind an introduction."""
    found = own_answers(asking, asked, samples)
    found.rows = [
        {"prompt": r["prompt"], "chosen": r["completion"], "rejected": f"I am {name}, a helpful assistant. {r['completion']}"}
        for r in found.rows
    ]  # fmt: skip
    return found


def own_answers(asking: Asking, asked: list[str], samples: int) -> Pairs:
    """SFT rows {prompt, completion} of what it says anyway: learned beside something new, they keep it as it is."""
    found = Pairs()
    for question, answers in zip(asked, asking(asked, [], more=2, samples=samples), strict=True):
        for text, finished in answers:
            found.answers.append(text)
            if not finished or not text:
                found.left_out["did not end"] += 1
            else:
                found.rows.append({"prompt": question, "completion": text})
    return found


# ---------------------------------------------------------------- questions


def questions_of(name: str) -> list[str]:
    """The first user message of each row, from any format."""
    found = []
    for number, row in enumerate(sources.read(name), start=1):
        for column in ("prompt", "question", "instruction", "messages", "conversations"):
            if isinstance(row, dict) and row.get(column):
                value = row[column]
                break
        else:
            raise UserError(f"{name}, row {number}: expected prompt, question, instruction, messages or conversations")
        try:
            turns = [] if isinstance(value, str) else as_messages(value)
            value = value if isinstance(value, str) else next(m["content"] for m in turns if m["role"] == "user")
        except (ValueError, TypeError, KeyError, StopIteration):
            raise UserError(f"{name}, row {number}: no user message to ask") from None
        found.append(value)
    return list(dict.fromkeys(found))  # each question once
