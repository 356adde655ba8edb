"""The IR with floating-point codes: their boundaries, and what weights and gradients say of them (T3, T4, T7-T9)."""

from __future__ import annotations

import pytest
import torch

from natprec.formats import Format
from natprec.formats.presets import FLOAT_ACTIVATIONS, FLOAT_WEIGHTS
from natprec.inspection.information import Codebook
from natprec.inspection.information.codebook import half_histogram
from natprec.inspection.ir import Materialization
from natprec.inspection.ir.boundaries import in_materialization, static_map, static_step
from natprec.inspection.weights import interval_bits, rounding_cost, weight_codes
from natprec.quantizers import quantize
from natprec.quantizers.ranks import rank_range

FP8, NVFP4 = FLOAT_ACTIVATIONS["fp8-token"], FLOAT_ACTIVATIONS["nvfp4"]
ALL = list(FLOAT_WEIGHTS.values())


def weight() -> torch.Tensor:
    return torch.randn(64, 160, generator=torch.Generator().manual_seed(0)).bfloat16().float()


def book(values: torch.Tensor) -> Codebook:
    return Codebook.of_half(half_histogram(values, torch.bfloat16), torch.bfloat16)


@pytest.mark.parametrize("fmt", [FP8, NVFP4], ids=lambda fmt: fmt.name)
def test_a_materialization_is_a_format(fmt: Format) -> None:
    held = Materialization.of_codes(fmt)
    assert (held.bits, held.name) == (fmt.bits, fmt.name)
    assert Materialization.of_codes(4).name == "int4-tensor"
    assert Materialization(torch.bfloat16).bits == 16


@pytest.mark.parametrize("fmt", [FP8, NVFP4], ids=lambda fmt: fmt.name)
def test_codes_are_ranks_and_rounding_twice_is_free(fmt: Format) -> None:
    """What lies on a float grid keeps all its codes there, and E2M1's values lose nothing in E4M3."""
    held, values = Materialization.of_codes(fmt), weight().flatten().unique()
    largest = float(values.abs().max())
    codes = static_map(held, largest)(values)
    assert torch.equal(codes, codes.round())
    low, high = rank_range(fmt.codebook)
    assert low <= codes.min()
    assert codes.max() <= high
    assert codes.min() == low or codes.max() == high
    source = in_materialization(book(values), held, largest)
    assert source.size <= 2**fmt.bits
    step = static_step(held, largest)
    again = static_map(held, largest)(source.values * step)
    assert len(again.unique()) == source.size
    wider = static_map(Materialization.of_codes(FP8), largest)(source.values * step)
    assert len(wider.unique()) == source.size
    integers = static_map(Materialization.of_codes(fmt.bits), largest)(source.values * step)
    assert len(integers.unique()) < source.size


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_a_weight_on_the_grid_loses_nothing(fmt: Format) -> None:
    """T9: rounding what a float checkpoint holds to its own format is injective; rounding other weights is not."""
    on_grid = quantize(weight(), fmt, torch.bfloat16).dequantize()
    again = rounding_cost("w", on_grid, weight_codes(on_grid, torch.bfloat16), fmt, torch.bfloat16, 300)
    other = rounding_cost("w", weight(), weight_codes(weight(), torch.bfloat16), fmt, torch.bfloat16, 300)
    assert again.free
    assert again.colliding_codes == 0
    assert not other.free
    assert other.erased_bits > 0
    assert other.erased_bits >= other.erased_bits_bound * 0.99
    assert other.landauer_joules > again.landauer_joules


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_what_a_code_erases_is_counted(fmt: Format) -> None:
    """`interval_bits` against a count of all values of the distribution that round to each weight's code."""
    values = weight()[:4]
    own, made = book(values), quantize(values, fmt, torch.bfloat16)
    scale, wanted, total = made.spread(made.scale).flatten(), fmt.codebook.decode(made.codes).flatten(), 0.0
    for step, value in zip(scale, wanted, strict=True):
        counts = own.counts[fmt.codebook.nearest_(own.values / step) == value].double()
        shares = counts / counts.sum()
        total -= float((shares * shares.log2()).sum())
    assert interval_bits(own, made) == pytest.approx(total, rel=0.01)
