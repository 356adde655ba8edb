"""Planar in tile: the order of a packed weight in which a tensor core's operand needs no shuffling.

The checkpoint's dense layout puts neighbouring codes into one word. A GPU thread would have to hand most of them to
other threads, through shared memory. Here a row's tile of 256 columns is cut into steps of R columns, R = 16 beside
16-bit activations and 32 beside 8-bit ones (the depth of one tensor-core step). A word of 32 bits has lanes as wide as
an activation, R / 8 of them, and 8 words are a step: lane l of word i is column i · R / 8 + l. So one shift and one
mask of a word give neighbouring columns, each in the half or the byte of a register where the tensor core wants it; the
next bits of the lane are the next step's.

Where a width does not divide a lane, codes are split into planes that do: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2,
7 = 4 + 2 + 1 bits, low bits first. All planes have the same order: putting bits together needs no shuffling either. A
plane of w bits is w runs of 8 words for a row's tile, whatever R.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from natprec.errors import InputError
from natprec.formats import Float, Format, Integer, parse_format
from natprec.quantizers import QuantizedTensor
from natprec.quantizers.scale_bytes import narrow_scales, wide_scales
from natprec.runtime.kernels.planes import plane_widths

TILE, WORDS = 256, 8
"""Columns of a tile; words of 32 bits that hold a row's step."""

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
        planes: (tiles, bits of the plane, padded rows, 8) each, int32.
        scale: (padded groups, padded rows), in the dtype it was stored in; bytes of E8M0 and E4M3.
        zero_point: the same, int8; None when symmetric.
        outer: (), float32, what E4M3 scales are multiplied by.
    """

    format: Format
    rows: int
    columns: int
    depth: int
    planes: tuple[Tensor, ...]
    scale: Tensor
    zero_point: Tensor | None
    outer: Tensor | None = None

    @property
    def fine(self) -> bool:
        """Whether it is one that `natprec.runtime.kernels.triton.tiles` has smaller tiles for."""
        return isinstance(self.format.codebook, Float) or self.format.group_size == self.depth

    @property
    def nbytes(self) -> int:
        """Stored bytes, padding included."""
        tensors = [*self.planes, self.scale] + ([] if self.zero_point is None else [self.zero_point])
        return sum(tensor.nbytes for tensor in tensors)

    @classmethod
    def of_operands(
        cls,
        planes: Sequence[Tensor],
        scale: Tensor,
        zero_point: Tensor | None,
        outer: Tensor | None,
        name: str,
        rows: int,
        columns: int,
        *,
        depth: int,
    ) -> PlanarWeight:
        """From what a registered operation is given; `name` of the format."""
        return cls(parse_format(name), rows, columns, depth, tuple(planes), scale, zero_point, outer)

    def some(self, rows: slice | Tensor) -> PlanarWeight:
        """Rows next to each other or by number from 0 up, for `unpack`: without the padding that kernels need."""
        if isinstance(rows, slice):
            rows = slice(*rows.indices(self.rows))
        scale = self.scale[:, rows]
        zero = None if self.zero_point is None else self.zero_point[:, rows]
        planes = tuple(plane[:, :, rows] for plane in self.planes)
        return replace(self, rows=scale.shape[1], planes=planes, scale=scale, zero_point=zero)


def repack(
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    fmt: Format,
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
    floats = isinstance(fmt.codebook, Float)
    if fmt.bits < 2 or (floats and depth != DEPTH_OF_FLOATS):
        raise InputError(f"{fmt.name} has no planar layout; there is one of 2 to 8 bits, and of floats beside floats")
    if (groups := weight.scale.shape[1]) > 1 and fmt.span(columns) % depth:
        raise InputError(
            f"{fmt.name}: groups of a planar weight are multiples of {depth} columns; use the eager kernel"
        )
    tiles, padded_rows = math.ceil(columns / TILE), math.ceil(rows / ROWS) * ROWS
    codes = torch.zeros(padded_rows, tiles * TILE, dtype=torch.int64, device=weight.codes.device)
    codes[:rows, :columns] = weight.codes.to(torch.int64) - _least(fmt)
    planes, low = [], 0
    for width in plane_widths(fmt.bits):
        planes.append(_pack(codes >> low & (1 << width) - 1, width, depth))
        low += width
    shape = (padded_rows, 1 if groups == 1 else math.ceil(tiles * TILE / fmt.span(columns)))
    zero = None if weight.zero_point is None else _columns_first(weight.zero_point, *shape)
    scale, outer = narrow_scales(weight, weight.scale.dtype) if floats else (weight.scale, None)
    return PlanarWeight(fmt, rows, columns, depth, tuple(planes), _columns_first(scale, *shape), zero, outer)


def _least(fmt: Format) -> int:
    """The code that is stored as 0."""
    return fmt.code_range[0] if isinstance(fmt.codebook, Integer) else 0


def _shifts(width: int, depth: int, device: torch.device) -> Tensor:
    """Where a code lies in its word: (steps of a run, 1, lanes)."""
    lanes = depth // WORDS
    bits = 32 // lanes
    steps = torch.arange(0, bits, width, device=device)
    return steps.view(-1, 1, 1) + torch.arange(0, 32, bits, device=device)


def _pack(codes: Tensor, width: int, depth: int) -> Tensor:
    """(rows, columns) codes of a plane as (tiles, runs, rows, 8) words."""
    shifts = _shifts(width, depth, codes.device)
    runs = codes.view(len(codes), -1, width, len(shifts), WORDS, depth // WORDS)
    words = (runs << shifts).sum((3, 5)).permute(1, 2, 0, 3)
    return (words - (words >> 31 << 32)).int().contiguous()  # the top bit is the sign


def _columns_first(values: Tensor, rows: int, groups: int) -> Tensor:
    """(rows, groups) as (groups, rows), both padded, so that neighbouring threads read neighbours."""
    padding = (0, groups - values.shape[1], 0, rows - values.shape[0])
    return functional.pad(values, padding).T.contiguous()


def unpack(weight: PlanarWeight) -> QuantizedTensor:
    """The inverse of `planar`."""
    low, groups = 0, weight.format.groups(weight.columns)
    codes = torch.zeros((), dtype=torch.int64)
    for plane, width in zip(weight.planes, plane_widths(weight.format.bits), strict=True):
        words = plane.to(torch.int64).permute(2, 0, 1, 3)[:, :, :, None, :, None]
        steps = words >> _shifts(width, weight.depth, plane.device) & (1 << width) - 1
        codes = codes + (steps.flatten(1) << low)
        low += width
    fmt = weight.format
    codes = (codes[: weight.rows, : weight.columns] + _least(fmt)).to(fmt.code_dtype).contiguous()
    zero = None if weight.zero_point is None else weight.zero_point.T[: weight.rows, :groups].contiguous()
    scale = weight.scale.T[: weight.rows, :groups].contiguous()
    if isinstance(fmt.codebook, Float):
        scale = wide_scales(scale, weight.outer, fmt)
    return QuantizedTensor(fmt, codes, scale, zero, outer=weight.outer)
