"""What an engine makes of an activation: the nearest codes on a grid that each token, or group of features, spans.

The format says what the largest magnitude is scaled to: the largest code, as in kernels, or half a step beyond it, as
in compressed-tensors, where a positive largest value is half a step off. The scale of float8 is a power of two, which
every dtype holds and which leaves its precision as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.formats import Format, PerTensor

FLOAT8_SPAN = 224.0
"""What the largest magnitude measured is scaled to, or below: the rest of the range is for other text."""


def round_activations(values: Tensor, fmt: Format, scale: Tensor | None = None) -> Tensor:
    """The values that an engine computes with.

    Args:
        values: (..., features), float32 and finite.
        scale: of a format whose scale is fixed, one or (features,); by default that of `values`.
    Returns:
        The same shape; a group of zeros stays zero.
    """
    grouped = values.unflatten(-1, (-1, fmt.group_size)) if fmt.group_size else values
    if fmt.dynamic:
        scale = flowing_scale(fmt, torch.maximum(grouped.amax(-1, keepdim=True), -grouped.amin(-1, keepdim=True)))
    elif scale is None:
        scale = fixed_scale(fmt, values.abs().flatten(0, -2).amax(0))
    return fmt.codebook.nearest_(grouped / scale).mul_(scale).view(values.shape)


def fixed_scale(fmt: Format, largest: Tensor) -> Tensor:
    """Of a format whose scale is fixed, by the largest magnitude of each feature."""
    return flowing_scale(fmt, largest.amax() if fmt.scaling.granularity == PerTensor() else largest)


def flowing_scale(fmt: Format, largest: Tensor) -> Tensor:
    """Of groups with these largest magnitudes; 1 for a group of zeros."""
    found = largest / span(fmt)
    found = torch.where(found > 0, found, 1.0)
    return found.log2().ceil().exp2() if fmt.floating else found


def span(fmt: Format) -> float:
    """What the largest magnitude is scaled to."""
    if fmt.floating:
        return FLOAT8_SPAN
    return (2**fmt.bits - 1) / 2 if fmt.full_range else float(fmt.codebook.largest)
