"""Keys and values of one layer in memory with room for more: a new token is written, not concatenated.

A drop-in for transformers' `DynamicLayer`, put in its place in whichever cache a block is given. What others do to
`keys` and `values` (crop, reorder, repeat) stays right: tensors that are not the last ones given out are taken over anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 256
"""Tokens that there is room for beyond those that there are, or as many again if that is more."""


class Growing(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (batch, heads, time, size)."""

    def __init__(self) -> None:
        super().__init__()
        self.storage: tuple[Tensor, Tensor] | None = None
        self._given: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append, and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, new = self.get_seq_length(), key_states.shape[-2]
        for place, states in zip(self.reserve(new, key_states), (key_states, value_states), strict=True):
            place.narrow(2, start, new).copy_(states)
        return self.extend(new)

    def reserve(self, new: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Storage of keys and values, (batch, heads, capacity, size), with room for `new` tokens after those that there are."""
        length = self.get_seq_length()
        if self.storage is None or self.keys is not self._given or self.storage[0].shape[2] < length + new:
            capacity = length + new + max(ROOM, length)
            places = tuple(like.new_empty(*like.shape[:2], capacity, like.shape[3]) for _ in range(2))
            if length:
                for place, states in zip(places, (self.keys, self.values), strict=True):
                    place.narrow(2, 0, length).copy_(states)
            self.storage, self._given = (places[0], places[1]), self.keys
        return self.storage

    def extend(self, new: int) -> tuple[Tensor, Tensor]:
        """Count `new` tokens that were written to the storage."""
        assert self.storage is not None
        length = self.get_seq_length() + new
        self.keys, self.values = (place.narrow(2, 0, length) for place in self.storage)
        self._given = self.keys
        return self.keys, self.values


def growing(cache: Cache | None, index: int) -> Growing | None:
    """A cache's layer, made a `Growing` one if it is a plain dynamic one; None if it is of another kind."""
    if cache is None or cache.offloading or index >= len(cache.layers):
        return None
    layer = cache.layers[index]
    if type(layer) is Growing:
        return layer
    if type(layer) is not DynamicLayer:
        return None
    made = Growing()
    if layer.is_initialized:
        made.lazy_initialization(layer.keys, layer.values)
        made.keys, made.values = layer.keys, layer.values
    cache.layers[index] = made
    return made
