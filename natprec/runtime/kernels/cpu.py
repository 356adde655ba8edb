"""The kernels of CPUs: planes.c where a compiler made it, else torch's own low-bit operations."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from natprec import native
from natprec.quantizers import QuantizedTensor
from natprec.runtime.kernels import int4pack, int8, ops, planes
from natprec.runtime.kernels.kernel import Buffers, Kernel, Layer
from natprec.utils.matmul import multiplies_bfloat16

STEPS = (128, 64, 96, 32)
"""Columns that share the rounding of activations in planes.c: sums of 128 products stay within int32."""


@functools.cache
def step_of(columns: int, groups: int) -> int | None:
    """Columns whose activations are rounded together, a part of one group; None where groups are not made of blocks."""
    group = -(-columns // planes.BLOCK) * planes.BLOCK if groups == 1 else columns // groups
    return next((step for step in STEPS if group % step == 0), None)


def fast_dtype() -> torch.dtype:
    """What dense products of many tokens are computed in: bfloat16 where the CPU multiplies it, else float32."""
    return torch.bfloat16 if multiplies_bfloat16(torch.device("cpu")) else torch.float32


def linear_planes(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """planes.c; what it does not read is dequantized."""
    columns = x.shape[1]
    step = step_of(columns, scale.shape[1])
    if step is None or native.library()[0] is None:
        weight = ops.planes_weight(packed, scale, zero, bits, columns).dequantize()
        return functional.linear(x.float(), weight).to(x.dtype)
    return native.linear(x.float(), packed, scale, zero, bits, step).to(x.dtype)


def linear_half(x: Tensor, weight: Tensor) -> Tensor:
    """planes.c, or torch in the weight's dtype; what is stored in float32 is torch's too."""
    if native.library()[0] is None or weight.dtype == torch.float32:
        return functional.linear(x.to(weight.dtype), weight).to(x.dtype)
    return native.half(x.float(), weight).to(x.dtype)


class Dequantize(Kernel):
    """Any layer: planes of bits, made dense whenever they are used."""

    name = "dequantize"
    few = 0

    def refuses(self, layer: Layer) -> str:
        """Nothing."""
        return ""

    def pack(self, weight: QuantizedTensor, dtype: torch.dtype) -> Buffers:
        """Planes, scales and zero points, each (rows, …)."""
        zero = None if weight.zero_point is None else weight.zero_point.contiguous()
        return planes.pack(weight.codes, weight.format.bits), weight.scale.to(dtype).contiguous(), zero

    def product(self, x: Tensor, buffers: Buffers, layer: Layer) -> Tensor:
        """By the operation on planes."""
        return torch.ops.natprec.linear_planes(x, *buffers, layer.format.bits)

    def values(self, buffers: Buffers, layer: Layer, rows: slice | Tensor) -> Tensor:
        """By torch."""
        packed, scale, zero = (None if buffer is None else buffer[rows] for buffer in buffers)
        return ops.planes_weight(packed, scale, zero, layer.format.bits, layer.columns).dequantize()  # type: ignore[arg-type]


class Planes(Dequantize):
    """planes.c: every width at its own number of bits, activations as int16."""

    name = "planes"
    few = 4

    def refuses(self, layer: Layer) -> str:
        """Groups that blocks of 32 do not fill, and machines without AVX2 or a compiler."""
        if layer.format.bits == 1 or step_of(layer.columns, layer.groups) is None:
            return f"needs 2 to 8 bits in groups of a multiple of {planes.BLOCK}"
        return native.library()[1]

    def values(self, buffers: Buffers, layer: Layer, rows: slice | Tensor) -> Tensor:
        """By planes.c, where rows are neighbours or few."""
        if isinstance(rows, Tensor):
            if len(rows) > self.few:
                return super().values(buffers, layer, rows)
            return torch.cat([self.values(buffers, layer, slice(row, row + 1)) for row in rows.tolist()])
        packed, scale, zero = buffers
        assert packed is not None
        assert scale is not None
        group = layer.columns // layer.groups
        start, stop, _ = rows.indices(layer.rows)
        return native.values(packed, scale, zero, layer.format.bits, layer.columns, group, start, stop)


class Int8Pack(Kernel):
    """torch's weight-only 8-bit operation."""

    name = "int8pack"
    few = 16

    def refuses(self, layer: Layer) -> str:
        """Groups, and widths that fit into half a byte."""
        if layer.groups != 1:
            return "needs one scale per channel"
        return "" if layer.format.bits > 4 else "4 bits take half the memory"

    def pack(self, weight: QuantizedTensor, dtype: torch.dtype) -> Buffers:
        """See `int8.pack`."""
        return int8.pack(weight, dtype)

    def product(self, x: Tensor, buffers: Buffers, layer: Layer) -> Tensor:
        """By `_weight_int8pack_mm`."""
        return torch.ops.natprec.linear_int8(x, *buffers)

    def values(self, buffers: Buffers, layer: Layer, rows: slice | Tensor) -> Tensor:
        """Codes times scales."""
        return int8.values(*buffers, layer.columns, rows)  # type: ignore[call-arg, arg-type]


class Int8Inputs(Kernel):
    """oneDNN's int8 product: weights and activations."""

    name = "int8-inputs"
    few = 1 << 62
    rounds_inputs = True

    def refuses(self, layer: Layer) -> str:
        """All but symmetric channels under int8 activations, and CPUs on which the product saturates."""
        if not layer.int8_inputs:
            return "activations are floats"
        if layer.groups != 1 or not layer.format.symmetric:
            return "needs one scale per channel and no zero points"
        return "" if int8.products_are_exact() else "int8 products saturate on this CPU (no VNNI)"

    def pack(self, weight: QuantizedTensor, dtype: torch.dtype) -> Buffers:
        """See `int8.prepare`."""
        return int8.prepare(weight)

    def product(self, x: Tensor, buffers: Buffers, layer: Layer) -> Tensor:
        """By `onednn::qlinear_pointwise`."""
        return torch.ops.natprec.linear_int8_inputs(x, *buffers)

    def values(self, buffers: Buffers, layer: Layer, rows: slice | Tensor) -> Tensor:
        """Codes times scales."""
        codes, _, scale = buffers
        return int8.values(codes, scale, None, layer.columns, rows)  # type: ignore[arg-type]


class Int4Pack(Kernel):
    """torch's weight-only 4-bit operation; 5 to 8 bits as two planes of it."""

    name = "int4pack"
    few = 16

    def refuses(self, layer: Layer) -> str:
        """Group sizes that the operation does not have."""
        fits = layer.groups == 1 or layer.columns // layer.groups in int4pack.GROUPS
        return "" if fits else "needs channels, or groups of 32, 64, 128 or 256"

    def pack(self, weight: QuantizedTensor, dtype: torch.dtype) -> Buffers:
        """See `int4pack.pack`."""
        return int4pack.pack(weight, dtype)

    def product(self, x: Tensor, buffers: Buffers, layer: Layer) -> Tensor:
        """By `_weight_int4pack_mm_for_cpu`."""
        return torch.ops.natprec.linear_int4(x, *buffers, layer.rows, layer.format.bits)

    def values(self, buffers: Buffers, layer: Layer, rows: slice | Tensor) -> Tensor:
        """Blocks of 64 rows, taken apart."""
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(layer.rows))
        return int4pack.values(*buffers, layer.columns, layer.format.bits, rows)  # type: ignore[call-arg, arg-type]


for _name, _function in (
    ("linear_planes", linear_planes),
    ("linear_int4", int4pack.product),
    ("linear_int8", int8.product),
    ("linear_int8_inputs", int8.product_of_codes),
    ("linear_half", linear_half),
):
    ops.LIBRARY.impl(_name, _function, "CPU")
ops.LIBRARY.impl("linear_int8_inputs", int8.product_of_codes, "MkldnnCPU")  # where oneDNN's copy sends it
