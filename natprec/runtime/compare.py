"""A forward that replaces another computes the same: tried on some tokens, inside the model, before it is used."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from natprec.runtime.kernels.linear import QuantizedWeight, QuantLinear

TRIED = 3
"""Tokens that a forward is tried on at once, before one more: few, so that products are exact but for rounding."""

FLOATS, ROUNDED = 1e-3, 2e-2
"""Largest difference over the largest value: of the same operations in another order, and where activations are rounded
to int8 or to floats of few bits, whose codes may differ by one."""

NOT_COMPARED = -1.0

Run = Callable[[str, Tensor, Any, dict[str, Any]], Tensor | None]
"""Of a layer's name, its input, a cache of its own, and what else it is called with; None: it is not for this call."""


def bound(linears: Iterable[QuantLinear]) -> float:
    """How far outputs may be apart that these products made."""
    stored = [each.stored for each in linears if isinstance(each.stored, QuantizedWeight)]
    return ROUNDED if any(each.layer.int8_inputs or each.inputs is not None for each in stored) else FLOATS


def device_of(model: nn.Module) -> torch.device:
    """Where its tensors are."""
    return next(itertools.chain(model.parameters(), model.buffers())).device


@torch.inference_mode()
def differences(model: Any, layers: Mapping[str, nn.Module], run: Run) -> dict[str, float]:
    """How far what `run` computes is from each layer's output, over the largest change that the layer makes.

    Returns:
        Of each layer the worst; `NOT_COMPARED` where `run` was not for the call with several tokens.
    """
    from transformers.cache_utils import DynamicCache

    worst = dict.fromkeys(layers, NOT_COMPARED)
    own = DynamicCache(config=model.config)

    def compare(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        rest = {key: value for key, value in kwargs.items() if key not in ("hidden_states", "past_key_values")}
        if len(args) > 1 or not isinstance(output, Tensor):
            return
        found = run(name, x, own, rest)
        if found is not None and found.shape == output.shape:
            difference = float((found - output).abs().max() / (output - x).abs().max().clamp(min=1e-9))
            worst[name] = max(worst[name], difference)

    handles = [
        layer.register_forward_hook(functools.partial(compare, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        vocabulary = model.config.get_text_config().vocab_size
        ids = torch.randint(vocabulary, (1, TRIED + 1), generator=torch.Generator().manual_seed(0)).to(device_of(model))
        past = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        first = dict(worst)
        model(input_ids=ids[:, -1:], past_key_values=past, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    return {name: NOT_COMPARED if first[name] == NOT_COMPARED else worst[name] for name in layers}


def verdict(difference: float, most: float) -> str:
    """Why a layer stays plain; empty if it does not."""
    if difference == NOT_COMPARED:
        return "it is called otherwise"
    return "" if difference <= most else f"it computes something else ({difference:.2g} off)"
