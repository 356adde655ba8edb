"""Weights in floating-point codes, on any device: as dense in memory as the format, and made dense whenever used.

Codes lie in planes of bits, as integers do (`natprec.runtime.kernels.planes`); a table of at most 256 values decodes
them. Scales keep the byte that the checkpoint gives them: an exponent (MX), a float8 (NVFP4, times the outer scale).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from natprec.formats import Codebook, Float
from natprec.quantizers import QuantizedTensor
from natprec.quantizers.scale_bytes import narrow_scales, wide_scales
from natprec.quantizers.tensor import spread
from natprec.runtime.kernels import planes
from natprec.runtime.kernels.kernel import Buffers, Kernel, Layer

DENSE = 1 << 22
"""Weights that are dense at a time beside few tokens: 16 MB."""


class DequantizeFloats(Kernel):
    """Any weight in floating-point codes, by torch."""

    name = "dequantize-floats"
    few = 4
    codebooks = (Float,)

    def refuses(self, layer: Layer) -> str:
        """Nothing."""
        return ""

    def pack(self, weight: QuantizedTensor, dtype: torch.dtype) -> Buffers:
        """Planes and scales, (rows, …); the outer scale, ()."""
        half = 2 ** (weight.format.bits - 1)
        codes = (weight.codes.to(torch.int16) - half).to(torch.int8)
        return planes.pack(codes, weight.format.bits), *narrow_scales(weight, dtype)

    def product(self, x: Tensor, buffers: Buffers, layer: Layer) -> Tensor:
        """By torch, in float32, some rows of the weight at a time."""
        step = max(1, DENSE // layer.columns)
        blocks = [slice(start, min(start + step, layer.rows)) for start in range(0, layer.rows, step)]
        parts = [functional.linear(x.float(), self.values(buffers, layer, rows)) for rows in blocks]
        return torch.cat(parts, 1).to(x.dtype)

    def values(self, buffers: Buffers, layer: Layer, rows: slice | Tensor) -> Tensor:
        """From the table, times scales."""
        packed, narrow, outer = buffers
        assert packed is not None
        assert narrow is not None
        fmt = layer.format
        codes = planes.unpack(packed[rows], fmt.bits, layer.columns).to(torch.int32) + 2 ** (fmt.bits - 1)
        value = table(fmt.codebook).to(packed.device).index_select(0, codes.view(-1)).view(codes.shape)
        scale = wide_scales(narrow[rows], outer, fmt)
        return value.mul_(spread(scale, fmt, layer.columns))


@functools.cache
def table(codebook: Codebook) -> Tensor:
    """The value of each code, float32."""
    return codebook.decode(torch.arange(2**codebook.bits).to(torch.uint8))
