"""Formats of what flows: all that is asked of a profile has a name and a description that are read back."""

from __future__ import annotations

from typing import Any

import pytest

from natprec.errors import InputError
from natprec.formats import Format, PerFeature, PerToken, activation, engine_names, engine_profile, parse_activation
from natprec.formats.compressed_tensors import activation_format, arguments
from natprec.models.activation_sites import activation_formats
from natprec.models.weight_sites import Site
from natprec.quantizers.activations import span


def formats(engine: str) -> set[Format]:
    """What is measured for an engine at an input and in a cache, and what it keeps there."""
    profile = engine_profile(engine)
    found = {profile.cached(bits, size) for bits in profile.cache_bits for size in (8, 64, 128)}
    for size in (None, 32, 64):
        for role in ("linear", "cache"):
            site = Site("x", "activation", role, (2, 128), ("x",), "x", 0)  # type: ignore[arg-type]
            found.update(activation_formats(site, size, profile.full_range))
    return found


@pytest.mark.parametrize("engine", engine_names())
def test_description_and_name_are_read_back(engine: str) -> None:
    full_range = engine_profile(engine).full_range
    for fmt in formats(engine):
        assert activation_format(arguments(fmt), full_range) == fmt
        assert parse_activation(fmt.name) == fmt
        assert fmt.dynamic == arguments(fmt)["dynamic"]
    assert len({fmt.name for fmt in formats(engine)}) == len(formats(engine))


@pytest.mark.parametrize(
    "change",
    [
        {"type": "float", "strategy": "tensor"},
        {"type": "float", "num_bits": 4, "strategy": "tensor", "dynamic": False},
        {"strategy": "tensor"},
        {"strategy": "tensor", "dynamic": False},
        {"strategy": "token", "dynamic": False},
        {"dynamic": "local"},
        {"strategy": "group"},
        {"strategy": "group", "group_size": -1},
        {"group_size": 64},
        {"strategy": "attn_head"},
        {"strategy": None},
        {"symmetric": False},
        {"num_bits": 9},
        {"block_structure": [1, 128]},
        {"scale_dtype": "torch.float8_e4m3fn"},
    ],
)
def test_what_no_format_says_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"natprec has no format for activations of .*num_bits"):
        activation_format({**arguments(activation(8)), **change})


def test_what_the_largest_magnitude_becomes() -> None:
    assert [span(activation(bits)) for bits in (8, 4)] == [127, 7]
    assert [span(activation(bits, PerToken(), True)) for bits in (8, 4)] == [127.5, 7.5]
    assert {name for name in engine_names() if engine_profile(name).full_range} == {"transformers"}
    assert not activation(8, PerFeature()).dynamic
