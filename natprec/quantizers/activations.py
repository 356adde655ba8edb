"""What an engine makes of an activation: the nearest codes on a grid that each token, or group of features, spans.

Of integers the format says what the largest magnitude is scaled to: the largest code, as in kernels, or half a step
beyond it, as in compressed-tensors, where a positive largest value is half a step off.

    fp8 by token or group   the largest magnitude becomes 448, as in vLLM's `dynamic_per_token_scaled_fp8_quant`
    fp8 with a fixed scale  a power of two, which every dtype holds and which leaves its precision as it is
    MX                      the least power of two that saturates nothing, as kernels do (`cvt.rp.satfinite.ue8m0x2`)
    NVFP4                   the largest of 16 becomes 6; its scale is a float8 times a float32 that calibration fixed
"""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.formats import Format, PerTensor
from natprec.quantizers.scale_storage import outer_scale, stored_scale

FLOAT8_SPAN = 224.0
"""What the largest magnitude measured is scaled to, or below, where it is fixed: the rest of the range is for other
text."""


def round_activations(values: Tensor, fmt: Format, scale: Tensor | None = None) -> Tensor:
    """The values that an engine computes with.

    Args:
        values: (..., features), float32 and finite.
        scale: what the format fixes: one, or (features,); of NVFP4 the outer scale. By default that of `values`.
    Returns:
        The same shape; a group of zeros stays zero.
    """
    grouped = values.unflatten(-1, (-1, fmt.group_size)) if fmt.group_size else values
    if fmt.fixed and scale is None:
        scale = fixed_scale(fmt, values.abs().flatten(0, -2).amax(0))
    if fmt.dynamic:
        largest = torch.maximum(grouped.amax(-1, keepdim=True), -grouped.amin(-1, keepdim=True))
        scale = flowing_scale(fmt, largest, scale)
    assert scale is not None
    return fmt.codebook.nearest_(grouped / scale).mul_(scale).view(values.shape)


def fixed_scale(fmt: Format, largest: Tensor) -> Tensor:
    """What a format fixes beforehand, by the largest magnitude of each feature; of NVFP4 the outer scale."""
    if fmt.dynamic:
        return outer_scale(largest.amax(), fmt)
    return flowing_scale(fmt, largest.amax() if fmt.scaling.granularity == PerTensor() else largest)


def flowing_scale(fmt: Format, largest: Tensor, outer: Tensor | None = None) -> Tensor:
    """Of groups with these largest magnitudes; 1 for a group of zeros.

    Args:
        outer: of formats that fix one, see `fixed_scale`.
    """
    found = largest / span(fmt)
    if (fmt.fixed and fmt.dynamic) or fmt.scaling.dtype == "e8m0":
        return stored_scale(found, fmt, torch.float32, outer)
    found = torch.where(found > 0, found, 1.0)
    return found.log2().ceil().exp2() if fmt.floating and not fmt.dynamic else found


def span(fmt: Format) -> float:
    """What the largest magnitude is scaled to."""
    if fmt.floating:
        return fmt.codebook.largest if fmt.dynamic else FLOAT8_SPAN
    return (2**fmt.bits - 1) / 2 if fmt.full_range else float(fmt.codebook.largest)
