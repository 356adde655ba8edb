"""A format's name, and the bytes it promises: those that the export writes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from natprec.checkpoints import checkpoint_tensors
from natprec.errors import InputError
from natprec.formats import CHANNEL, Format, engine_profile, integer, parse_format
from natprec.models.weight_sites import Site
from natprec.quantizers import quantize

FORMATS = [
    integer(bits, group, symmetric)
    for bits, group, symmetric in itertools.product(range(1, 9), (1, 32, 64, 128, CHANNEL), (True, False))
]


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_name_round_trips(fmt: Format) -> None:
    assert parse_format(fmt.name) == fmt


def test_names_differ() -> None:
    assert len({fmt.name for fmt in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize("name", ["int4", "int9-g64", "int0-g64", "int4-g", "int4-g64-sym", "fp8-g64", " int4-g64", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="write for example int4-g64"):
        parse_format(name)


@pytest.mark.parametrize(("bits", "group"), [(0, 64), (9, 64), (4, 0), (4, -2)])
def test_impossible_formats_are_refused(bits: int, group: int) -> None:
    with pytest.raises(InputError):
        integer(bits, group)


def packed_bytes(fmt: Format, rows: int, columns: int) -> int:
    """What the export stores for one Linear, without its 16-byte shape."""
    model = nn.ModuleDict({"a": nn.Linear(columns, rows, bias=False)})
    site = Site("a", "weight", "linear", (rows, columns), ("a",), "a", 0)
    weight = model["a"].weight.detach()
    stored = checkpoint_tensors(
        model, [site], {"a": quantize(weight, fmt, torch.bfloat16)}, engine_profile("natprec"), torch.bfloat16
    )
    return sum(tensor.nbytes for name, tensor in stored.items() if not name.endswith("weight_shape"))


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    group=st.sampled_from([32, 64, 128, CHANNEL]),
    symmetric=st.booleans(),
    rows=st.integers(1, 70),
    width=st.integers(1, 3),
    ragged=st.integers(1, 130),
)
def test_stored_bytes_are_those_of_the_packed_tensors(
    bits: int, group: int, symmetric: bool, rows: int, width: int, ragged: int
) -> None:
    fmt = integer(bits, group, symmetric)
    columns = ragged if group == CHANNEL else group * width
    assert fmt.stored_bytes(rows, columns) == packed_bytes(fmt, rows, columns)


def test_division_into_groups() -> None:
    assert integer(4, 64).divides(192)
    assert not integer(4, 64).divides(96)
    assert integer(4, CHANNEL).divides(7)
    assert integer(4, 64).groups(192) == 3
    assert integer(4, CHANNEL).groups(7) == 1
