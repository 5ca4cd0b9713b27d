"""Continuous batching, by hand: the rows of one model that are being answered, of any age. One step is one token for
each of them; between two steps rows join and leave.

    column         0 … width − 1, the same for all rows: every row's newest token stands in the last one
    mask           [rows, width] bool: False left of where a row begins (it is shorter, or came later)
    position       [rows, 1]: how many tokens a row has, so the position of the one that is sampled next
    cache          keys and values, [rows, heads, width, dim] a layer (a sliding-window layer keeps its last columns)

A row that joins is read by itself (a prefill, with those that join with it) and laid beside the others, the shorter
side padded on the left. A row that leaves is taken out, and columns that are nobody's any more are cut off, so the
width is that of the longest row that is still there. What a row says does not depend on who stands beside it: the
prefill, the next token's distribution and the draw are those of rollouts/sampling.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from posttrain.errors import UserError
from posttrain.models.lora import without_adapter
from posttrain.rollouts.sampling import inverse_transform, prefill


class Sampled(NamedTuple):
    """One token for each row."""

    tokens: list[int]
    logps: list[float]  # nats, at the row's temperature (greedy rows: at 1)
    likeliest: list[list[tuple[int, float]]]  # the `top` likeliest tokens and their logps, for rows that asked for some


class Newcomers(NamedTuple):
    """Rows whose prompts have been read, and that stand nowhere yet."""

    cache: Any
    mask: Tensor  # [rows, width]
    position: Tensor  # [rows, 1]
    logits: Tensor  # [rows, V] of their first token


class Running:
    def __init__(self, model: Any, pad_id: int):
        self.model, self.pad_id = model, pad_id
        self.cache: Any = None  # None: nobody is there
        self.mask = self.position = self.logits = torch.empty(0)

    def __len__(self) -> int:
        return 0 if self.cache is None else len(self.mask)

    @torch.no_grad()
    def read(self, prompts: list[list[int]], copies: list[int]) -> Newcomers:
        """copies[i] rows for prompt i, which is read once for all of them."""
        logits, mask, cache = prefill(self.model, prompts, self.pad_id)  # [P, V], [P, width]
        refuse_other_caches(self.model, cache)
        if any(count > 1 for count in copies):
            index = torch.tensor([i for i, count in enumerate(copies) for _ in range(count)], device=mask.device)
            cache.batch_select_indices(index)
            logits, mask = logits[index], mask[index]
        return Newcomers(cache, mask, mask.sum(-1, keepdim=True), logits)

    @torch.no_grad()
    def join(self, new: Newcomers) -> None:
        """Behind the rows that are there."""
        if self.cache is None:
            self.cache, self.mask, self.position, self.logits = new
            return
        width = max(self.mask.shape[1], new.mask.shape[1])
        _widen(self.cache, width - self.mask.shape[1])
        _widen(new.cache, width - new.mask.shape[1])
        for mine, theirs in zip(self.cache.layers, new.cache.layers, strict=True):
            if mine.is_initialized:  # else a layer that uses another one's keys and values
                mine.keys = torch.cat([mine.keys, theirs.keys])
                mine.values = torch.cat([mine.values, theirs.values])
        self.mask = torch.cat([_left(self.mask, width), _left(new.mask, width)])
        self.position = torch.cat([self.position, new.position])
        self.logits = torch.cat([self.logits, new.logits])

    @torch.no_grad()
    def sample(self, temperatures: list[float], uniforms: list[float], top: list[int]) -> Sampled:
        """The next token of every row, not yet said to the model. temperature 0 is greedy, and its uniform not used."""
        device = self.logits.device
        temperature = torch.tensor(temperatures, device=device)[:, None]
        logps = torch.log_softmax(self.logits.float() / torch.where(temperature > 0, temperature, 1.0), dim=-1)
        tokens = logps.argmax(-1)
        drawn = [i for i, t in enumerate(temperatures) if t > 0]
        if drawn:
            uniform = torch.tensor([uniforms[i] for i in drawn], device=device)
            tokens[drawn] = inverse_transform(logps[drawn].exp(), uniform)
        chosen = logps.gather(-1, tokens.clamp(max=logps.shape[-1] - 1)[:, None]).squeeze(-1)
        likeliest: list[list[tuple[int, float]]] = [[] for _ in top]
        for i, count in enumerate(top):
            if count:
                values, ids = logps[i].topk(min(count, logps.shape[-1]))
                likeliest[i] = list(zip(ids.tolist(), values.tolist(), strict=True))
        return Sampled(tokens.tolist(), chosen.tolist(), likeliest)

    @torch.no_grad()
    def go_on(self, staying: list[int], tokens: list[int]) -> None:
        """Only these rows stay, in this order, each with the token it has said; the model reads it."""
        if len(staying) < len(self):
            self._keep(staying)
        if not staying:
            return
        device = self.mask.device
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.logits = self.model(
            input_ids=torch.tensor(tokens, device=device)[:, None],
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.position = self.position + 1

    def _keep(self, staying: list[int]) -> None:
        if not staying:
            self.cache, self.mask, self.position, self.logits = None, *[torch.empty(0)] * 3
            return
        index = torch.tensor(staying, device=self.mask.device)
        self.mask, self.position, self.logits = self.mask[index], self.position[index], self.logits[index]
        self.cache.batch_select_indices(index)
        unused = self.mask.shape[1] - int(self.position.max())
        if unused:
            self.mask = self.mask[:, unused:]
            _widen(self.cache, -unused)


def _left(mask: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0), value=False)


def _widen(cache: Any, columns: int) -> None:
    """So many columns more on the left, that no row looks at; negative: so many less."""
    if columns == 0:
        return
    for layer in cache.layers:
        if not layer.is_initialized:
            continue
        width = layer.get_seq_length() + columns
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = width
            width = min(width, layer.sliding_window - 1)
        pad = (0, 0, width - layer.keys.shape[2], 0)  # of the last two dimensions, the last one first
        layer.keys = torch.nn.functional.pad(layer.keys, pad)
        layer.values = torch.nn.functional.pad(layer.values, pad)


def refuse_other_caches(model: Any, cache: Any) -> None:
    """Keys and values by token, whole or in a window, is what rows can be laid beside each other with."""
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            kind = type(layer).__name__
            raise UserError(
                f"{type(without_adapter(model)).__name__} keeps what it has read in a {kind}: it cannot be served here"
            )
