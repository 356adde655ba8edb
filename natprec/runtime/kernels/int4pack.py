"""Weights as `_weight_int4pack_mm_for_cpu` wants them: torch's 4-bit product, for every width and shape.

The operation computes (u - 8) · scale + offset for nibbles u, in groups of 32 to 256 columns, rows in multiples of 16.
- 2 to 4 bits widen without loss: u = code + 8.
- 5 to 8 bits are two planes of nibbles side by side, the same input twice: code + 128 = low + 16 · high, so low
  takes scale · (low - 8) + 8 · scale and high takes 16 · scale · (high - 8); powers of two keep scales exact.
- Zero points do not fit into a 16-bit offset. Their part of the product, -zero · scale · Σx of each
  group, is added apart.
- Odd shapes are filled up: rows to 64 (the widest block of the layout), columns to a whole group, with zeros.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from natprec.quantizers import QuantizedTensor

ROWS = 64
GROUPS = (256, 128, 64, 32)
"""Group sizes of the operation, widest first; a channel's columns are filled up to a multiple of the narrowest."""


def pack(weight: QuantizedTensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Nibbles, (groups, rows, 2) scales and offsets in `dtype`, and (groups, rows) float32 shifts for zero points."""
    rows, columns = weight.codes.shape
    fmt = weight.format
    codes = functional.pad(weight.codes, (0, -columns % GROUPS[-1])).int()
    group = columns // weight.scale.shape[1]
    if group == columns:
        group = next(size for size in GROUPS if codes.shape[1] % size == 0)
    scale = weight.scale.expand(rows, codes.shape[1] // group)
    if fmt.bits <= 4:
        nibbles = codes + 8
        scales = torch.stack([scale, torch.zeros_like(scale)], -1)
    else:
        unsigned = codes + 128
        nibbles = torch.cat([unsigned & 15, unsigned >> 4], 1)
        low = torch.stack([scale, 8 * scale], -1)
        high = torch.stack([16 * scale, torch.zeros_like(scale)], -1)
        scales = torch.cat([low, high], 1)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(functional.pad(nibbles, (0, 0, 0, -rows % ROWS)), 1)
    scales = functional.pad(scales, (0, 0, 0, 0, 0, -rows % ROWS)).transpose(0, 1).to(dtype).contiguous()
    shift = None if weight.zero_point is None else (-weight.zero_point * weight.scale).T.contiguous()
    return packed, scales, shift


def product(x: Tensor, packed: Tensor, scales: Tensor, shift: Tensor | None, rows: int, bits: int) -> Tensor:
    """X (tokens, columns) times the weight, (tokens, rows), in the dtype of x; computed in that of the scales."""
    filled = functional.pad(x, (0, -x.shape[1] % GROUPS[-1])).to(scales.dtype)
    if bits > 4:
        filled = torch.cat([filled, filled], 1)
    group = filled.shape[1] // len(scales)
    y = torch.ops.aten._weight_int4pack_mm_for_cpu(filled, packed, group, scales)[:, :rows].to(x.dtype)
    if shift is None:
        return y
    sums = x.float().view(len(x), len(shift), -1).sum(2)
    return y + (sums @ shift).to(x.dtype)


def values(packed: Tensor, scales: Tensor, shift: Tensor | None, columns: int, bits: int, rows: Tensor) -> Tensor:
    """Some rows of the weight by number, (rows, columns), float32: the blocks that hold them are taken apart."""
    blocks = torch.unique(rows // ROWS)
    members = (blocks.unsqueeze(1) * ROWS + torch.arange(ROWS)).view(-1)
    value = _nibbles(packed.view(-1, ROWS, packed.shape[1])[blocks].view(-1, packed.shape[1]))
    scale, offset = scales[:, members].float().transpose(0, 1).unsqueeze(2).unbind(-1)
    value = ((value.view(len(members), len(scales), -1) - 8) * scale + offset).view(len(members), -1)
    if bits > 4:
        low, high = value.chunk(2, 1)
        value = low + high
    value = value[torch.searchsorted(blocks, rows // ROWS) * ROWS + rows % ROWS, :columns]
    if shift is not None:
        value = (value.view(len(rows), len(shift), -1) + shift.T[rows].unsqueeze(2)).view(len(rows), -1)
    return value


def _nibbles(packed: Tensor) -> Tensor:
    """(rows, columns) int8, 0 to 15, of rows that begin a block of the layout."""
    rows, block = len(packed), block_rows()
    split = packed.view(rows // block, -1, block // 2)
    return torch.cat([split & 15, split >> 4], -1).transpose(1, 2).reshape(rows, -1).to(torch.int8)


@functools.cache
def block_rows() -> int:
    """Rows that the layout interleaves: 64 with AVX-512, else 32. torch's own affair, so found by trying."""
    codes = torch.arange(ROWS * 32, dtype=torch.int32).view(ROWS, 32) * 7 // 3 % 16
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    for block in (64, 32, 16):
        split = packed.view(ROWS // block, -1, block // 2)
        found = torch.cat([split & 15, split >> 4], -1).transpose(1, 2).reshape(ROWS, 32)
        if torch.equal(found.int(), codes):
            return block
    raise AssertionError("torch packs 4-bit weights in a way that is not known here")
