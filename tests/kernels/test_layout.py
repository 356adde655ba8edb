"""The planar layout: nothing is lost on the way there and back, and its words are where the kernels look."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from natprec.errors import InputError
from natprec.formats import NumberFormat
from natprec.formats.number_format import CHANNEL
from natprec.kernels.layout import DEPTH_OF_CODES, DEPTH_OF_FLOATS, PLANES, ROWS, STEPS, planar, repack, unpack
from natprec.quantizers import QuantizedTensor


def made(fmt: NumberFormat, rows: int, columns: int, seed: int = 0) -> QuantizedTensor:
    draw = torch.Generator().manual_seed(seed)
    low, high = fmt.code_range
    groups = fmt.groups(columns)
    codes = torch.randint(low, high + 1, (rows, columns), generator=draw, dtype=torch.int8)
    zero = torch.randint(low, high + 1, (rows, groups), generator=draw, dtype=torch.int8)
    return QuantizedTensor(fmt, codes, torch.rand(rows, groups, generator=draw), None if fmt.symmetric else zero)


@settings(max_examples=30, deadline=None)
@given(
    bits=st.sampled_from(sorted(PLANES)),
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
    fmt = NumberFormat(bits, group, symmetric)
    weight = made(fmt, rows, columns)
    dense = pack_to_int32(weight.codes, bits)
    stored = repack(dense, weight.scale, weight.zero_point, fmt, columns, depth)
    back = unpack(stored)
    assert torch.equal(pack_to_int32(back.codes, bits), dense)
    assert torch.equal(back.scale, weight.scale)
    assert (back.zero_point is None) == symmetric
    if weight.zero_point is not None and back.zero_point is not None:
        assert torch.equal(back.zero_point, weight.zero_point)
    tile = STEPS * depth
    assert (
        sum(plane.nbytes for plane in stored.planes) * 8 == bits * -(-rows // ROWS) * ROWS * -(-columns // tile) * tile
    )


@pytest.mark.parametrize("depth", [DEPTH_OF_FLOATS, DEPTH_OF_CODES])
def test_a_word_holds_columns_one_step_apart(depth: int) -> None:
    """Word i of row n: columns i, R + i, 2R + i, … of the tile, 4 bits each."""
    weight = made(NumberFormat(4, CHANNEL), 3, 2 * STEPS * depth)
    words = planar(weight, depth).planes[0]
    assert words.shape == (2, 1, ROWS, depth)
    for tile, n, i, j in ((0, 0, 0, 0), (0, 2, 5, 7), (1, 1, depth - 1, 3)):
        code = int(weight.codes[n, tile * STEPS * depth + j * depth + i]) + 8
        assert (int(words[tile, 0, n, i]) >> 4 * j) & 15 == code


def test_scales_reach_over_the_padding() -> None:
    """The last tile of 3 groups of 96 columns is part empty; the kernel reads a scale for all of it."""
    assert planar(made(NumberFormat(4, 96), 2, 288)).scale.shape == (4, ROWS)
    assert planar(made(NumberFormat(4, 96), 2, 96)).scale.shape == (1, ROWS)


def test_what_has_no_planar_layout_says_so() -> None:
    with pytest.raises(InputError, match="int1-channel has no planar layout"):
        planar(made(NumberFormat(1, CHANNEL), 2, 128))
    with pytest.raises(InputError, match="multiples of 32"):
        planar(made(NumberFormat(4, 16), 2, 128), DEPTH_OF_CODES)
