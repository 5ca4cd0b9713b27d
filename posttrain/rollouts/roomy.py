"""The sampler's cache of keys and values, with room for the whole answer from the start.

The library's own grows by concatenation: with every token, every layer copies all keys and values it has, T(T + 1)/2
of them for T tokens. Here a layer takes memory for `room` further tokens at once, a token is written behind the last,
and attention is given a view of what is filled. Layers of another kind (a sliding window) stay the library's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def roomy_cache(config: Any, room: int) -> DynamicCache:
    """room: tokens that will be added behind what is read first."""
    cache = DynamicCache(config=config)
    cache.layers = [Roomy(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class Roomy(DynamicLayer):
    """keys and values [rows, heads, tokens, D] are views of `store`, which has room for more tokens."""

    def __init__(self, room: int):
        super().__init__()
        self.room = room
        self.store: tuple[Tensor, Tensor] | None = None

    def update(  # type: ignore[override]
        self,
        key_states: Tensor,
        value_states: Tensor,
        cache_kwargs: dict
        | None = None,  # a rotation, a place: what older models hand every layer. Plain ones need none
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        filled = self.get_seq_length()
        end = filled + key_states.shape[-2]
        if self.store is None or end > self.store[0].shape[-2]:
            store = tuple(x.new_empty(*x.shape[:2], end + self.room, x.shape[-1]) for x in (key_states, value_states))
            if filled:
                store[0][:, :, :filled], store[1][:, :, :filled] = self.keys, self.values
            self.store = store
        self._show(end)
        self.keys[:, :, filled:], self.values[:, :, filled:] = key_states, value_states
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows, as often as they are named."""
        if self.store is not None:
            filled = self.get_seq_length()
            self.store = (self.store[0][indices], self.store[1][indices])
            self._show(filled)

    def _refused(self, *_: Any) -> None:
        raise NotImplementedError("the library's own way would change keys and values, and leave the store as it was")

    crop = reset = reorder_cache = batch_repeat_interleave = _refused

    def _show(self, filled: int) -> None:
        assert self.store is not None
        keys, values = self.store
        self.keys, self.values = keys[:, :, :filled], values[:, :, :filled]
