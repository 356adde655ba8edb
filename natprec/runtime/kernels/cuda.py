"""The kernels of CUDA devices: Triton's, for all that its layout holds; cuBLAS for 16-bit weights and many tokens."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from natprec.formats import Float, Integer
from natprec.quantizers import QuantizedTensor
from natprec.runtime.kernels import ops
from natprec.runtime.kernels.epilogue import NOTHING, Ending
from natprec.runtime.kernels.kernel import ALWAYS, Buffers, Fused, Layer
from natprec.runtime.kernels.layout import DEPTH_OF_CODES, DEPTH_OF_FLOATS, PlanarWeight, planar, unpack
from natprec.runtime.kernels.triton.dense import dense_product, reach, unit_of
from natprec.runtime.kernels.triton.ops import planar_linear
from natprec.runtime.kernels.triton.tokens import scaled_tokens


class Triton(Fused):
    """`planar_linear` beside float16 activations; beside many tokens the weight is made dense, a block at a time.

    Attributes:
        many: tokens from which on that is faster, by what its parts take on an H200 (docs/kernels.md).
    """

    name = "triton"
    few = ALWAYS
    many = 1024
    depth = DEPTH_OF_FLOATS
    codebooks: tuple[type, ...] = (Integer, Float)

    def refuses(self, layer: Layer) -> str:
        """Groups that the layout's steps do not fill; everything where triton is not installed."""
        if layer.format.bits < 2 or (layer.groups > 1 and layer.format.span(layer.columns) % self.depth):
            return f"needs 2 to 8 bits in groups of a multiple of {self.depth}"
        return "" if importlib.util.find_spec("triton") else "triton is not installed"

    def pack(self, weight: QuantizedTensor, dtype: torch.dtype) -> Buffers:
        """Planes, lowest bits first; scales, zero points, (groups, rows), the outer scale: see `layout`; the unit."""
        packed = planar(replace(weight, scale=weight.scale.to(dtype)), self.depth)
        unit = unit_of(weight.scale, reach(weight.format))
        return *packed.planes, packed.scale, packed.zero_point, packed.outer, unit

    def product(self, x: Tensor, buffers: Buffers, layer: Layer) -> Tensor:
        """With nothing after it."""
        return self.finished(self.scaled(x), buffers, layer, NOTHING, x.dtype)

    def scaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each token is divided by its largest value, so that no activation is beyond float16."""
        return scaled_tokens(x, codes=False)

    def finished(
        self, scaled: tuple[Tensor, Tensor], buffers: Buffers, layer: Layer, ending: Ending, dtype: torch.dtype
    ) -> Tensor:
        """By `planar_linear`; beside many tokens the epilogue is torch's, after the dense product."""
        (halves, scale), weight = scaled, self._weight(buffers, layer)
        if len(halves) < self.many:
            return _planar(halves, weight, scale, ending, dtype)
        unit = cast(Tensor, buffers[-1])
        return ending.apply(dense_product(halves, weight, unit) * (scale / unit).unsqueeze(1)).to(dtype)

    def values(self, buffers: Buffers, layer: Layer, rows: slice | Tensor) -> Tensor:
        """By torch."""
        return unpack(self._weight(buffers, layer).some(rows)).dequantize()

    def _weight(self, buffers: Buffers, layer: Layer) -> PlanarWeight:
        *planes, scale, zero, outer, _ = buffers
        return PlanarWeight(layer.format, layer.rows, layer.columns, self.depth, tuple(planes), scale, zero, outer)  # type: ignore[arg-type]


class TritonInt8(Triton):
    """`planar_linear` beside int8 activations: one scale per token, found before the product."""

    name = "triton-int8"
    depth = DEPTH_OF_CODES
    rounds_inputs = True
    codebooks = (Integer,)

    def refuses(self, layer: Layer) -> str:
        """Float activations, and what `Triton` refuses."""
        return super().refuses(layer) if layer.int8_inputs else "activations are floats"

    def scaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of int8."""
        return scaled_tokens(x, codes=True)

    def finished(
        self, scaled: tuple[Tensor, Tensor], buffers: Buffers, layer: Layer, ending: Ending, dtype: torch.dtype
    ) -> Tensor:
        """Codes times codes, exact integers within a group."""
        codes, scale = scaled
        return _planar(codes, self._weight(buffers, layer), scale, ending, dtype)


def _planar(x: Tensor, weight: PlanarWeight, scale: Tensor, ending: Ending, dtype: torch.dtype) -> Tensor:
    return planar_linear(
        x, weight, x_scale=scale, bias=ending.bias, epilogue=ending.epilogue, multiplier=ending.multiplier,
        residual=ending.residual, dtype=dtype,
    )  # fmt: skip


def linear_half(x: Tensor, weight: Tensor) -> Tensor:
    """cuBLAS, in the weight's dtype."""
    return functional.linear(x.to(weight.dtype), weight).to(x.dtype)


ops.LIBRARY.impl("linear_half", linear_half, "CUDA")
