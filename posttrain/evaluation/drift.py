"""Suite drift: how far is the model from the one it came from, on what it says itself?

    kl      KL(model ‖ base), nats per token: exact, over the whole vocabulary at each position of its own samples
    top1    share of these positions at which both hold the same token for the likeliest

Own samples: the KL is an expectation over what the model says, not over what somebody else wrote. An interval is over
prompts. Far is neither good nor bad: a lesson moves a model, and so does damage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from losses.kl import exact_kl
from posttrain.config.suites import Drift as Options
from posttrain.data import questions
from posttrain.errors import UserError
from posttrain.evaluation.scores import Outcome, ratio
from posttrain.evaluation.subjects import Subject
from posttrain.evaluation.suite_rows import prompts_of
from posttrain.tokens.batch import Batch, collate
from posttrain.tokens.examples import shown


class Drift:
    def __init__(self, options: Options):
        self.options = options
        if options.data is None:
            self.rows = [{"prompt": [{"role": "user", "content": q}], "asked": q} for q in questions.ORDINARY_TEST]
            self.rows = self.rows[: options.max_rows]
        else:
            self.rows = prompts_of(options, options.data).rows

    def __call__(self, subject: Subject, base: Subject | None = None) -> Outcome:
        """base: in a run, a model that is loaded already; else drift.base is."""
        o = self.options
        base = base or subject.beside(o.base, "--drift.base")
        refuse_another_vocabulary(subject, base)
        ids = [subject.prompt_ids(row["prompt"], **shown(row)) for row in self.rows]
        rollout = subject.rollout(ids, max_new_tokens=o.max_new_tokens, samples=o.samples, temperature=o.temperature)
        examples = rollout.examples()
        parts = torch.zeros(len(self.rows), 3, dtype=torch.float64)  # of each prompt: Σ KL, Σ same, tokens
        with base.reading():
            found = subject.of_rows(examples, lambda batch: distances(subject.model, base.model, batch))
        for number, of_row in enumerate(found):
            parts[number // o.samples] += of_row
        kl, same, tokens = parts.T.tolist()
        how = f"{int(sum(tokens)):,} tokens of {o.samples} samples to each prompt at temperature {o.temperature:g}"
        scores = [
            ratio("kl", f"exact KL to {base.name}, {how}", kl, tokens, "prompts", better="neither", unit="nats per token"),
            ratio("top1", f"positions with the same likeliest token as {base.name}, {how}", same, tokens, "prompts",
                  better="neither", unit="share of tokens", share=True),
        ]  # fmt: skip
        records: list[dict[str, Any]] = [
            {"part": "prompts", "prompt": row["asked"], "kl": round(k, 6), "same": int(s), "tokens": int(t),
             "answers": [a.as_json() for a in answers]}
            for row, k, s, t, answers in zip(self.rows, kl, same, tokens, subject.answers(rollout, o.samples), strict=True)
        ]  # fmt: skip
        return Outcome(scores, records)


def refuse_another_vocabulary(subject: Subject, base: Subject) -> None:
    """A KL compares two distributions over the same tokens."""
    mine, theirs = subject.tokenizer.get_vocab(), base.tokenizer.get_vocab()
    if mine != theirs:
        differ = sum(theirs.get(token) != i for token, i in mine.items())
        raise UserError(
            f"drift: {subject.name} and {base.name} have different vocabularies ({len(mine):,} and {len(theirs):,} tokens, "
            f"{differ:,} of the first are others in the second): a KL over their next tokens means nothing"
        )
    sizes = [of.model.get_output_embeddings().weight.shape[0] for of in (subject, base)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"drift: {subject.name} has {sizes[0]:,} logits, {base.name} {sizes[1]:,}: they cannot be compared one by one"
        )


@torch.no_grad()
def distances(model: nn.Module, base: nn.Module, batch: Batch) -> torch.Tensor:
    """[B, 3] float64 on the CPU, of each row over its active predictions: Σ KL(model ‖ base), at how many the likeliest
    token is the same, how many there are."""
    logits, of_base = (
        m(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits for m in (model, base)
    )
    kl = torch.where(batch.active, exact_kl(logits, of_base)[:, :-1], 0.0)  # position t predicts token t + 1
    same = (logits.argmax(-1) == of_base.argmax(-1))[:, :-1] & batch.active
    return torch.stack([x.double().sum(-1) for x in (kl, same, batch.active)], dim=-1).cpu()


def mean_kl(model: nn.Module, base: nn.Module, examples: list, pad_id: int) -> float:
    """KL(model ‖ base) per completion token, summed over the whole vocabulary at every position of the examples."""
    parts = [
        distances(model, base, collate(examples[start : start + 64], pad_id)).sum(0)
        for start in range(0, len(examples), 64)
    ]
    kl, _, tokens = torch.stack(parts).sum(0).tolist()
    return kl / tokens
