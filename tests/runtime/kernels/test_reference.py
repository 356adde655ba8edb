"""The specification against arithmetic done another way: exact fractions, and torch on dequantized weights."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from natprec.errors import InputError
from natprec.formats import CHANNEL, integer
from natprec.quantizers import quantize
from natprec.runtime.kernels import Epilogue
from natprec.runtime.kernels.reference import dequantize, halve_tokens, linear, quantize_tokens


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [16, CHANNEL])
@pytest.mark.parametrize("bits", range(1, 9))
def test_it_is_the_exact_sum(bits: int, group: int, symmetric: bool) -> None:
    weight = quantize(drawn(3, 32) + 0.2, integer(bits, group, symmetric), torch.float16)
    x = drawn(2, 32, seed=1)
    for row, token in ((0, 0), (2, 1)):
        total = Fraction(0)
        for column in range(32):
            at = column // (32 // weight.scale.shape[1])
            zero = 0 if weight.zero_point is None else int(weight.zero_point[row, at])
            code = int(weight.codes[row, column]) - zero
            total += Fraction(float(x[token, column])) * code * Fraction(float(weight.scale[row, at]))
        assert float(linear(x, weight)[token, row]) == pytest.approx(float(total), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_weight_is_the_quantizers(bits: int) -> None:
    weight = quantize(drawn(8, 64), integer(bits, 32, False), torch.bfloat16)
    assert torch.equal(dequantize(weight).float(), weight.dequantize())


def test_codes_of_activations_stand_for_code_times_scale() -> None:
    weight = quantize(drawn(8, 64), integer(4, 32), torch.bfloat16)
    codes, scale = quantize_tokens(drawn(5, 64, seed=1))
    values = linear(codes.double() * scale[:, None].double(), weight)
    assert (linear(codes, weight, x_scale=scale) - values).abs().max() < 1e-12
    one = torch.tensor([0.5])  # one scale for all tokens
    assert torch.equal(linear(codes, weight, x_scale=one), linear(codes.double() * 0.5, weight))


def test_the_epilogue_comes_last() -> None:
    weight = quantize(drawn(8, 64), integer(4, 32), torch.bfloat16)
    x, bias, up = drawn(5, 64, seed=1), drawn(8, seed=2), drawn(5, 8, seed=3)
    epilogue = Epilogue("silu", gated=True, output_scale=0.05)
    codes = linear(x, weight, bias=bias, epilogue=epilogue, multiplier=up)
    assert torch.equal(codes, epilogue.apply(linear(x, weight), bias, up))


def test_tokens_fill_the_range_of_their_codes() -> None:
    x = drawn(6, 40) * torch.logspace(-6, 6, 6)[:, None]
    x[2] = 0
    codes, scale = quantize_tokens(x)
    assert codes.abs().amax(1).tolist() == [127, 127, 0, 127, 127, 127]
    assert ((codes * scale[:, None] - x).abs() <= 0.501 * scale[:, None]).all()


def test_codes_have_a_scale_and_floats_may() -> None:
    weight = quantize(drawn(4, 32), integer(4, 32), torch.bfloat16)
    with pytest.raises(InputError, match="without a scale"):
        linear(torch.zeros(1, 32, dtype=torch.int8), weight)
    x, scale = drawn(3, 32, seed=1), torch.tensor([0.5, 3.0, 1e6])
    assert torch.equal(linear(x, weight, x_scale=scale), linear(x, weight) * scale.double()[:, None])


def test_halves_are_in_units_of_each_tokens_largest_value() -> None:
    x = drawn(6, 40) * torch.logspace(-6, 6, 6)[:, None]
    x[2] = 0
    halves, scale = halve_tokens(x)
    assert halves.abs().amax(1).tolist() == [1, 1, 0, 1, 1, 1]
    assert scale[2] == 1
    assert ((halves * scale[:, None] - x).abs() <= 2**-11 * x.abs() + 2**-25 * scale[:, None]).all()
