"""The one module that turns a batch into log-probabilities: what every loop trains."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from losses.logprobs import chunked_token_logps, token_entropy, token_logps
from posttrain.errors import UserError
from posttrain.models import sharing
from posttrain.models.lora import without_adapter
from posttrain.tokens.batch import Batch, block_mask


class Head(NamedTuple):
    """What a model does to head(last hidden state): scaled, then capped softly. Most do neither."""

    scale: float = 1.0
    softcap: float | None = None


class CompletionLogps(nn.Module):
    """forward(batch) -> (logps, entropy), two [B, T], exactly 0 where nothing is scored.

    The one module given to accelerator.prepare: backbone and head both run inside its forward, so the hooks of DDP and
    FSDP fire. The head runs only where a completion token is predicted, in chunks
    (losses.logprobs.chunked_token_logps), scaled and capped as the model's own is: found out by a probe, not by name.
    Models that do something else to their logits take the plain path through all of them.
    """

    def __init__(self, model: nn.Module, like: CompletionLogps | None = None):
        """like: of the same architecture, whose head is known. Without it that is found out, which takes weights."""
        super().__init__()
        self.model = model
        self.head_form: Head | None = self._find_the_head() if like is None else like.head_form
        self.keep_bytes = 0  # training.logit_budget_mb: memory that a trained head may take to be faster
        self.needs_block_mask = False  # for packed rows; see find_a_way_to_pack
        self.shares_prompts = False  # see share_prompts
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # for FSDP: what a layer is

    def forward(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        return self.with_hidden(batch, temperature)[:2]

    def with_hidden(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """(logps, entropy, hidden): the last hidden states [B, S, H] as well, for a value head on the same backbone."""
        batch = batch if self.shares_prompts else batch.apart()
        if self.head_form is not None:
            head = self._causal_lm.get_output_embeddings()
            # One chunk of float32 logits: 64 MiB on a CPU; larger on a GPU, where small matrix products waste it.
            chunk = max(64, min(1024, (2**26 if batch.input_ids.is_cuda else 2**24) // head.weight.shape[0]))
            hidden = sharing.of_rows(self._causal_lm.base_model(**self._reads(batch)).last_hidden_state, batch)
            logps, entropy = chunked_token_logps(
                hidden,
                head.weight,
                batch.input_ids,
                batch.active,
                head_bias=head.bias,
                temperature=temperature,
                chunk_size=chunk,
                scale=self.head_form.scale,
                softcap=self.head_form.softcap,
                keep_bytes=self.keep_bytes,
            )
            return logps, entropy, hidden
        out = self.model(**self._reads(batch), output_hidden_states=True)
        logits = sharing.of_rows(out.logits, batch)
        return (
            torch.where(batch.active, token_logps(logits, batch.input_ids, temperature=temperature), 0.0),
            torch.where(batch.active, token_entropy(logits, temperature=temperature), 0.0),
            sharing.of_rows(out.hidden_states[-1], batch),
        )

    def _reads(self, batch: Batch) -> dict[str, Any]:
        read = sharing.reads(batch)
        if batch.attention_mask is None and self.needs_block_mask:
            read["attention_mask"] = block_mask(batch.position_ids, self.model.get_input_embeddings().weight.dtype)
        return read

    @property
    def hidden_size(self) -> int:
        return self._causal_lm.get_output_embeddings().weight.shape[1]  # not config.hidden_size: OPT-350m projects

    @property
    def _causal_lm(self) -> nn.Module:
        return without_adapter(self.model)

    def share_prompts(self) -> str | None:
        """From now on the prompts of a batch are read once, where it says so; the reason if they cannot be."""
        problem = sharing.refusal(self._causal_lm)
        self.shares_prompts = problem is None
        return problem

    @torch.no_grad()
    def find_a_way_to_pack(self) -> None:
        """Packed rows must not see each other. Most models find their borders out from restarting positions and no
        mask; for one that does not (OPT) they are told by a mask; one that leaks even so is refused. Tried on two
        packed rows (some kernels see the borders of a single one only), not looked up."""
        weight = self.model.get_input_embeddings().weight
        alone = torch.tensor([[3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3]], device=weight.device)
        packed = torch.cat([torch.tensor([[9, 10, 11], [11, 9, 10]], device=weight.device), alone], dim=1)
        positions = torch.cat([torch.arange(3), torch.arange(6)]).expand(2, -1).contiguous().to(weight.device)
        training, tolerance = self.model.training, 1e-3 if weight.dtype == torch.float32 else 0.02
        self.model.eval()
        expected = self.model(input_ids=alone, position_ids=positions[:, 3:], use_cache=False).logits.float()
        # A mask of our own reaches every layer, and would take its window from a layer that has one.
        windows = getattr(self._causal_lm.config.get_text_config(), "sliding_window", None)
        for mask in (None,) if windows else (None, block_mask(positions, weight.dtype)):
            try:
                got = self.model(input_ids=packed, attention_mask=mask, position_ids=positions, use_cache=False).logits
            except Exception:  # this architecture has another way with masks
                continue
            if (got[:, 3:].float() - expected).abs().max() <= tolerance * expected.abs().max():
                self.needs_block_mask = mask is not None
                break
        else:
            raise UserError(
                "training.packing: with this architecture and attention, packed rows see each other, or lose their window; set "
                "training.packing: false"
            )
        self.model.train(training)

    @torch.no_grad()
    def _find_the_head(self) -> Head | None:
        """What makes the model's own logits of head(last hidden state)? Asked of four tokens. None: something else."""
        lm = self._causal_lm
        head, config = lm.get_output_embeddings(), lm.config.get_text_config()
        if not isinstance(head, nn.Linear) or lm.base_model is lm:
            return None
        ids = positions = torch.arange(4, device=head.weight.device)[None]
        training = self.model.training
        self.model.eval()
        logits = head(lm.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state)
        expected = self.model(input_ids=ids, position_ids=positions, use_cache=False).logits
        self.model.train(training)
        named = [getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "lm_head_multiplier")]
        scales = {1.0} | {float(x) for x in named if x} | {1 / x for x in named if x}
        for cap in {None, getattr(config, "final_logit_softcapping", None)}:
            for scale in scales:
                got = logits * scale
                got = got if cap is None else (got / cap).tanh() * cap
                # bit for bit: a soft cap is all but invisible while logits are small. (x / 3 is not quite x · (1/3).)
                if torch.equal(got, expected) or (scale < 1 and torch.allclose(got, expected, rtol=1e-6, atol=0)):
                    return Head(scale, cap)
        return None
