"""The epilogue's order is the one written down, and its tensors are those that it names."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from natprec.errors import InputError
from natprec.kernels import Epilogue
from natprec.kernels.epilogue import ACTIVATIONS


def by_hand(name: str, value: float) -> float:
    if name == "relu":
        return max(value, 0.0)
    if name == "silu":
        return value / (1 + math.exp(-value))
    if name == "gelu":
        return value * 0.5 * (1 + math.erf(value / math.sqrt(2)))
    if name == "gelu_tanh":
        return 0.5 * value * (1 + math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))
    return value


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_then_activation_then_product_then_residual_then_one_rounding(activation: str) -> None:
    value, bias, multiplier, residual = drawn(6, 5), drawn(5, seed=1), drawn(6, 5, seed=2), drawn(6, 5, seed=3)
    epilogue = Epilogue(activation, gated=True, residual=True, output_scale=0.07)
    codes = epilogue.apply(value, bias, multiplier, residual)
    assert codes.dtype == torch.int8
    for i in range(6):
        for j in range(5):
            exact = by_hand(activation, float(value[i, j] + bias[j])) * float(multiplier[i, j]) + float(residual[i, j])
            assert int(codes[i, j]) == max(-128, min(127, round(exact / 0.07)))  # Python rounds half to even too


def test_halves_go_to_even_and_ends_are_clamped() -> None:
    value = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 500.0, -128.5, -129.0])
    assert Epilogue(output_scale=1.0).apply(value).tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -128, -128]


def test_without_an_output_scale_the_accumulators_dtype_stays() -> None:
    for dtype in (torch.float32, torch.float64):
        assert Epilogue("silu").apply(drawn(2, 2).to(dtype), bias=drawn(2).half()).dtype == dtype


def test_its_tensors_are_those_it_names() -> None:
    value = drawn(2, 2)
    with pytest.raises(InputError, match="needs a multiplier"):
        Epilogue(gated=True).apply(value)
    with pytest.raises(InputError, match="has no use for a residual"):
        Epilogue("relu").apply(value, residual=value)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'silu'"):
        Epilogue("silo")
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="output scale"):
            Epilogue(output_scale=scale)


def test_equal_epilogues_are_one_key() -> None:
    assert {Epilogue("silu", gated=True): 1}[Epilogue("silu", True)] == 1
    assert Epilogue().name == "none"
    assert Epilogue(residual=True, output_scale=2.0).name == "residual+int8"
