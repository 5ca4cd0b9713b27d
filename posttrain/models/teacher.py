"""A frozen teacher: its logits where an answer is predicted, and a student that is compared with them there
(loops.distill); or the log-probs alone that it gives to what was sampled (loops.grpo with advantage: teacher)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from losses.distill import generalised_divergence
from losses.distill_chunked import chunked_distillation_loss
from losses.door import Metrics
from posttrain.errors import UserError
from posttrain.models import loading, sharded, sharing
from posttrain.models.logps import CompletionLogps, Head
from posttrain.tokens.batch import Batch


class CompletionLogits(nn.Module):
    """forward(batch) -> logits [N, V] of the N predictions that count, row by row; in the model's own type."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # for FSDP: what a layer is

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        out = self.model(**sharing.reads(batch))
        return out.logits[:, :-1][batch.active]


class CompletionDivergence(CompletionLogps):
    """forward(batch, teacher_logits [N, V], weights [B, T], mixture, temperature) -> (loss [], metrics).

    Head and loss run inside the forward, so the hooks of DDP and FSDP fire; the student's logits exist a few positions
    at a time (losses/distill_chunked.py). Models that do more to their logits than the head take the plain path."""

    def forward(  # type: ignore[override]
        self, batch: Batch, teacher_logits: Tensor, weights: Tensor, mixture: float, temperature: float
    ) -> tuple[Tensor, Metrics]:
        head, active = self._causal_lm.get_output_embeddings(), batch.active
        # One tokenizer, but tables padded to other sizes (Qwen2.5 0.5B, 7B): what lies beyond the shorter is no token.
        width = min(teacher_logits.shape[-1], head.weight.shape[0])
        teacher_logits = teacher_logits[:, :width]
        if self.head_form == Head():
            hidden = self._causal_lm.base_model(**sharing.reads(batch)).last_hidden_state[:, :-1][active]
            bias, chunk = head.bias, max(64, min(1024, 2**24 // width))
            return chunked_distillation_loss(
                hidden, head.weight[:width], teacher_logits, weights[active],
                head_bias=None if bias is None else bias[:width], chunk_size=chunk, mixture=mixture, temperature=temperature,
            )  # fmt: skip
        logits = self.model(**sharing.reads(batch)).logits[:, :-1, :width][active]
        divergence = generalised_divergence(logits, teacher_logits, mixture, temperature)  # [N]
        loss = (weights[active] * divergence).sum()
        return loss, {"divergence": (divergence.detach().sum(), active.sum())}

    def nothing_to_learn(self, batch: Batch) -> tuple[Tensor, Tensor, float, float]:
        """What forward takes beside a batch without a completion (sharded.gathered runs it once)."""
        weights = torch.zeros(batch.active.shape, device=batch.input_ids.device)
        return weights.new_zeros(0, self._causal_lm.get_output_embeddings().weight.shape[0]), weights, 1.0, 1.0


def load_teacher(name: str, tokenizer: Any, run: Any) -> CompletionLogits:
    """What loops.distill compares its student with."""
    return run.parallel.spread(CompletionLogits(_frozen(name, tokenizer, run, "distill.teacher")))


def load_grader(name: str, tokenizer: Any, run: Any) -> CompletionLogps:
    """What loops.grpo asks for the log-probs of sampled tokens. After run.share_prompts: it reads rows as the policy
    does, where it can."""
    teacher = run.parallel.spread(CompletionLogps(_frozen(name, tokenizer, run, "grpo.teacher")))
    if run.sharing.on:
        with sharded.gathered(teacher):
            teacher.share_prompts()
    return teacher


def _frozen(name: str, tokenizer: Any, run: Any, key: str) -> nn.Module:
    """The model, its weights in the compute type. UserError where it has another vocabulary than `tokenizer`: its
    probabilities are of other tokens, and there is nothing to compare."""
    model, theirs, *_ = loading.load(name, dtype=run.compute, device=run.parallel.loads_on, key=key)
    ours, others = tokenizer.get_vocab(), theirs.get_vocab()
    if ours != others:
        token = next(token for token in ours.keys() | others.keys() if ours.get(token) != others.get(token))
        raise UserError(
            f"{key} '{name}' has another vocabulary than the student ({len(others):,} tokens, not {len(ours):,}; {token!r} is "
            f"{others.get(token, 'none of its')} there and {ours.get(token, 'none')} here): what is compared are probabilities of the "
            "same tokens. Take a teacher of the same family, or learn from its answers as text: python -m posttrain.curate answers, then loops.sft"
        )
    model.requires_grad_(False)
    loading.no_dropout(model)
    return model.eval()
