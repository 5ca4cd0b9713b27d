"""The one module that turns a batch into log-probabilities: what every loop trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losses.logprobs import chunked_token_logps, token_entropy, token_logps
from posttrain.errors import UserError
from posttrain.models.lora import without_adapter
from posttrain.tokens.batch import Batch, block_mask


class CompletionLogps(nn.Module):
    """forward(batch) -> (logps, entropy), two [B, T], exactly 0 where nothing is scored.

    The one module given to accelerator.prepare: backbone and head both run inside its forward, so the hooks of DDP and
    FSDP fire. The head runs only where a completion token is predicted, in chunks
    (losses.logprobs.chunked_token_logps). Models that do more to their logits than the head (soft caps, scales) are
    found out by a probe, not by name, and take the plain path through the full logits.
    """

    def __init__(self, model: nn.Module, chunked: bool | None = None):
        """chunked: does head(last hidden state) give the model's logits? None: found out, which takes weights."""
        super().__init__()
        self.model = model
        self.chunked = self._head_is_all_there_is() if chunked is None else chunked
        self.needs_block_mask = False  # for packed rows; see find_a_way_to_pack
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # for FSDP: what a layer is

    def forward(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        return self.with_hidden(batch, temperature)[:2]

    def with_hidden(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """(logps, entropy, hidden): the last hidden states [B, S, H] as well, for a value head on the same backbone."""
        attention_mask = batch.attention_mask
        if attention_mask is None and self.needs_block_mask:
            attention_mask = block_mask(batch.position_ids, self.model.get_input_embeddings().weight.dtype)
        if self.chunked:
            head = self._causal_lm.get_output_embeddings()
            # One chunk of float32 logits: 64 MiB on a CPU; larger on a GPU, where small matrix products waste it.
            chunk = max(64, min(1024, (2**26 if batch.input_ids.is_cuda else 2**24) // head.weight.shape[0]))
            hidden = self._hidden(batch.input_ids, attention_mask, batch.position_ids)
            logps, entropy = chunked_token_logps(
                hidden,
                head.weight,
                batch.input_ids,
                batch.active,
                head_bias=head.bias,
                temperature=temperature,
                chunk_size=chunk,
            )
            return logps, entropy, hidden
        out = self.model(
            input_ids=batch.input_ids,
            attention_mask=attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,  # with a cache, packed rows would see each other
            output_hidden_states=True,
        )
        return (
            torch.where(batch.active, token_logps(out.logits, batch.input_ids, temperature=temperature), 0.0),
            torch.where(batch.active, token_entropy(out.logits, temperature=temperature), 0.0),
            out.hidden_states[-1],
        )

    @property
    def hidden_size(self) -> int:
        return self._causal_lm.get_output_embeddings().weight.shape[1]  # not config.hidden_size: OPT-350m projects

    @property
    def _causal_lm(self) -> nn.Module:
        return without_adapter(self.model)

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Tensor:
        return self._causal_lm.base_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state

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
    def _head_is_all_there_is(self) -> bool:
        """Does head(last hidden state) give the model's own logits? Asked of four tokens."""
        head = self._causal_lm.get_output_embeddings()
        if not isinstance(head, nn.Linear) or self._causal_lm.base_model is self._causal_lm:
            return False
        device = head.weight.device
        ids, positions = torch.arange(4, device=device)[None], torch.arange(4, device=device)[None]
        training = self.model.training
        self.model.eval()
        hidden = self._hidden(ids, None, positions)
        logits = self.model(input_ids=ids, position_ids=positions, use_cache=False).logits
        self.model.train(training)
        return torch.equal(head(hidden), logits)  # bit for bit: a soft cap is all but invisible while logits are small
