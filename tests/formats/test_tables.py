"""The 4-bit formats of bitsandbytes: their bytes, their names, double quantization."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from natprec.errors import InputError
from natprec.formats import engine_profile, parse_format
from natprec.formats.tables import BLOCKS, DYNAMIC, FOUR_BIT, FP4, NF4
from natprec.quantizers import quantize
from natprec.quantizers.double_scales import codes_of, double_scales, stored_scales


def test_names_and_bits() -> None:
    assert {parse_format(fmt.name) for fmt in FOUR_BIT} == set(FOUR_BIT)
    assert all(fmt.bits == 4 and fmt.divides(fmt.group_size or 0) for fmt in FOUR_BIT)
    assert parse_format("nf4-g64").stored_bits((256, 256)) == 4.5
    assert parse_format("nf4-g64-dq").stored_bits((256, 256)) == pytest.approx(4 + 8 / 64 + 32 / 64 / 256, abs=1e-3)
    assert parse_format("fp4-g128").stored_bits((256, 256)) == 4.25
    assert (len(NF4.values), len(FP4.values), len(DYNAMIC.values)) == (16, 15, 256)


def test_a_block_size_without_a_kernel_is_refused() -> None:
    with pytest.raises(InputError, match="block size 32 of nf4: bitsandbytes has 64, 128"):
        parse_format("nf4-g32")
    with pytest.raises(InputError, match="block size 96 of fp4"):
        parse_format("fp4-g96-dq")
    profile = engine_profile("bitsandbytes")
    assert not profile.fits("linear", parse_format("nf4-g128"), 64, 192)
    assert profile.measured((64,)) == tuple(fmt for fmt in profile.measured(BLOCKS) if fmt.group_size == 64)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), groups=st.integers(1, 20), seed=st.integers(0, 99), zeros=st.booleans())
def test_stored_scales_are_stored_again_as_the_same_bytes(rows: int, groups: int, seed: int, zeros: bool) -> None:
    fmt = parse_format("nf4-g64-dq")
    scale = torch.rand(rows, groups, generator=torch.Generator().manual_seed(seed)) + 0.1
    if zeros:
        scale[0] = 0
    stored, outer = double_scales(scale, fmt)
    assert outer.shape == (1 + -(-rows * groups // 256),)
    assert (stored > 0).all()
    assert torch.equal(stored_scales(codes_of(stored, outer, fmt), outer, fmt), stored)
    spread = float((scale - scale.mean()).abs().max())
    assert float((stored - scale).abs().max()) <= 0.02 * spread + 1e-6


@pytest.mark.parametrize("name", ["nf4-g64", "fp4-g64", "nf4-g64-dq", "fp4-g128-dq"])
def test_codes_are_the_nearest_under_the_stored_scale(name: str) -> None:
    fmt = parse_format(name)
    weight = torch.randn(24, 256, generator=torch.Generator().manual_seed(0))
    value = quantize(weight, fmt, torch.bfloat16)
    table = torch.tensor(fmt.codebook.values)  # type: ignore[attr-defined]
    scale = value.spread(value.scale)
    best = (table * scale.unsqueeze(-1) - weight.unsqueeze(-1)).abs().amin(-1)
    assert torch.allclose((value.dequantize() - weight).abs(), best, atol=1e-6)
    if not fmt.doubly_quantized:
        assert torch.equal(value.scale, weight.view(24, -1, fmt.group_size or 1).abs().amax(-1))
    smaller = value.scaled(torch.full_like(value.scale, 0.5), torch.bfloat16)
    assert torch.allclose(smaller.dequantize(), value.dequantize() / 2, atol=0.02)
