"""Makes each sequence's gradient of a weight from what came in and the gradient at what went out."""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.models.layers import Layer

PRODUCT_VALUES = 1 << 24
"""Of products of gradients and inputs that are made at once: 64 MB of float32, or those of one sequence."""


def add_products(into: Tensor, layer: Layer, inputs: Tensor, gradient: Tensor, first: bool) -> bool:
    """Put, or add, each sequence's gradient of a layer's weight into `into` (sequences, rows, columns), float32.

    Args:
        inputs: of the layer, (batch, …, columns), or channels and places; gradient: at its output.
        first: put; what is in `into` is of no use.
    Returns:
        Whether it has more than bfloat16 holds.
    """
    count, widened = len(into), False
    if layer.kind.dimensions:
        for own, product in zip(into, layer.products(inputs, gradient, count), strict=True):
            widened |= _add(own, product, first)
        return widened
    inputs = inputs.reshape(count, -1, inputs.shape[-1]).to(gradient.dtype)
    gradient = gradient.reshape(count, inputs.shape[1], -1)
    step = max(1, PRODUCT_VALUES // into[0].numel())
    for start in range(0, count, step):
        part = slice(start, start + step)
        widened |= _add_product(into[part], gradient[part], inputs[part], first)
    return widened


def _add_product(into: Tensor, gradient: Tensor, inputs: Tensor, first: bool) -> bool:
    """Put, or add, each sequence's product into `into` (sequences, rows, columns), float32.

    Returns:
        Whether it has more than bfloat16 holds.
    """
    left = gradient.transpose(1, 2)
    if first and gradient.dtype == into.dtype:
        torch.bmm(left, inputs, out=into)
        return True
    # on a GPU the sum of the tensor core, which is not rounded on its way
    product = torch.bmm(left, inputs, out_dtype=torch.float32) if gradient.is_cuda else torch.bmm(left, inputs)
    return _add(into, product, first)


def _add(into: Tensor, product: Tensor, first: bool) -> bool:
    """Put, or add, a product into `into`, which is float32; returns whether that has more than bfloat16 holds."""
    into.copy_(product) if first else into.add_(product)
    return product.dtype != torch.bfloat16 or not first
