"""The planar layout: nothing is lost on the way there and back, and its words are where the kernels look."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from natprec.errors import InputError
from natprec.formats import CHANNEL, Format, integer
from natprec.quantizers import QuantizedTensor
from natprec.runtime.kernels.layout import DEPTH_OF_CODES, DEPTH_OF_FLOATS, ROWS, TILE, planar, unpack


def made(fmt: Format, rows: int, columns: int, seed: int = 0) -> QuantizedTensor:
    draw = torch.Generator().manual_seed(seed)
    low, high = fmt.code_range
    groups = fmt.groups(columns)
    codes = torch.randint(low, high + 1, (rows, columns), generator=draw, dtype=torch.int8)
    zero = torch.randint(low, high + 1, (rows, groups), generator=draw, dtype=torch.int8)
    return QuantizedTensor(fmt, codes, torch.rand(rows, groups, generator=draw), None if fmt.symmetric else zero)


@settings(max_examples=30, deadline=None)
@given(
    bits=st.integers(2, 8),
    group=st.sampled_from([32, 64, 96, CHANNEL]),
    groups=st.integers(1, 6),
    rows=st.integers(1, 70),
    symmetric=st.booleans(),
    depth=st.sampled_from([DEPTH_OF_FLOATS, DEPTH_OF_CODES]),
    ragged=st.integers(1, 600),
)
def test_from_the_checkpoints_words_and_back(
    bits: int, group: int, groups: int, rows: int, symmetric: bool, depth: int, ragged: int
) -> None:
    columns = ragged if group == CHANNEL else group * groups
    fmt = integer(bits, group, symmetric)
    weight = made(fmt, rows, columns)
    dense = pack_to_int32(weight.codes, bits)
    codes = unpack_from_int32(dense, bits, weight.codes.shape)
    stored = planar(replace(weight, codes=codes), depth)
    back = unpack(stored)
    assert torch.equal(pack_to_int32(back.codes, bits), dense)
    assert torch.equal(back.scale, weight.scale)
    assert (back.zero_point is None) == symmetric
    if weight.zero_point is not None and back.zero_point is not None:
        assert torch.equal(back.zero_point, weight.zero_point)
    stored_bits = 8 * sum(plane.nbytes for plane in stored.planes)
    assert stored_bits == bits * math.ceil(rows / ROWS) * ROWS * math.ceil(columns / TILE) * TILE


def test_a_word_holds_neighbours_and_steps() -> None:
    """4 bits: in each half of a word 4 steps of 16 columns, or in each byte 2 steps of 32."""
    weight = made(integer(4, CHANNEL), 3, 2 * TILE)
    halves, bytes_ = (planar(weight, depth).planes[0] for depth in (DEPTH_OF_FLOATS, DEPTH_OF_CODES))
    assert halves.shape == bytes_.shape == (2, 4, ROWS, 8)
    for tile, run, n, i in ((0, 0, 0, 0), (0, 3, 2, 5), (1, 1, 1, 7)):
        codes = weight.codes[n, tile * TILE + run * 64 :][:64].int() + 8
        word = int(halves[tile, run, n, i])
        for step, lane in itertools.product(range(4), range(2)):
            assert word >> (16 * lane + 4 * step) & 15 == codes[16 * step + 2 * i + lane]
        word = int(bytes_[tile, run, n, i])
        for step, lane in itertools.product(range(2), range(4)):
            assert word >> (8 * lane + 4 * step) & 15 == codes[32 * step + 4 * i + lane]


def test_scales_reach_over_the_padding() -> None:
    """The last tile of 3 groups of 96 columns is part empty; the kernel reads a scale for all of it."""
    assert planar(made(integer(4, 96), 2, 288)).scale.shape == (6, ROWS)
    assert planar(made(integer(4, 96), 2, 96)).scale.shape == (1, ROWS)


def test_what_has_no_planar_layout_says_so() -> None:
    with pytest.raises(InputError, match="int1-channel has no planar layout"):
        planar(made(integer(1, CHANNEL), 2, 128))
    with pytest.raises(InputError, match="multiples of 32"):
        planar(made(integer(4, 16), 2, 128), DEPTH_OF_CODES)
