"""The integer grid: half a step at most, no worse when wider, and what compressed-tensors reads."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationScheme
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from natprec.formats import CHANNEL, Format, integer
from natprec.quantizers import QuantizedTensor, choose_grid, quantize, squared_errors
from natprec.quantizers.integer import grid_errors
from natprec.quantizers.scale_storage import stored_grid

GROUPS = (32, 64, CHANNEL)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def weights(rows: int, columns: int, seed: int = 0, size: float = 1.0, shift: float = 0.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=draw) + shift) * size


def step(value: QuantizedTensor) -> Tensor:
    """|scale| of each weight."""
    _rows, columns = value.codes.shape
    return value.scale.abs().repeat_interleave(columns // value.scale.shape[1], 1)


@settings(max_examples=100, deadline=None)
@given(
    bits=st.integers(1, 8),
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    dim=st.sampled_from([0, 1]),
    seed=st.integers(0, 99),
)
def test_pack_then_unpack_is_identity(bits: int, rows: int, columns: int, dim: Any, seed: int) -> None:
    assume(dim == 1 or bits != 4 or rows > 8)  # compressed-tensors 0.20 cannot unpack a single word along dim 0
    low, high = integer(bits, CHANNEL).code_range
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(low, high + 1, (rows, columns), generator=draw, dtype=torch.int8)
    packed = pack_to_int32(codes, bits, packed_dim=dim)
    assert packed.numel() == (-(-columns * bits // 32) * rows if dim else -(-rows * bits // 32) * columns)
    assert torch.equal(unpack_from_int32(packed, bits, codes.shape, packed_dim=dim), codes)


@settings(max_examples=100, deadline=None)
@given(
    bits=st.integers(3, 8),
    group=st.sampled_from(GROUPS),
    symmetric=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    exponent=st.integers(-12, 10),
    shift=st.floats(-4, 4),
    seed=st.integers(0, 999),
)
def test_error_is_at_most_half_a_step(
    bits: int, group: int, symmetric: bool, dtype: torch.dtype, exponent: int, shift: float, seed: int
) -> None:
    weight = weights(6, 64, seed, 2.0**exponent, shift)
    value = quantize(weight, integer(bits, group, symmetric), dtype)
    error = (value.dequantize() - weight).abs()
    info = torch.finfo(dtype)
    # rounding the scale moves the grid's far end, 2**bits steps away
    slack = 2**bits * torch.clamp(step(value) * info.eps / 2, min=info.smallest_normal * info.eps / 2)
    assert (error <= step(value) / 2 + slack + 1e-6 * step(value)).all()


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(1, 8),
    group=st.sampled_from(GROUPS),
    symmetric=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
    shift=st.floats(-4, 4),
)
def test_codes_and_scales_are_storable(
    bits: int, group: int, symmetric: bool, dtype: torch.dtype, seed: int, shift: float
) -> None:
    fmt = integer(bits, group, symmetric)
    value = quantize(weights(5, 64, seed, shift=shift), fmt, dtype)
    low, high = fmt.code_range
    assert value.codes.dtype == torch.int8
    assert low <= int(value.codes.min()) <= int(value.codes.max()) <= high
    assert value.scale.shape == (5, fmt.groups(64))
    assert torch.equal(value.scale.to(dtype).float(), value.scale)
    assert (value.scale != 0).all()
    if not symmetric:
        assert value.zero_point is not None
        assert low <= int(value.zero_point.min()) <= int(value.zero_point.max()) <= high


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(3, 8), group=st.sampled_from(GROUPS), seed=st.integers(0, 999), shift=st.floats(-2, 2))
def test_symmetric_quantization_is_idempotent(bits: int, group: int, seed: int, shift: float) -> None:
    fmt = integer(bits, group)
    once = quantize(weights(6, 64, seed, shift=shift), fmt, torch.bfloat16).dequantize()
    assert torch.equal(quantize(once, fmt, torch.bfloat16).dequantize(), once)


@pytest.mark.parametrize(
    ("bits", "symmetric"), [(1, True), (1, False), (2, True), (2, False), *itertools.product(range(3, 9), [False])]
)
def test_quantizing_again_costs_less_than_the_first_time(bits: int, symmetric: bool) -> None:
    fmt = integer(bits, 32, symmetric)
    weight = weights(64, 256)
    once = quantize(weight, fmt, torch.bfloat16).dequantize()
    twice = quantize(once, fmt, torch.bfloat16).dequantize()
    assert (twice - once).square().sum() < 0.3 * (once - weight).square().sum()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_error_never_rises_with_width(symmetric: bool, group: int, shift: float) -> None:
    formats = [integer(bits, group, symmetric) for bits in range(1, 9)]
    errors = squared_errors(weights(64, 256, shift=shift), formats, torch.bfloat16).mean(1)[:-1].tolist()
    assert all(wide < narrow for narrow, wide in itertools.pairwise(errors))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_constant_groups(bits: int, symmetric: bool) -> None:
    fmt = integer(bits, 32, symmetric)
    constants = torch.tensor([0.0, 1.5, -1.5, 2.0**-10, -768.0])
    value = quantize(constants[:, None].expand(-1, 64), fmt, torch.bfloat16).dequantize()
    assert torch.isfinite(value).all()
    assert (value[0] == 0).all()
    if symmetric:  # a power of two times the value is a bfloat16
        assert torch.equal(value, constants[:, None].expand(-1, 64))
    assert ((value - constants[:, None]).abs() <= 2.0**-8 * constants[:, None].abs()).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_tiny_groups_stay_finite(bits: int, symmetric: bool) -> None:
    """Scales that a float16 cannot hold."""
    weight = weights(4, 64, size=1e-9)
    value = quantize(weight, integer(bits, 32, symmetric), torch.float16).dequantize()
    assert torch.isfinite(value).all()
    assert (value.abs() <= 1e-6).all()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_dequantize_is_what_compressed_tensors_reconstructs(bits: int, symmetric: bool, group: int) -> None:
    value = quantize(weights(37, 64, shift=0.3), integer(bits, group, symmetric), torch.bfloat16)
    strategy = {"strategy": "channel"} if group == CHANNEL else {"strategy": "group", "group_size": group}
    scheme = QuantizationScheme.model_validate(
        {"targets": ["a"], "weights": {"num_bits": bits, "symmetric": symmetric, **strategy}}
    )
    stored = {
        "weight_packed": pack_to_int32(value.codes, bits),
        "weight_scale": value.scale,
        "weight_shape": torch.tensor(value.codes.shape),
    }
    if value.zero_point is not None:
        stored["weight_zero_point"] = pack_to_int32(value.zero_point, bits, packed_dim=0)
    theirs = BaseCompressor.get_value_from_registry("pack-quantized").decompress(stored, scheme)["weight"]
    assert theirs.dtype == torch.float32
    assert torch.equal(theirs, value.dequantize())


@pytest.mark.parametrize("bits", range(1, 9))
def test_longer_side_gets_the_extra_code(bits: int) -> None:
    """The extra code is negative: a negative scale turns it to the positive side."""
    row = torch.linspace(-0.5, 1.0, 32)
    value = quantize(torch.stack([row, -row]), integer(bits, 32), torch.bfloat16)
    assert value.scale[0] < 0 < value.scale[1]
    assert torch.equal(value.codes[0], value.codes[1])
    if bits > 2:
        assert value.codes[0, -1] == integer(bits, 32).code_range[0]
        assert value.dequantize()[0, -1] == 1.0


@pytest.mark.parametrize("fmt", [integer(b, g, s) for b in (2, 4) for g in GROUPS for s in (True, False)])
def test_squared_errors_are_those_of_quantize(fmt: Format) -> None:
    """Also where the weight is handled in several chunks."""
    weight = weights(1200, 256)
    errors = squared_errors(weight, [fmt], torch.bfloat16)
    assert torch.equal(
        errors[0].view_as(weight), (quantize(weight, fmt, torch.bfloat16).dequantize() - weight).square()
    )
    assert torch.equal(errors[1].view_as(weight), (weight.bfloat16().float() - weight).square())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_both_ends_of_an_asymmetric_grid_are_moved_by_themselves(bits: int) -> None:
    """Where one side of a group has an outlier that counts little, only that side is clipped."""
    draw = torch.Generator().manual_seed(bits)
    grouped = torch.randn(64, 2, 32, generator=draw)
    grouped[..., 0] = 6.0
    power = torch.ones(2, 32)
    power[:, 0] = 0.01
    fmt = integer(bits, 32, False)
    scale, offset = choose_grid(grouped, fmt, torch.float32, power)
    assert offset is not None
    lowest, highest = fmt.code_range
    low, high = lowest * scale + offset, highest * scale + offset
    kept = (low / grouped.amin(-1)).mean()
    assert (high / 6.0).mean() < kept - 0.1

    def error(scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        off = grid_errors(grouped, [fmt], scale.unsqueeze(0), offset.unsqueeze(0))
        return (off.square() * power).sum()

    for fraction in (1.0, 0.84, 0.7):
        span, least = grouped.amax(-1) - grouped.amin(-1), grouped.amin(-1)
        one = stored_grid(fraction * span / (2**bits - 1), fraction * least, [fmt], torch.float32)
        assert one[1] is not None
        assert error(scale, offset) < error(one[0], one[1])


@pytest.mark.parametrize("bits", [2, 4])
def test_pairs_of_ends_give_the_same_grid_one_by_one_and_together(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a launch handles many of them."""
    draw = torch.Generator().manual_seed(bits)
    grouped, power = torch.randn(48, 2, 32, generator=draw), torch.rand(2, 32, generator=draw)
    grouped[3] = 0.0
    fmt = integer(bits, 32, False)
    expected = choose_grid(grouped, fmt, torch.bfloat16, power)
    for together in (5, 100):
        values = together * grouped.numel()
        monkeypatch.setattr("natprec.quantizers.grid_search.portion", lambda cached, device, values=values: values)
        found = choose_grid(grouped, fmt, torch.bfloat16, power)
        for one, other in zip(found, expected, strict=True):
            assert one is not None
            assert other is not None
            assert torch.equal(one, other)
