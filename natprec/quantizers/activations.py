"""What an engine makes of an activation: the nearest codes on a grid that each token, or group of its features, spans.

The grid is compressed-tensors': a scale of largest magnitude over (2^b - 1) / 2, codes from -2^(b-1) to 2^(b-1) - 1. A
token's largest value is therefore half a step off when it is positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.formats.activation_format import CHANNEL, FLOAT8_MAX, TENSOR, ActivationFormat


def round_activations(values: Tensor, fmt: ActivationFormat, largest: Tensor | None = None) -> Tensor:
    """The values that an engine computes with.

    Args:
        values: (..., features), float32 and finite.
        largest: magnitude that a fixed scale was made for, of all features or (features,); by default that of `values`.
    Returns:
        The same shape; a group of zeros stays zero.
    """
    grouped = values.unflatten(-1, (-1, fmt.group_size)) if fmt.group_size > 0 else values
    if fmt.group_size in (TENSOR, CHANNEL):
        span = values.abs().flatten(0, -2).amax(0) if largest is None else largest
        span = span.amax() if fmt.group_size == TENSOR else span
    else:
        span = torch.maximum(grouped.amax(-1, keepdim=True), -grouped.amin(-1, keepdim=True))
    scale = fmt.scale(span)
    codes = grouped / scale
    if fmt.floating:
        codes = codes.clamp_(-FLOAT8_MAX, FLOAT8_MAX).to(torch.float8_e4m3fn).to(values.dtype)
    else:
        codes.round_().clamp_(-(2 ** (fmt.bits - 1)), 2 ** (fmt.bits - 1) - 1)
    return codes.mul_(scale).view(values.shape)
