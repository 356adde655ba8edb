"""Scales in as many bytes as their format stores: an exponent (MX), a float8 (NVFP4), else the dtype that is given."""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.formats import Format
from natprec.quantizers.scale_storage import effective_scales, inner_scales
from natprec.quantizers.tensor import QuantizedTensor

BIAS, NO_NUMBER = 127, 255
"""Of E8M0 (OCP Microscaling Formats 1.0): a byte means two to its value less the bias; the last one is NaN."""


def narrow_scales(weight: QuantizedTensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The scales of a weight, (rows, groups), and its outer scale, () in float32.

    Args:
        dtype: of scales in the model's dtype.
    """
    fmt, scale = weight.format, weight.scale.contiguous()
    if weight.outer is not None:
        return inner_scales(scale, weight.outer, fmt).to(torch.float8_e4m3fn).view(torch.uint8), weight.outer
    if fmt.scaling.dtype == "e8m0":
        return (torch.frexp(scale.float())[1] + (BIAS - 1)).to(torch.uint8), None
    return scale.to(dtype), None


def wide_scales(narrow: Tensor, outer: Tensor | None, fmt: Format) -> Tensor:
    """The inverse of `narrow_scales`, float32."""
    if outer is not None:
        return effective_scales(narrow.view(torch.float8_e4m3fn).float(), outer)
    return powers(narrow) if fmt.scaling.dtype == "e8m0" else narrow.float()


def powers(exponents: Tensor) -> Tensor:
    """What bytes of E8M0 mean, float32."""
    exponent = exponents.int() - BIAS
    found = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)
    return found.masked_fill_(exponents == NO_NUMBER, torch.nan)
