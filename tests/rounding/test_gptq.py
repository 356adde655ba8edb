"""GPTQ: less output error than rounding to nearest, and the same codes where inputs are unrelated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from natprec.errors import ModelError
from natprec.formats import NumberFormat
from natprec.formats.number_format import CHANNEL
from natprec.quantizers import QuantizedTensor, quantize
from natprec.rounding.gptq import gptq

FORMATS = [
    NumberFormat(bits, group, symmetric)
    for bits in (2, 3, 4, 8)
    for group in (32, CHANNEL)
    for symmetric in (True, False)
]


def weight(rows: int = 48, columns: int = 160) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def inputs(columns: int = 160, count: int = 600) -> Tensor:
    """Correlated, of unequal size: a few directions carry most."""
    draw = torch.Generator().manual_seed(1)
    mixed = torch.randn(count, 24, generator=draw) @ torch.randn(24, columns, generator=draw)
    return mixed * torch.linspace(0.2, 3, columns) + 0.3 * torch.randn(count, columns, generator=draw)


def output_error(value: QuantizedTensor, original: Tensor, seen: Tensor) -> float:
    return float(((value.dequantize() - original) @ seen.T).square().sum())


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_less_output_error_than_nearest(fmt: NumberFormat) -> None:
    original, seen = weight(), inputs()
    before = original.clone()
    rounded = gptq(original, seen.T @ seen, fmt, torch.bfloat16)
    nearest = quantize(original, fmt, torch.bfloat16)
    assert torch.equal(original, before)
    assert output_error(rounded, original, seen) < 0.7 * output_error(nearest, original, seen)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e6])
def test_unrelated_inputs_give_the_nearest_codes(fmt: NumberFormat, factor: float) -> None:
    rounded = gptq(weight(), factor * torch.eye(160), fmt, torch.bfloat16)
    nearest = quantize(weight(), fmt, torch.bfloat16)
    assert torch.equal(rounded.codes, nearest.codes)
    assert torch.equal(rounded.scale, nearest.scale)
    if nearest.zero_point is not None:
        assert rounded.zero_point is not None
        assert torch.equal(rounded.zero_point, nearest.zero_point)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_result_is_on_its_grid(fmt: NumberFormat) -> None:
    seen = inputs()
    rounded = gptq(weight(), seen.T @ seen, fmt, torch.float16)
    low, high = fmt.code_range
    assert rounded.codes.shape == (48, 160)
    assert rounded.codes.dtype == torch.int8
    assert low <= int(rounded.codes.min()) <= int(rounded.codes.max()) <= high
    assert rounded.scale.shape == (48, fmt.groups(160))
    assert torch.equal(rounded.scale.half().float(), rounded.scale)
    assert (rounded.zero_point is None) == fmt.symmetric


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_inputs_that_are_always_zero(fmt: NumberFormat) -> None:
    seen = inputs()
    seen[:, [0, 5, 31, 159]] = 0
    rounded = gptq(weight(), seen.T @ seen, fmt, torch.bfloat16)
    assert torch.isfinite(rounded.dequantize()).all()
    assert output_error(rounded, weight(), seen) < output_error(quantize(weight(), fmt, torch.bfloat16), weight(), seen)


def test_no_input_at_all_is_rounding_to_nearest() -> None:
    fmt = NumberFormat(4, 32)
    rounded = gptq(weight(), torch.zeros(160, 160), fmt, torch.bfloat16)
    assert torch.equal(rounded.codes, quantize(weight(), fmt, torch.bfloat16).codes)


def test_fewer_tokens_than_columns() -> None:
    seen = inputs(count=5)
    rounded = gptq(weight(), seen.T @ seen, NumberFormat(4, 32), torch.bfloat16)
    nearest = quantize(weight(), NumberFormat(4, 32), torch.bfloat16)
    assert output_error(rounded, weight(), seen) < output_error(nearest, weight(), seen)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (3, 2)])
def test_hessian_that_is_not_finite(bad: float, place: tuple[int, int]) -> None:
    seen = inputs()
    hessian = seen.T @ seen
    hessian[place] = hessian[place[::-1]] = bad
    with pytest.raises(ModelError, match=r"NaN or Inf.*--rounding rtn"):
        gptq(weight(), hessian, NumberFormat(4, 32), torch.bfloat16)
