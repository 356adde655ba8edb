"""Weights in floating-point codes, on any device: as dense in memory as the format, and made dense whenever used.

Codes of 4 and 8 bits lie as in the checkpoint, others in planes (`natprec.runtime.kernels.planes`); a table of at most
256 entries decodes them, that of 4 bits both codes of a byte at once. Scales keep the byte that the checkpoint gives
them: an exponent (MX), a float8 (NVFP4, times the outer scale).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from natprec.formats import Codebook, Float, PerBlock
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
        """Codes and scales, (rows, …); the outer scale, ()."""
        codes, bits = weight.codes, weight.format.bits
        if bits == 4:
            packed = codes[:, ::2] | codes[:, 1::2] << 4
        elif bits == 8:
            packed = codes.contiguous()
        else:
            packed = planes.pack((codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8), bits)
        return packed, *narrow_scales(weight, dtype)

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
        value = _decoded(packed[rows], fmt.codebook, layer.columns)
        scale = wide_scales(narrow[rows], outer, fmt)
        if layer.columns % scale.shape[1] or isinstance(fmt.scaling.granularity, PerBlock):
            return value.mul_(spread(scale, fmt, layer.columns))
        value.view(*scale.shape, -1).mul_(scale.unsqueeze(-1))
        return value


def _decoded(packed: Tensor, codebook: Codebook, columns: int) -> Tensor:
    """(rows, columns) values of codes, float32."""
    values = table(codebook).to(packed.device)
    if codebook.bits == 4:  # both codes of a byte at once
        pairs = torch.stack([values.repeat(16), values.repeat_interleave(16)], 1).view(torch.float64).view(-1)
        return torch.take(pairs, packed.long()).view(torch.float32)
    if codebook.bits != 8:
        packed = planes.unpack(packed, codebook.bits, columns).to(torch.int16) + 2 ** (codebook.bits - 1)
    return torch.take(values, packed.long())


@functools.cache
def table(codebook: Codebook) -> Tensor:
    """The value of each code, float32."""
    return codebook.decode(torch.arange(2**codebook.bits).to(torch.uint8))
