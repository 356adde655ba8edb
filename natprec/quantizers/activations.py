"""What an engine makes of an activation: the nearest codes on a grid that each token, or group of its features, spans.

The grid is compressed-tensors': a scale of largest magnitude over (2^b - 1) / 2, codes from -2^(b-1) to 2^(b-1) - 1. A
token's largest value is therefore half a step off when it is positive. The scale of float8 is a power of two, which
every dtype holds and which leaves its precision as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.formats import Format, PerTensor

FLOAT8_SPAN = 224.0
"""What the largest magnitude measured is scaled to, or below: the rest of the range is for other text."""


def round_activations(values: Tensor, fmt: Format, largest: Tensor | None = None) -> Tensor:
    """The values that an engine computes with.

    Args:
        values: (..., features), float32 and finite.
        largest: magnitude that a fixed scale was made for, of all features or (features,); by default that of `values`.
    Returns:
        The same shape; a group of zeros stays zero.
    """
    grouped = values.unflatten(-1, (-1, fmt.group_size)) if fmt.group_size else values
    if fmt.scaling.dynamic:
        span = torch.maximum(grouped.amax(-1, keepdim=True), -grouped.amin(-1, keepdim=True))
    else:
        span = values.abs().flatten(0, -2).amax(0) if largest is None else largest
        span = span.amax() if fmt.scaling.granularity == PerTensor() else span
    scale = flowing_scale(span, fmt)
    return fmt.codebook.nearest_(grouped / scale).mul_(scale).view(values.shape)


def flowing_scale(largest: Tensor, fmt: Format) -> Tensor:
    """The scale of groups with these largest magnitudes; 1 for a group of zeros."""
    found = largest / (FLOAT8_SPAN if fmt.floating else (2**fmt.bits - 1) / 2)
    found = torch.where(found > 0, found, 1.0)
    return found.log2().ceil().exp2() if fmt.floating else found
