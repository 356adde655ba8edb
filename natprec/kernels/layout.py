"""Planar in tile: the order of a packed weight in which a tensor core's operand needs no shuffling.

The checkpoint's dense layout puts neighbouring codes into one word. A GPU thread would have to hand most of them to
other threads, through shared memory. Here word i of a tile holds the codes of columns i, R + i, 2R + i, …: shifted by
j codes, R words *are* the columns j·R … j·R + R - 1, in the registers where the tensor core wants them.

A tile is 8·R columns of a row, R = 16 beside 16-bit activations and 32 beside 8-bit ones (the depth of one
tensor-core step). A word holds 8 codes and so has as many bytes as a code has bits. Where there is no such word,
codes are split into planes that have: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1 bits, low bits first; 8-bit codes
lie 4 to a word, in two runs of R words. Planes have the same order: putting bits together needs no shuffling either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from natprec.errors import InputError
from natprec.formats import NumberFormat
from natprec.quantizers import QuantizedTensor

PLANES: dict[int, tuple[int, ...]] = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
"""Widths of the planes that hold a code, from its lowest bit up."""

CODES_PER_WORD = {1: 8, 2: 8, 4: 8, 8: 4}
WORDS = {8: torch.int8, 16: torch.int16, 32: torch.int32}

STEPS = 8
"""Steps of R columns in a tile."""

ROWS = 128
"""Rows are padded to a multiple of the largest tile, so that no load of a weight needs a mask."""

DEPTH_OF_FLOATS, DEPTH_OF_CODES = 16, 32
"""R beside 16-bit and beside 8-bit activations."""


@dataclass(frozen=True)
class PlanarWeight:
    """A weight as the Triton kernels read it.

    Attributes:
        rows: output channels, without the padding to a multiple of `ROWS`.
        columns: input channels, without the padding to whole tiles.
        depth: R.
        planes: (tiles, runs, padded rows, R) each; int8, int16 or int32.
        scale: (padded groups, padded rows), in the dtype it was stored in.
        zero_point: the same, int8; None when symmetric.
    """

    format: NumberFormat
    rows: int
    columns: int
    depth: int
    planes: tuple[Tensor, ...]
    scale: Tensor
    zero_point: Tensor | None

    @property
    def nbytes(self) -> int:
        """Stored bytes, padding included."""
        tensors = [*self.planes, self.scale] + ([] if self.zero_point is None else [self.zero_point])
        return sum(tensor.nbytes for tensor in tensors)


def repack(
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    fmt: NumberFormat,
    columns: int,
    depth: int = DEPTH_OF_FLOATS,
) -> PlanarWeight:
    """From the checkpoint's dense bitstream (`pack_to_int32` of compressed-tensors), on the CPU or wherever it lies.

    Args:
        packed: (rows, words), int32.
        scale: (rows, groups).
        zero_point: (rows, groups), int8, unpacked; None when symmetric.
        columns: of the unpacked weight.
        depth: R.
    """
    from compressed_tensors.compressors.pack_quantized import unpack_from_int32

    codes = unpack_from_int32(packed, fmt.bits, torch.Size((len(packed), columns)))
    return planar(QuantizedTensor(fmt, codes, scale, zero_point), depth)


def planar(weight: QuantizedTensor, depth: int = DEPTH_OF_FLOATS) -> PlanarWeight:
    """The codes of a weight in the order above.

    Raises:
        InputError: the width has no planes (1 bit), or groups do not consist of whole steps of R columns.
    """
    fmt, (rows, columns) = weight.format, weight.codes.shape
    if fmt.bits not in PLANES:
        raise InputError(f"{fmt.name} has no planar layout; its widths are {', '.join(map(str, PLANES))} bits")
    if (groups := weight.scale.shape[1]) > 1 and fmt.group_size % depth:
        raise InputError(
            f"{fmt.name}: groups of a planar weight are multiples of {depth} columns; use the eager kernel"
        )
    tiles, padded_rows = math.ceil(columns / (STEPS * depth)), math.ceil(rows / ROWS) * ROWS
    steps = torch.zeros(tiles * STEPS * depth, padded_rows, dtype=torch.int32, device=weight.codes.device)
    steps[:columns, :rows] = weight.codes.T.to(torch.int32) - fmt.code_range[0]
    steps = steps.view(tiles, STEPS, depth, padded_rows).transpose(2, 3)
    planes, low = [], 0
    for width in PLANES[fmt.bits]:
        planes.append(_pack(steps >> low & (1 << width) - 1, width))
        low += width
    shape = (padded_rows, 1 if groups == 1 else math.ceil(tiles * STEPS * depth / fmt.group_size))
    zero = None if weight.zero_point is None else _columns_first(weight.zero_point, *shape)
    return PlanarWeight(fmt, rows, columns, depth, tuple(planes), _columns_first(weight.scale, *shape), zero)


def _pack(steps: Tensor, width: int) -> Tensor:
    """(tiles, steps, rows, R) codes of a plane as (tiles, runs, rows, R) words."""
    count = CODES_PER_WORD[width]
    runs = steps.to(torch.int64).unflatten(1, (-1, count))
    shifts = torch.arange(0, width * count, width, device=steps.device).view(-1, 1, 1)
    words = (runs << shifts).sum(2)
    bits = width * count
    return (words - (words >> bits - 1 << bits)).to(WORDS[bits]).contiguous()  # the top bit is the sign


def _columns_first(values: Tensor, rows: int, groups: int) -> Tensor:
    """(rows, groups) as (groups, rows), both padded, so that neighbouring threads read neighbours."""
    padding = (0, groups - values.shape[1], 0, rows - values.shape[0])
    return functional.pad(values, padding).T.contiguous()


def unpack(weight: PlanarWeight) -> QuantizedTensor:
    """The inverse of `planar`."""
    low, groups = 0, weight.format.groups(weight.columns)
    codes = torch.zeros((), dtype=torch.int64)
    for plane, width in zip(weight.planes, PLANES[weight.format.bits], strict=True):
        count = CODES_PER_WORD[width]
        shifts = torch.arange(0, width * count, width, device=plane.device).view(-1, 1, 1)
        steps = plane.to(torch.int64).unsqueeze(2) >> shifts & (1 << width) - 1
        codes = codes + (steps.flatten(1, 2) << low)
        low += width
    codes = codes.transpose(2, 3).flatten(0, 2).T[: weight.rows, : weight.columns] + weight.format.code_range[0]
    zero = None if weight.zero_point is None else weight.zero_point.T[: weight.rows, :groups].contiguous()
    scale = weight.scale.T[: weight.rows, :groups].contiguous()
    return QuantizedTensor(weight.format, codes.to(torch.int8).contiguous(), scale, zero)
