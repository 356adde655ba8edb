"""What an engine makes of an activation: the nearest codes on a grid that each token, or group of its features, spans.

Codes go from -2^(b-1) to 2^(b-1) - 1, and the format says what the largest magnitude is scaled to: the largest code, as
in kernels, or half a step beyond it, as in compressed-tensors, where a positive largest value is half a step off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.formats.activation_format import FLOAT8_MAX, TENSOR, ActivationFormat


def round_activations(values: Tensor, fmt: ActivationFormat, scale: Tensor | None = None) -> Tensor:
    """The values that an engine computes with.

    Args:
        values: (..., features), float32 and finite.
        scale: the fixed one, of all features or (features,); default: found in the values, as formats do whose scales
            are not fixed.
    Returns:
        The same shape; a group of zeros stays zero.
    """
    grouped = values.unflatten(-1, (-1, fmt.group_size)) if fmt.group_size > 0 else values
    if fmt.dynamic:
        scale = fmt.scale(torch.maximum(grouped.amax(-1, keepdim=True), -grouped.amin(-1, keepdim=True)))
    elif scale is None:
        scale = fixed_scale(fmt, values.abs().flatten(0, -2).amax(0))
    codes = grouped / scale
    if fmt.floating:
        codes = codes.clamp_(-FLOAT8_MAX, FLOAT8_MAX).to(torch.float8_e4m3fn).to(values.dtype)
    else:
        codes.round_().clamp_(-(2 ** (fmt.bits - 1)), 2 ** (fmt.bits - 1) - 1)
    return codes.mul_(scale).view(values.shape)


def fixed_scale(fmt: ActivationFormat, largest: Tensor) -> Tensor:
    """Of a format whose scale is fixed, by the largest magnitude of each feature."""
    return fmt.scale(largest.amax() if fmt.group_size == TENSOR else largest)
