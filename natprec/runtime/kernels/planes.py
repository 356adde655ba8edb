"""Codes in planes of bits: the layout of weights in memory, as dense as the checkpoint's and cheap to take apart.

A block is 32 codes of one row, made unsigned: u = code + 2**(bits - 1). Its bits are cut into planes of 4, 2 and 1
(7 = 4 + 2 + 1; 8 stays whole), lowest bits first. In a plane of p bits byte i holds the codes i, i + 4p, i + 8p …, so
that one shift and one mask of a whole register give 4p neighbours in order (`planar in tile`, in the GPU kernels).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 32


def plane_widths(bits: int) -> tuple[int, ...]:
    """The planes of a width, lowest bits first.

    >>> plane_widths(7), plane_widths(8)
    ((4, 2, 1), (8,))
    """
    return (8,) if bits == 8 else tuple(width for width in (4, 2, 1) if bits & width)


def pack(codes: Tensor, bits: int) -> Tensor:
    """(rows, columns) int8 codes to (rows, blocks * 4 * bits) bytes; the last block is filled up with zeros."""
    rows, columns = codes.shape
    unsigned = (codes.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    unsigned = functional.pad(unsigned, (0, -columns % BLOCK)).view(rows, -1, BLOCK)
    planes = []
    shift = 0
    for width in plane_widths(bits):
        part = (unsigned >> shift) & (2**width - 1)
        lanes = part.view(rows, -1, 8 // width, 4 * width).unbind(2)
        planes.append(sum(lane << (width * place) for place, lane in enumerate(lanes)))
        shift += width
    return torch.cat(planes, -1).view(rows, -1)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse of `pack`: (rows, columns), int8."""
    rows = len(packed)
    blocks = packed.view(rows, -1, 4 * bits)
    unsigned = torch.zeros(rows, blocks.shape[1], BLOCK, dtype=torch.uint8, device=packed.device)
    start = shift = 0
    for width in plane_widths(bits):
        plane = blocks[..., start : start + 4 * width]
        lanes = [(plane >> (width * place)) & (2**width - 1) for place in range(8 // width)]
        unsigned |= torch.cat(lanes, -1) << shift
        start, shift = start + 4 * width, shift + width
    return (unsigned.view(rows, -1)[:, :columns].to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
