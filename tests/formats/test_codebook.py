"""Codebooks: rounding is to the nearest value, encoding loses nothing, floats are those of torch and of OCP."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from natprec.errors import InputError
from natprec.formats import Codebook, Float, Integer, Table
from natprec.formats.codebook import E2M1, E3M2, E4M3

CODEBOOKS: list[Codebook] = [
    *(Integer(bits) for bits in range(1, 9)),
    *(Integer(bits, signed=False) for bits in (2, 4, 6)),
    Integer(8, balanced=True),
    E2M1, E3M2, Float(2, 3), E4M3, Float(5, 2),
    Table("nf3", (-1.0, -0.5, -0.1, 0.0, 0.2, 0.4, 0.7, 1.0)),
]  # fmt: skip


def values_of(codebook: Codebook) -> torch.Tensor:
    """All finite values, rising, found through `decode` alone."""
    first = int(codebook.smallest) if isinstance(codebook, Integer) else 0
    count = len(codebook.values) if isinstance(codebook, Table) else 2**codebook.bits
    codes = torch.arange(first, first + count)
    values = codebook.decode(codes.to(torch.int16))
    return values[values.abs() <= max(codebook.largest, -codebook.smallest)].unique()


@pytest.mark.parametrize("codebook", CODEBOOKS, ids=lambda codebook: codebook.name)
def test_values_are_nearest_and_survive_encoding(codebook: Codebook) -> None:
    table = values_of(codebook)
    assert (table[0], table[-1]) == (codebook.smallest, codebook.largest)
    span = float(codebook.largest) or 1.0
    drawn = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * span / 2
    found = codebook.nearest_(drawn.clone())
    distance = (drawn.unsqueeze(1) - table).abs().amin(1)
    torch.testing.assert_close((found - drawn).abs(), distance, rtol=1e-6, atol=0)
    torch.testing.assert_close(codebook.decode(codebook.encode(found)), found, rtol=0, atol=0)
    torch.testing.assert_close(codebook.nearest_(table.clone()), table, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("codebook", "dtype"), [(E4M3, torch.float8_e4m3fn), (Float(5, 2), torch.float8_e5m2)], ids=["e4m3", "e5m2"]
)
def test_eight_bit_floats_are_those_of_torch(codebook: Float, dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(dtype).float()
    finite = expected.isfinite()
    torch.testing.assert_close(codebook.decode(codes)[finite], expected[finite], rtol=0, atol=0)
    assert torch.equal(codebook.encode(expected[finite]), codes[finite])
    assert codebook.largest == float(torch.finfo(dtype).max)
    drawn = torch.randn(10000, generator=torch.Generator().manual_seed(1)).double() * 30  # not by torch's conversion
    torch.testing.assert_close(codebook.nearest_(drawn.clone()), drawn.to(dtype).double(), rtol=0, atol=0)


def test_values_of_four_and_six_bits() -> None:
    assert E2M1.decode(torch.arange(8)).tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert E3M2.largest == 28
    assert Float(2, 3).largest == 7.5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-500, 500, width=32), min_size=1, max_size=8))
def test_ties_go_to_even_and_the_range_saturates(values: list[float]) -> None:
    found = E4M3.nearest_(torch.tensor(values))
    assert bool((found.abs() <= 448).all())
    assert E2M1.nearest_(torch.tensor([0.25, 0.75, 2.5, 5.0, 99.0])).tolist() == [0, 1, 2, 4, 6]


@pytest.mark.parametrize(
    "make", [lambda: Float(1, 2), lambda: Float(5, 3), lambda: Table("t", (1.0, 1.0)), lambda: Integer(9)]
)
def test_impossible_codebooks_are_refused(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]
