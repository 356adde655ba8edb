"""The specification: what a quantized Linear computes, in float64, from codes, scales and zero points.

Slow and plain on purpose. A kernel is right if its float output is this to the rounding of its own arithmetic, and its
int8 output is this except where the value before rounding lies that close to the middle between two codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.errors import InputError
from natprec.formats import Integer
from natprec.quantizers import QuantizedTensor
from natprec.runtime.kernels.epilogue import CODES, Epilogue


def linear(
    x: Tensor,
    weight: QuantizedTensor,
    *,
    x_scale: Tensor | None = None,
    bias: Tensor | None = None,
    epilogue: Epilogue = Epilogue(),  # noqa: B008  a frozen value
    multiplier: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """epilogue(x · weightᵀ), all in float64.

    Args:
        x: (tokens, columns), floats; or int8 codes.
        weight: (rows, columns), 1 to 8 bits, groups or channels, with or without zero points; or in floats.
        x_scale: (tokens,) or (1,), what `x` is in units of: of codes always, of floats where they have such.
        bias: (rows,).
        multiplier: (tokens, rows), where the epilogue is gated.
        residual: (tokens, rows), where the epilogue has one.
    Returns:
        (tokens, rows), float64, or int8 where the epilogue quantizes.
    Raises:
        InputError: int8 codes without a scale, or tensors that the epilogue does not name.
    """
    if x.dtype == torch.int8 and x_scale is None:
        raise InputError("x is torch.int8 without a scale; codes have one")
    product = x.double() @ dequantize(weight).T
    if x_scale is not None:
        product = product * x_scale.double().reshape(-1, 1)
    return epilogue.apply(product, bias, multiplier, residual)


def dequantize(weight: QuantizedTensor) -> Tensor:
    """(rows, columns), float64: (code - zero point) · scale."""
    rows, groups = weight.scale.shape
    if not isinstance(weight.format.codebook, Integer):
        return weight.format.codebook.decode(weight.codes).double() * weight.spread(weight.scale.double())
    codes = weight.codes.view(rows, groups, -1).double()
    if weight.zero_point is not None:
        codes = codes - weight.zero_point.double().unsqueeze(-1)
    return (codes * weight.scale.double().unsqueeze(-1)).view(rows, -1)


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as int8 codes with one scale for each token, from its largest value (dynamic, symmetric).

    Args:
        x: (tokens, columns), finite.
    Returns:
        codes (tokens, columns), int8; scale (tokens,), float32, 1 for a token of zeros.
    """
    largest = x.float().abs().amax(-1)
    scale = torch.where(largest > 0, largest / CODES[1], 1.0)
    return (x.float() / scale.unsqueeze(-1)).round().clamp(*CODES).to(torch.int8), scale


def halve_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as float16 in units of each token's largest value, so that none is beyond float16.

    Args:
        x: (tokens, columns), finite.
    Returns:
        (tokens, columns), float16; scale (tokens,), float32, 1 for a token of zeros.
    """
    largest = x.float().abs().amax(-1)
    scale = torch.where(largest > 0, largest, 1.0)
    return (x.float() / scale.unsqueeze(-1)).half(), scale
