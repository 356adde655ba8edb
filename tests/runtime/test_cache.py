"""A layer of the cache that grows in place holds what transformers' own would, whatever is done to it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from natprec.runtime.cache import ROOM, Growing, growing


def states(batch: int, time: int, seed: int) -> Tensor:
    return torch.randn(batch, 2, time, 4, generator=torch.Generator().manual_seed(seed))


def same(own: Growing, other: DynamicLayer) -> bool:
    assert own.get_seq_length() == other.get_seq_length()
    return torch.equal(own.keys, other.keys) and torch.equal(own.values, other.values)  # type: ignore[arg-type]


def test_it_holds_what_the_other_holds() -> None:
    own, other = Growing(), DynamicLayer()
    for step, time in enumerate((3, 1, 1, ROOM, 1, 2 * ROOM, 1)):
        found = own.update(states(1, time, step), states(1, time, step + 99))
        expected = other.update(states(1, time, step), states(1, time, step + 99))
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    for change in (
        lambda layer: layer.crop(-5),
        lambda layer: layer.batch_repeat_interleave(2),
        lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
        lambda layer: layer.batch_select_indices(torch.tensor([1])),
    ):
        for layer in (own, other):
            change(layer)
        assert same(own, other)
        batch = len(other.keys)
        for layer in (own, other):
            layer.update(states(batch, 1, 7), states(batch, 1, 8))
        assert same(own, other)
    own.reset()
    assert own.get_seq_length() == 0
    own.update(states(1, 2, 1), states(1, 2, 2))
    assert torch.equal(own.keys, states(1, 2, 1))  # type: ignore[arg-type]


def test_new_tokens_are_written_where_there_is_room() -> None:
    layer = Growing()
    layer.update(states(1, 3, 0), states(1, 3, 1))
    place = layer.keys.data_ptr()  # type: ignore[union-attr]
    for _ in range(ROOM):
        layer.update(states(1, 1, 2), states(1, 1, 3))
        assert layer.keys.data_ptr() == place  # type: ignore[union-attr]
    layer.update(states(1, 1, 2), states(1, 1, 3))
    assert layer.keys.data_ptr() != place  # type: ignore[union-attr]


def test_only_plain_layers_are_replaced() -> None:
    cache = DynamicCache()
    assert growing(None, 0) is None
    assert growing(cache, 0) is None, "it has no layers yet"
    cache.update(states(1, 3, 0), states(1, 3, 1), 0)
    layer = growing(cache, 0)
    assert layer is not None
    assert layer is cache.layers[0] is growing(cache, 0)
    assert layer.get_seq_length() == 3
    cache.layers.append(DynamicSlidingWindowLayer(sliding_window=4))
    assert growing(cache, 1) is None
