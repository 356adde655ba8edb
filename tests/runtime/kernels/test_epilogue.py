"""The epilogue's order is the one written down, and its tensors are those that it names."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from natprec.errors import InputError
from natprec.runtime.kernels import Epilogue
from natprec.runtime.kernels.epilogue import ACTIVATIONS, round_to_codes
from scripts.epilogue_order import Case, both_orders, cases
from tests.arrange import tokens
from tests.conftest import tiny_model


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


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    activation=st.sampled_from(list(ACTIVATIONS)),
    gated=st.booleans(),
    added=st.booleans(),
    step=st.floats(1e-3, 1.0),
    first=st.floats(1e-3, 1.0),
)
def test_no_order_is_nearer_than_rounding_once(
    seed: int, activation: str, gated: bool, added: bool, step: float, first: float
) -> None:
    """T11, on the epilogue that kernels are held to; strictly nearer where codes differ, but for ties."""
    value, multiplier, residual = (4 * drawn(40, seed=3 * seed + i) for i in range(3))
    rest = {"multiplier": multiplier if gated else None, "residual": residual if added else None}
    epilogue = Epilogue(activation, gated, added, step)
    floats = replace(epilogue, output_scale=None)
    exact = floats.apply(value, **rest)
    once = epilogue.apply(value, **rest)
    for before in (round_to_codes(value, first).double() * first, value.half().double(), value * 1.01):
        twice = epilogue.apply(before, **rest)
        errors = [(codes.double() * step - exact).abs() for codes in (once, twice)]
        assert bool((errors[0] <= errors[1] + 1e-12).all())
        tie = ((exact / step - 0.5) - (exact / step - 0.5).round()).abs() < 1e-9
        assert bool((errors[0] < errors[1])[(once != twice) & ~tie].all())


def test_the_orders_of_one_result() -> None:
    """By hand: 0.3 on a grid of 1 is 0, plus 0.3 again 0; together 0.6 is 1."""
    value = torch.tensor([0.3, 127.0, 0.0])
    added = torch.tensor([0.3, 0.0, 0.0])
    found = both_orders(Case("", value, Epilogue(residual=True), residual=added))
    size = 0.6**2 + 127.0**2
    assert found.once == pytest.approx(0.4**2 / size, rel=1e-6)
    assert found.twice == pytest.approx(0.6**2 / size, rel=1e-6)
    assert found.unstored == pytest.approx(0.3**2 / size, rel=1e-6)
    assert (found.differ, found.nearer) == (pytest.approx(1 / 3), 0)
    # As T11 was first written, rounding first would always lose. Where the residual has the larger step it gains.
    coarse = both_orders(Case("", value / 127, Epilogue(residual=True), residual=torch.tensor([0.2, 100.0, 0.6])))
    assert coarse.unstored < coarse.once <= coarse.twice


@torch.no_grad()
def test_the_layers_that_are_compared_are_those_of_the_model() -> None:
    """Each result is what the model goes on with: down_proj's input, the stream after attention, after the MLP."""
    model, ids = tiny_model(), tokens(2, 16).ids
    block = model.model.layers[1]
    seen = {}
    block.mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.__setitem__("gated", args[0]))
    block.post_attention_layernorm.register_forward_pre_hook(lambda module, args: seen.__setitem__("middle", args[0]))
    block.register_forward_hook(lambda module, args, output: seen.__setitem__("stream", output))
    silu, gated, attended, out = cases(model, ids, [1])[1]
    results = [case.epilogue.apply(case.accumulator, None, case.multiplier, case.residual)
               for case in (gated, attended, out)]  # fmt: skip
    for found, name in zip(results, ("gated", "middle", "stream"), strict=True):
        assert torch.allclose(found, seen[name].flatten(0, 1), atol=1e-6)
    assert silu.accumulator is gated.accumulator
