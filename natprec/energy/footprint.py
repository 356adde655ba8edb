"""What one step of a model must move and compute, counted: bytes of the weights that multiply, operations, cache.

Of a layer's experts only those that one token takes are counted: a lower bound for a batch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import nn

from natprec.models.layers import layer_of
from natprec.runtime.kernels.linear import QuantLinear
from natprec.timing.products import on_chip_bytes
from natprec.utils.schema import From0, Positive, Within

EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True)
class Footprint:
    """Of one model on one device.

    Attributes:
        weight_bytes: read once in each step, whatever the batch.
        weights: that multiply each token, with twice as many operations; None: not known.
        cache_bytes: that each token adds to the keys and values of its sequence; None: not known.
        on_chip_bytes: that the processor can keep from one step to the next.
    """

    weight_bytes: Positive
    weights: Positive | None
    cache_bytes: From0 | None
    on_chip_bytes: Annotated[float, Within(0)]

    def step_bytes(self, batch: int, context: float) -> float:
        """That a step with one new token of each sequence reads, after `context` tokens."""
        return self.weight_bytes + batch * context * (self.cache_bytes or 0.0)

    def must_move(self, bytes_of_step: float) -> float:
        """What has to come from memory of what a step reads: all that the processor cannot have kept."""
        return max(0.0, bytes_of_step - self.on_chip_bytes)


def footprint(model: nn.Module, device: torch.device, cache_bytes: float | None) -> Footprint:
    """Count a loaded model, on codes or of transformers."""
    found: dict[int, tuple[str, int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            stored = module.stored
            size = sum(_bytes(each) for each in stored.buffers())
            found[id(stored)] = (name, stored.rows * stored.columns, size)
        elif (layer := layer_of(module)) is not None and not layer.kind.looks_up:
            weight = layer.weight
            found[id(weight)] = (name, weight.numel(), _bytes(weight))
    share = _active_share(model)
    parts = [(share if EXPERT.search(f".{name}.") else 1.0, weights, size) for name, weights, size in found.values()]
    return Footprint(
        max(1, round(sum(part * size for part, _, size in parts))),
        max(1, round(sum(part * weights for part, weights, _ in parts))),
        cache_bytes,
        on_chip_bytes(device),
    )


def _active_share(model: Any) -> float:
    """Of the experts, those that one token takes."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((value for name in names if (value := getattr(config, name, None))), None)
    taken = getattr(config, "num_experts_per_tok", None)
    return min(1.0, taken / experts) if experts and taken else 1.0


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
