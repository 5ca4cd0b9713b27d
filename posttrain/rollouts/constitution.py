"""A model that mends its own answers by written principles (python -m posttrain.curate constitution): Constitutional
AI, Bai et al. 2022 (arXiv 2212.08073), section 3, and the labels of section 4.

1. The model answers a prompt.
2. It is shown a principle, drawn by the seed, and names what in its answer goes against it: the critique.
3. It is shown its critique, and writes the answer again: the revision.

    sft     {prompt, completion}        the revision
    pairs   {prompt, chosen, rejected}  the revision above the first answer
    labels  {prompt, chosen, rejected}  two sampled answers, compared by a judge: preference_labels.py

The critique is the critic's, who may be another model; the revision is always the model's own, so that what is learned
is something that it can say. Left out: examples before the critique (the paper shows a few), several rounds.
"""

from __future__ import annotations

import collections
import random
import re
from pathlib import Path
from typing import Any

from posttrain.data.files import reading, refuse_out, write_rows
from posttrain.data.filters import normalised
from posttrain.data.messages import Messages
from posttrain.errors import UserError
from posttrain.rollouts.preference_labels import Judge, labelled
from posttrain.rollouts.speaking import Said, Speaker, one_prompt, rows_to_ask

PRINCIPLES = Path(__file__).parents[1] / "data" / "principles.txt"
CRITIQUE = (
    "Here is a principle for your last answer: {principle}\n\nWhat in your last answer goes against this principle? Name it in at "
    "most three sentences. If nothing does, say only: Nothing."
)
REVISION = (
    "Now write your answer to my question again, so that it keeps to the principle. Write only the new answer, and no word about "
    "the principle or what was wrong."
)
NOTHING = re.compile(r"(?i)^\W*(?:nothing|none)\b\W*(?:in|of|about)?[^.!\n]{0,60}[.!]?\W*$")
# The revision talks about revising. "Note:" and the like may stand in a good answer.
ABOUT_ITSELF = re.compile(
    r"(?i)\b(?:critique|revision|revised|rewritten|principle)\b[^:\n]{0,30}:|\b(?:this|the|your) principle\b|"
    r"\b(?:previous|last|first|original|revised|new) (?:answer|response)\b|^\W*(?:sure|here is|here's)\b[^:\n]{0,60}:"
)


def constitution(
    model: str,
    prompts: str,
    out: str,
    *,
    principles: str | None = None,
    critic: str | None = None,
    write: str = "sft",
    margin: float | None = None,
    split: str = "train",
    task: dict[str, Any] | None = None,
    max_prompts: int | None = None,
    temperature: float = 0.7,
    max_new_tokens: int = 256,
    system_prompt: str | None = None,
    seed: int = 0,
    min_share: float = 0.1,
) -> str:
    """Write rows to `out`; returns what to say."""
    refuse_out(out)
    if min(max_new_tokens, 1 if max_prompts is None else max_prompts) < 1 or temperature < 0:
        raise UserError("--max-new-tokens and --max-prompts must be at least 1, --temperature at least 0")
    if write == "labels" and temperature == 0:
        raise UserError("--write labels compares two samples: give a --temperature above 0")
    if margin is not None and (write != "labels" or not 0 <= margin < 0.5):
        raise UserError("--margin belongs to --write labels, and lies between 0 and 0.5")
    rules = read_principles(principles)
    rows = rows_to_ask(prompts, split=split, max_prompts=max_prompts, system_prompt=system_prompt, task=task)
    drawn = draw(rules, len(rows), seed)
    speaker = Speaker(model, key="--model", max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    left_out: collections.Counter[str] = collections.Counter()
    if write == "labels":
        judge = Judge(speaker if critic is None else Speaker(critic, key="--critic"))
        found, more = labelled(speaker, judge, rows, drawn, left_out, 0.05 if margin is None else margin)
    else:
        keys = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        other = speaker if critic is None else Speaker(critic, key="--critic", **keys)
        found, more = revised(speaker, other, rows, drawn, left_out), ""
    why = "; ".join(f"{n} {reason}" for reason, n in left_out.most_common() if n) or "none"
    if len(found) < max(1, min_share * len(rows)):
        raise UserError(
            f"only {len(found)} of {len(rows)} prompts gave a row (--min-share {min_share:g}); left out: {why}{more}"
        )
    write_rows(out, [_as_row(row, write) for row in found])
    return f"{len(rows)} prompts; left out: {why}{more}\nwrote {len(found)} row{'s' * (len(found) != 1)} to {out}"


def read_principles(name: str | None) -> list[str]:
    path = PRINCIPLES if name is None else Path(name).expanduser()
    with reading(path):
        lines = [line.strip() for line in path.read_bytes().decode("utf-8-sig").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise UserError(f"--principles {name}: no principle in it; expected one a line")
    return found


def draw(rules: list[str], prompts: int, seed: int) -> list[str]:
    """One principle for each prompt."""
    rng = random.Random(seed)
    return [rng.choice(rules) for _ in range(prompts)]


def _as_row(row: dict, write: str) -> dict:
    if write == "sft":
        return {"prompt": row["prompt"], "completion": row["chosen"], **{k: row[k] for k in ("principle", "critique")}}
    return row


# ---------------------------------------------------------------- answer, critique, revision


def revised(
    speaker: Speaker, critic: Speaker, rows: list[dict], drawn: list[str], left_out: collections.Counter[str]
) -> list[dict]:
    """{prompt, chosen: the revision, rejected: the answer, principle, critique} of those prompts where all three are of
    use."""
    answers = speaker([row["prompt"] for row in rows], label="answers")
    going = _useful(list(range(len(rows))), answers, "answers", left_out)
    talks: dict[int, Messages] = {
        i: _turns(rows[i]["prompt"], answers[i], CRITIQUE.format(principle=drawn[i])) for i in going
    }
    said = critic([talks[i] for i in going], label="critiques")
    critiques = dict(zip(going, said, strict=True))
    going = _useful(going, said, "critiques", left_out)
    for i in list(going):
        if problem := why_not_a_critique(critiques[i].text, answers[i].text):
            left_out[f"critiques {problem}"] += 1
            going.remove(i)
    said = speaker([_turns(talks[i], critiques[i], REVISION) for i in going], label="revisions")
    found = []
    for i, revision in zip(going, said, strict=True):
        if problem := why_not_a_revision(revision, answers[i].text, critiques[i].text, drawn[i]):
            left_out[f"revisions {problem}"] += 1
            continue
        pair = {"prompt": one_prompt(rows[i]), "chosen": revision.text, "rejected": answers[i].text}
        found.append(pair | {"principle": drawn[i], "critique": critiques[i].text})
    return found


def _turns(before: Messages, said: Said, then: str) -> Messages:
    return [*before, {"role": "assistant", "content": said.text}, {"role": "user", "content": then}]


def _useful(numbers: list[int], said: list[Said], what: str, left_out: collections.Counter[str]) -> list[int]:
    """Those of the numbers whose answer is of use."""
    for one in said:
        if one.problem is not None:
            left_out[f"{what} {one.problem}"] += 1
    return [i for i, one in zip(numbers, said, strict=True) if one.problem is None]


def words(text: str) -> str:
    """Case, white space and commas make no other answer."""
    return " ".join(re.findall(r"\w+", normalised(text)))


def why_not_a_critique(critique: str, answer: str) -> str | None:
    if NOTHING.match(critique):
        return "find nothing"
    return "are the answer again" if words(critique) == words(answer) else None


def why_not_a_revision(revision: Said, answer: str, critique: str, principle: str) -> str | None:
    if revision.problem is not None:
        return revision.problem
    for what, text in (("answer", answer), ("critique", critique)):
        if words(revision.text) == words(text):
            return f"are the {what} again"
    if ABOUT_ITSELF.search(revision.text) or words(principle) in words(revision.text):
        return "talk about the critique or the principle"
    return None
