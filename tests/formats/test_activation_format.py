"""Formats of what flows: their names, and compressed-tensors' descriptions of them."""

from __future__ import annotations

from typing import Any

import pytest

from natprec.errors import InputError
from natprec.formats import ActivationFormat, engine_names, engine_profile
from natprec.formats.activation_format import CHANNEL, described_format, parse_activation_format
from natprec.sites import Site, activation_formats


def formats(engine: str) -> set[ActivationFormat]:
    """All that a profile can ask for: what is measured for it at an input and in a cache, and what it keeps there."""
    profile = engine_profile(engine)
    found = {profile.cached(bits, size) for bits in profile.cache for size in (8, 64, 128)}
    for size in (None, 32, 64):
        for role in ("linear", "cache"):
            site = Site("x", "activation", role, (2, 128), ("x",), "x", 0)  # type: ignore[arg-type]
            found.update(activation_formats(site, size, profile.full_range))
    return found


@pytest.mark.parametrize("engine", engine_names())
def test_description_and_name_are_read_back(engine: str) -> None:
    from compressed_tensors.quantization import QuantizationArgs

    full_range = engine_profile(engine).full_range
    for fmt in formats(engine):
        assert described_format(fmt.arguments(), full_range) == fmt
        assert described_format(QuantizationArgs(**fmt.arguments()).model_dump(), full_range) == fmt, (
            "as others write it"
        )
        assert parse_activation_format(fmt.name) == fmt
        assert fmt.dynamic == fmt.arguments()["dynamic"]
    assert len({fmt.name for fmt in formats(engine)}) == len(formats(engine))


BY_TOKEN = ActivationFormat(8).arguments()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"type": "float"}, "num_bits 8, type 'float', .*strategy 'token'"),
        ({"type": "float", "strategy": "tensor"}, "strategy 'tensor', dynamic True"),
        ({"type": "float", "num_bits": 4, "strategy": "tensor", "dynamic": False}, "num_bits 4, type 'float'"),
        ({"strategy": "tensor"}, "strategy 'tensor'"),
        ({"strategy": "tensor", "dynamic": False}, "dynamic False"),
        ({"strategy": "token", "dynamic": False}, "strategy 'token', dynamic False"),
        ({"dynamic": "local"}, "dynamic 'local'"),
        ({"strategy": "group"}, "strategy 'group'"),
        ({"strategy": "group", "group_size": -1}, "group_size -1"),
        ({"group_size": 64}, "strategy 'token', group_size 64"),
        ({"strategy": "attn_head"}, "strategy 'attn_head'"),
        ({"strategy": None}, "num_bits 8, type 'int', symmetric True, dynamic True"),
        ({"symmetric": False}, "symmetric False"),
        ({"num_bits": 9}, "num_bits 9, type 'int'"),
        ({"block_structure": [1, 128]}, r"block_structure \[1, 128\]"),
        ({"scale_dtype": "torch.float8_e4m3fn"}, "scale_dtype 'torch.float8_e4m3fn'"),
    ],
)
def test_what_no_format_says_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"described by .*{said}"):
        described_format({**BY_TOKEN, **change})


def test_what_the_largest_magnitude_becomes() -> None:
    assert [ActivationFormat(bits).top for bits in (8, 4)] == [127, 7]
    assert [ActivationFormat(bits, full_range=True).top for bits in (8, 4)] == [127.5, 7.5]
    assert {name for name in engine_names() if engine_profile(name).full_range} == {"transformers"}
    assert not ActivationFormat(8, CHANNEL).dynamic
