"""From codes and grids to the bytes of GGUF's blocks, all blocks of a weight at once.

Every part of every block is planar: of `lanes` neighbouring bytes, the lowest bits hold the first `lanes` values, the
next bits the next `lanes` values, and so on. So one function packs codes, their high bits and the scales of K types;
what differs from type to type is a list of parts in order. The layouts are those of ggml-common.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from natprec.formats import Format
from natprec.quantizers import QuantizedTensor
from natprec.quantizers.scale_storage import nested_codes

Bytes = npt.NDArray[np.uint8]


def pack_blocks(value: QuantizedTensor) -> Bytes:
    """(rows, bytes per row), uint8: as GGUF stores a weight.

    Args:
        value: of a `Format`; its grid is one that the type can store.
    """
    fmt = value.format
    codes = value.codes.cpu().view(-1, fmt.block)
    unsigned = (codes.to(torch.int16) - fmt.code_range[0]).to(torch.uint8).numpy()
    parts = _k_parts(value, fmt, unsigned) if fmt.nested else _block_parts(value, fmt, codes, unsigned)
    blocks = np.concatenate(parts, axis=1)
    assert blocks.shape[1] == fmt.stored_bytes(1, fmt.block)
    return blocks.reshape(len(value.codes), -1)


def _block_parts(value: QuantizedTensor, fmt: Format, codes: Tensor, unsigned: Bytes) -> list[Bytes]:
    """Scale, offset, fifth bits, four low bits; or scale and whole bytes."""
    unused = 0.0 if fmt.bits == 8 or fmt.float_offset else -0.0  # as ggml has it where all codes are 0
    scale = _half(torch.where(codes.any(1, keepdim=True), value.scale.cpu().view(-1, 1), unused))
    offset = [] if value.offset is None else [_half(value.offset.cpu().view(-1, 1))]
    if fmt.bits == 8:
        return [scale, codes.numpy().view(np.uint8)]
    high = [_planar(unsigned >> 4, 1, 1)] if fmt.bits == 5 else []
    return [scale, *offset, *high, _planar(unsigned & 15, 16, 4)]


def _k_parts(value: QuantizedTensor, fmt: Format, q: Bytes) -> list[Bytes]:
    """Each K type has an order, and a way of packing its scales, of its own."""
    step, codes = nested_codes(value.scale.cpu(), fmt)
    assert fmt.group_size is not None
    groups = fmt.block // fmt.group_size
    scale = _half(step.view(-1, 1))
    integers = codes.view(-1, groups).to(torch.int16)
    if fmt.bits == 6:
        signed = integers.to(torch.int8).numpy().view(np.uint8)
        return [_planar(q & 15, 64, 4), _planar(q >> 4, 32, 2), signed, scale]
    if fmt.bits == 3:
        six = (integers + 32).to(torch.uint8).numpy()
        return [_planar(q >> 2, 32, 1), _planar(q & 3, 32, 2), _planar(six & 15, 8, 4), _planar(six >> 4, 4, 2), scale]
    assert value.offset is not None
    offset_step, offset_codes = nested_codes(-value.offset.cpu(), fmt)
    offset = _half(offset_step.view(-1, 1))
    scales, offsets = integers.to(torch.uint8).numpy(), offset_codes.view(-1, groups).to(torch.uint8).numpy()
    if fmt.bits == 2:
        return [scales | offsets << 4, _planar(q, 32, 2), scale, offset]
    packed = _twelve_bytes(scales, offsets)
    high = [_planar(q >> 4, 32, 1)] if fmt.bits == 5 else []
    return [scale, offset, packed, *high, _planar(q & 15, 32, 4)]


def _twelve_bytes(scales: Bytes, offsets: Bytes) -> Bytes:
    """Eight scales and eight offsets of 6 bits: the first four of each whole, above them 2 bits of the last four."""
    last_scales, last_offsets = scales[:, 4:], offsets[:, 4:]
    return np.concatenate(
        [
            scales[:, :4] | last_scales >> 4 << 6,
            offsets[:, :4] | last_offsets >> 4 << 6,
            last_scales & 15 | (last_offsets & 15) << 4,
        ],
        axis=1,
    )


def _planar(values: npt.NDArray[Any], lanes: int, bits: int) -> Bytes:
    """(blocks, n) values below 2**bits, 8 / bits of them to a byte, `lanes` apart."""
    planes = values.reshape(len(values), -1, 8 // bits, lanes)
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    packed: Bytes = np.bitwise_or.reduce(planes << shifts, axis=2).reshape(len(values), -1)
    return packed


def _half(values: Tensor) -> Bytes:
    """(blocks, 1) float32 that float16 holds exactly, as two bytes."""
    return values.to(torch.float16).numpy().view(np.uint8)
