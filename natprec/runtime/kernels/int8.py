"""Codes one to a byte, a scale for each channel: torch's 8-bit product, and oneDNN's with int8 activations."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from natprec import native
from natprec.quantizers import QuantizedTensor
from natprec.runtime.kernels.reference import quantize_tokens

COLUMNS = 16
"""`_weight_int8pack_mm` reads beyond rows that are no multiple of 8 (torch 2.13): they are filled up to 16."""


def pack(weight: QuantizedTensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes with columns filled up, scale (rows,) in `dtype`, and the shift -zero · scale (rows,) in float32."""
    codes = functional.pad(weight.codes, (0, -weight.codes.shape[1] % COLUMNS)).contiguous()
    shift = None if weight.zero_point is None else (-weight.zero_point * weight.scale).view(-1)
    return codes, weight.scale.view(-1).to(dtype), shift


def values(codes: Tensor, scale: Tensor, shift: Tensor | None, columns: int, rows: slice | Tensor) -> Tensor:
    """Rows of the weight, float32."""
    value = codes[rows, :columns] * scale[rows].float().unsqueeze(1)
    return value if shift is None else value + shift[rows].unsqueeze(1)


def product(x: Tensor, codes: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """X times the weight by torch's 8-bit operation, in the dtype of the scales."""
    filled = functional.pad(x, (0, codes.shape[1] - x.shape[1])).to(scale.dtype)
    y = torch.ops.aten._weight_int8pack_mm(filled, codes, scale).to(x.dtype)
    return y if shift is None else y + (x.float().sum(1, keepdim=True) * shift).to(x.dtype)


def prepare(weight: QuantizedTensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, oneDNN's copy of them, and scale (rows,) in float32."""
    codes = weight.codes.contiguous()
    return codes, torch.ops.onednn.qlinear_prepack(codes, None), weight.scale.float().reshape(-1)


def product_of_codes(x: Tensor, codes: Tensor, prepared: Tensor, scale: Tensor) -> Tensor:
    """The same with activations rounded to int8; made unsigned for oneDNN, whose zero point takes that back."""
    unsigned, x_scale = unsigned_tokens(x)
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    y = torch.ops.onednn.qlinear_pointwise(
        unsigned, 1.0, 128, prepared, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )  # fmt: skip
    return y.mul_(x_scale.unsqueeze(1)).to(x.dtype)


def unsigned_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as bytes 128 + code, and a scale for each token; by planes.c where there is a compiler."""
    if native.library()[0] is not None:
        return native.tokens(x.float())
    rounded, x_scale = quantize_tokens(x)
    return (rounded.to(torch.int16) + 128).to(torch.uint8), x_scale


@functools.cache
def products_are_exact() -> bool:
    """Whether oneDNN's int8 product is right here: without VNNI it saturates sums of two products at int16."""
    codes = torch.full((16, 64), 127, dtype=torch.int8)
    prepared = torch.ops.onednn.qlinear_prepack(codes, None)
    y = product_of_codes(torch.ones(2, 64), codes, prepared, torch.ones(16))
    return bool((y - 127 * 64).abs().max() < 0.5)
