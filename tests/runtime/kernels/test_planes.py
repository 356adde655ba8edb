"""Planes of bits: packing is invertible, as dense as promised, and written down as it says."""

from __future__ import annotations

import pytest
import torch

from natprec.runtime.kernels.planes import BLOCK, pack, plane_widths, unpack


@pytest.mark.parametrize("columns", [1, 31, 32, 70, 256])
@pytest.mark.parametrize("bits", range(1, 9))
def test_unpack_is_the_inverse_and_no_bit_is_wasted(bits: int, columns: int) -> None:
    low = -(2 ** (bits - 1))
    codes = torch.randint(low, -low, (5, columns), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    packed = pack(codes, bits)
    assert packed.shape == (5, -(-columns // BLOCK) * 4 * bits)
    assert torch.equal(unpack(packed, bits, columns), codes)


def test_the_bytes_are_those_of_the_docstring() -> None:
    codes = torch.zeros(1, BLOCK, dtype=torch.int8) - 4
    codes[0, 16] = 3  # u = 7 = 0b111: low bits 3 in the plane of two, bit 2 in the plane of one
    packed = pack(codes, 3)[0]
    assert plane_widths(3) == (2, 1)
    assert packed[:8].tolist() == [3 << 4, 0, 0, 0, 0, 0, 0, 0]  # byte 0 holds codes 0, 8, 16, 24
    assert packed[8:].tolist() == [1 << 4, 0, 0, 0]  # byte 0 holds codes 0, 4, … 28
