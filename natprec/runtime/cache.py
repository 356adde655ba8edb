"""Keys and values of one layer in memory with room for more: a new token is written, not concatenated.

A drop-in for transformers' `DynamicLayer`, put in its place in whichever cache a block is given. What others do to
`keys` and `values` (crop, reorder, repeat) stays right: what is assigned to them is taken over before the next token.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 256
"""Tokens that there is room for beyond those that there are, or as many again if that is more."""


class Growing(DynamicLayer):
    """One layer's keys and values, (batch, heads, time, size)."""

    def __init__(self) -> None:
        self.length = 0
        self.storage: tuple[Tensor, Tensor] | None = None
        self._assigned: list[Tensor | None] = [None, None]
        super().__init__()

    @property
    def keys(self) -> Tensor | None:
        """Those that there are, a view where they were written one by one."""
        return self._states(0)

    @keys.setter
    def keys(self, states: Tensor | None) -> None:
        self._assign(0, states)

    @property
    def values(self) -> Tensor | None:
        """Likewise."""
        return self._states(1)

    @values.setter
    def values(self, states: Tensor | None) -> None:
        self._assign(1, states)

    def get_seq_length(self) -> int:
        """Tokens that there are."""
        return self.length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Append, and return all."""
        self.start(key_states)
        for place, states in zip(self.reserve(key_states), (key_states, value_states), strict=True):
            place.narrow(2, self.length, states.shape[2]).copy_(states)
        self.length += key_states.shape[2]
        return self.keys, self.values

    def start(self, like: Tensor) -> None:
        """Note dtype and device, before the first token."""
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = like.dtype, like.device, True

    def reserve(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Storage of keys and values, (batch, heads, capacity, size).

        Args:
            like: new states, (batch, heads, time, size), for which there will be room; who writes them counts them in
                `length`.
        Raises:
            RuntimeError: the cache holds another number of sequences.
        """
        batch, heads, new, size = like.shape
        held = None if self.storage is None else self.storage[0].shape
        if held is None or held[2] < self.length + new or held[0] != batch:
            capacity = self.length + new + max(ROOM, self.length)
            places = like.new_empty(batch, heads, capacity, size), like.new_empty(batch, heads, capacity, size)
            for place, states in zip(places, (self.keys, self.values), strict=True):
                if states is not None and self.length:
                    place.narrow(2, 0, self.length).copy_(states)
            self.storage, self._assigned = places, [None, None]
        assert self.storage is not None
        return self.storage

    def _states(self, index: int) -> Tensor | None:
        assigned = self._assigned[index]
        return self.storage[index].narrow(2, 0, self.length) if assigned is None and self.storage else assigned

    def _assign(self, index: int, states: Tensor | None) -> None:
        """From outside: the storage ends, and both are what is assigned or what they were."""
        self._assigned = [self._states(0), self._states(1)]
        self._assigned[index], self.storage = states, None
        self.length = states.shape[2] if states is not None and states.dim() == 4 else 0


def growing(cache: Cache | None, index: int) -> Growing | None:
    """A cache's layer, made a `Growing` one if it is a plain dynamic one; None if it is of another kind."""
    if cache is None or index >= len(cache.layers) or cache.offloading:
        return None
    layer = cache.layers[index]
    if type(layer) is Growing:
        return layer
    if type(layer) is not DynamicLayer:
        return None
    made = Growing()
    if layer.keys is not None and layer.is_initialized:
        made.start(layer.keys)
        made.keys, made.values = layer.keys, layer.values
    cache.layers[index] = made
    return made
