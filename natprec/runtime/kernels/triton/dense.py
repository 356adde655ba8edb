"""Many tokens: rows of the weight are written as float16 once, and cuBLAS multiplies.

Beside many tokens `planar_linear` keeps the tensor core waiting: it scales every group's sum in float32. Here scales
meet the codes before the product, as in Marlin and Humming, at the price of one rounding of each weight to float16.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from natprec.errors import InputError
from natprec.formats import Format, Integer
from natprec.runtime.kernels import reference
from natprec.runtime.kernels.layout import DEPTH_OF_FLOATS, ROWS, PlanarWeight, unpack
from natprec.runtime.kernels.triton import launcher

LIBRARY = torch.library.Library("natprec", "FRAGMENT")

SCHEMA = """planar_values(Tensor[] planes, Tensor scale, Tensor? zero_point, Tensor unit, Tensor? outer, str format,
    int rows, int columns, int begin, int end) -> Tensor"""

DENSE = 1 << 26
"""Weights that are dense at a time: 128 MB."""

LARGEST = 15
"""No dense value is beyond 2 to this, and float16 holds twice that."""


def dense_product(x: Tensor, weight: PlanarWeight, unit: Tensor) -> Tensor:
    """X · weightᵀ · unit, summed in float32.

    Args:
        x: (tokens, columns), float16.
        weight: of the depth that goes with floats.
        unit: see `unit_of`.
    Returns:
        (tokens, rows), float32.
    """
    blocks = math.ceil(weight.rows / max(ROWS, DENSE // weight.columns // ROWS * ROWS))
    step = math.ceil(weight.rows / blocks / ROWS) * ROWS
    parts = [
        _matmul(x, planar_values(weight, unit, begin, min(begin + step, weight.rows)).T)
        for begin in range(0, weight.rows, step)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def unit_of(scale: Tensor, bits: int) -> Tensor:
    """What values are multiplied by so that float16 holds them: as large as can be, and a power of two.

    So a scale of bfloat16 times a code of 4 bits or fewer is exact. One value, float32.

    Args:
        scale: what codes are multiplied by.
        bits: see `reach`.
    """
    exponent = math.frexp(float(scale.abs().max()))[1]
    return torch.tensor(2.0 ** min(LARGEST - bits - exponent, 126))


def reach(fmt: Format) -> int:
    """No code stands for more than 2 to this, less zero point and all."""
    return fmt.bits if isinstance(fmt.codebook, Integer) else math.ceil(math.log2(fmt.codebook.largest))


def planar_values(weight: PlanarWeight, unit: Tensor, begin: int, end: int) -> Tensor:
    """Rows of a weight, times `unit`.

    Args:
        weight: of the depth that goes with floats.
        unit: see `unit_of`.
        begin, end: the first row, a multiple of `ROWS`, and the one after the last.
    Returns:
        (end - begin, columns), float16.
    Raises:
        InputError: another depth, or rows that are not there or begin within a tile.
    """
    if begin % ROWS or not 0 <= begin < end <= weight.rows:
        raise InputError(f"rows {begin} to {end} of {weight.rows}: blocks begin at multiples of {ROWS}")
    if weight.depth != DEPTH_OF_FLOATS:
        raise InputError(f"the weight is of depth {weight.depth}; values are written from depth {DEPTH_OF_FLOATS}")
    return torch.ops.natprec.planar_values(
        list(weight.planes), weight.scale, weight.zero_point, unit, weight.outer, weight.format.name,
        weight.rows, weight.columns, begin, end,
    )  # fmt: skip


def _matmul(x: Tensor, dense: Tensor) -> Tensor:
    """Of halves, summed in float32; the CPU, which only tests come here with, has no such product."""
    return torch.mm(x, dense, out_dtype=torch.float32) if x.is_cuda else x.float() @ dense.float()


def _specification(
    planes: list[Tensor], scale: Tensor, zero: Tensor | None, unit: Tensor, outer: Tensor | None, name: str, *shape: int
) -> Tensor:
    """What any implementation must compute, by `natprec.runtime.kernels.reference`."""
    weight = PlanarWeight.of_operands(planes, scale, zero, outer, name, *shape[:2], depth=DEPTH_OF_FLOATS)
    return (reference.dequantize(unpack(weight.some(slice(*shape[2:])))) * unit).half()


def launched(
    planes: list[Tensor], scale: Tensor, zero: Tensor | None, unit: Tensor, outer: Tensor | None, name: str, *shape: int
) -> Tensor:
    """The Triton kernel."""
    weight = PlanarWeight.of_operands(planes, scale, zero, outer, name, *shape[:2], depth=DEPTH_OF_FLOATS)
    begin, end = shape[2:]
    out = scale.new_empty(end - begin, weight.columns, dtype=torch.float16)
    with contextlib.nullcontext() if out.is_cpu else torch.cuda.device(out.device):
        launcher().launch_values(out, weight, unit, begin)
    return out


LIBRARY.define(SCHEMA)
LIBRARY.impl("planar_values", _specification, "CompositeExplicitAutograd")
LIBRARY.impl("planar_values", launched, "CUDA")
torch.library.register_fake(
    "natprec::planar_values",
    lambda planes, scale, zero, unit, outer, name, rows, columns, begin, end: scale.new_empty(
        end - begin, columns, dtype=torch.float16
    ),
    lib=LIBRARY,
)
