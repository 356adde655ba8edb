"""Every kernel of the CPU, at every width, group, kind and shape that it takes, against the float64 specification."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from natprec import native
from natprec.errors import ModelError
from natprec.formats import CHANNEL, integer
from natprec.quantizers import QuantizedTensor, quantize
from natprec.runtime.kernels import int8, reference
from natprec.runtime.kernels.cpu import Dequantize, Int4Pack, Int8Inputs, Int8Pack, Planes, fast_dtype, step_of
from natprec.runtime.kernels.dispatch import choose
from natprec.runtime.kernels.kernel import Kernel, Layer
from natprec.runtime.kernels.linear import HalfWeight, QuantizedWeight

SHAPES = ((7, 384), (65, 256), (33, 70), (100, 33))
"""Rows and columns; the last two only fit channels, and no block of any layout."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(bits: int) -> list[QuantizedTensor]:
    """One of each group size and shape that fit, both kinds; 48 is a size that no kernel but the last takes."""
    return [
        quantize(drawn(*shape) + 0.1, integer(bits, group, symmetric), torch.bfloat16)
        for group, symmetric, shape in itertools.product((32, 64, 128, 48, CHANNEL), (True, False), SHAPES)
        if group == CHANNEL or shape[1] % group == 0
    ]


def stored(weight: QuantizedTensor, kernel: Kernel, int8_inputs: bool = False) -> QuantizedWeight:
    layer = Layer(weight.format, *weight.codes.shape, int8_inputs=int8_inputs)
    return QuantizedWeight(weight, layer, kernel, torch.bfloat16)


def inputs(tokens: int, columns: int) -> Tensor:
    """With one column a hundred times as large as the others, as language models have them."""
    x = drawn(tokens, columns, seed=1)
    x[:, 5] *= 100
    return x


def bound(kernel: Kernel, x: Tensor, weight: QuantizedTensor) -> Tensor:
    """What the kernel's own arithmetic may be wrong by, from its definition: (tokens, rows).

    planes.c rounds x to 2^-16 of the largest in its step; torch's operations round x and y to bfloat16 (2^-9 each), and
    take zero points off afterwards. Where dense products are in bfloat16, x, the
    weight and y have at most 2^-8 each.
    """
    dense = reference.dequantize(weight).abs()
    if len(x) > kernel.few and fast_dtype() == torch.bfloat16:
        return 3.1 * 2**-8 * x.double().abs() @ dense.T
    if isinstance(kernel, Planes):
        step = step_of(x.shape[1], weight.scale.shape[1])
        assert step is not None
        filled = torch.nn.functional.pad(x, (0, -x.shape[1] % step)).double()
        largest = filled.view(len(x), -1, step).abs().amax(2).repeat_interleave(step, 1)[:, : x.shape[1]]
        return (1.05 * largest / 65278 + 1e-6 * x.double().abs()) @ dense.T
    if isinstance(kernel, Dequantize):
        return 1e-6 * x.double().abs() @ dense.T
    codes = reference.dequantize(replace(weight, zero_point=None)).abs()
    return 2.5 * 2**-9 * x.double().abs() @ torch.maximum(dense, codes).T


@pytest.fixture(params=native.VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """planes.c in each way that this CPU runs."""
    name = str(request.param)
    if name not in native.runnable():
        pytest.skip(f"the CPU has no instructions for {name}")
    monkeypatch.setattr(native, "library", lambda: native.variant(name))
    return name


@pytest.mark.parametrize("bits", range(2, 9))
def test_planes_are_the_specification(bits: int, variant: str) -> None:
    check(bits, Planes())


@pytest.mark.parametrize("kernel", [Int8Pack(), Int4Pack(), Dequantize()], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("bits", range(2, 9))
def test_others_are_the_specification(bits: int, kernel: Kernel) -> None:
    check(bits, kernel)


def check(bits: int, kernel: Kernel) -> None:
    ran = 0
    for weight in weights(bits):
        rows, columns = weight.codes.shape
        if kernel.refuses(Layer(weight.format, rows, columns)):
            continue
        module = stored(weight, kernel)
        dense = reference.dequantize(weight)
        some = torch.tensor([rows - 1, 0, 3, 0])
        assert (module.values(slice(0, rows)) - dense).abs().max() < 1e-5
        assert (module.values(slice(2, 5)) - dense[2:5]).abs().max() < 1e-5
        assert (module.values(some) - dense[some]).abs().max() < 1e-5
        for tokens in (1, 3, 40):  # by the operation, and dense
            x = inputs(tokens, columns)
            error = (module(x) - reference.linear(x, weight)).abs()
            assert (error <= bound(kernel, x, weight)).all(), (weight.format.name, rows, columns, tokens)
        ran += 1
    assert ran or kernel.name == "int8pack" or native.library()[0] is None


def test_variants_agree_on_scales_of_every_dtype_and_on_16_bit_weights(variant: str) -> None:
    if native.library()[0] is None:
        pytest.skip(native.library()[1])
    for dtype, (rows, columns) in itertools.product(native.KINDS, ((9, 384), (5, 200), (3, 8), (6, 33))):
        x, weight = inputs(3, columns), drawn(rows, columns)
        if dtype != torch.float32:
            half = native.half(x, weight.to(dtype)).double()
            assert (half - x.double() @ weight.to(dtype).double().T).abs().max() < 1e-5 * x.abs().sum(1).max()
        for group in (CHANNEL, 32, 128):
            if group != CHANNEL and columns % group:
                continue
            made = quantize(weight, integer(5, group, False), torch.float16)
            made = replace(made, scale=made.scale.to(dtype).float())
            found = QuantizedWeight(made, Layer(made.format, rows, columns), Planes(), dtype)(x)
            assert ((found - reference.linear(x, made)).abs() <= bound(Planes(), x, made)).all()


@pytest.mark.parametrize("kernel", [Planes(), Int4Pack(), Int8Pack()], ids=lambda kernel: kernel.name)
def test_the_bound_catches_one_wrong_code_and_one_wrong_scale(kernel: Kernel) -> None:
    weight = quantize(drawn(64, 256) + 0.1, integer(6, CHANNEL, False), torch.bfloat16)
    if kernel.refuses(Layer(weight.format, 64, 256)):
        pytest.skip(kernel.refuses(Layer(weight.format, 64, 256)))
    x = inputs(1, 256)
    code = weight.codes.clone()
    code[3, 5] ^= 8
    scale = weight.scale.clone()
    scale[3] *= 1.02
    zero = None if weight.zero_point is None else weight.zero_point + 1
    for wrong in (
        QuantizedTensor(weight.format, code, weight.scale, weight.zero_point),
        QuantizedTensor(weight.format, weight.codes, scale, weight.zero_point),
        QuantizedTensor(weight.format, weight.codes, weight.scale, zero),
    ):
        error = (stored(wrong, kernel)(x) - reference.linear(x, weight)).abs()
        assert (error > bound(kernel, x, weight)).any()


@pytest.mark.parametrize("kernel", [Planes(), Int4Pack(), Int8Pack(), Dequantize()], ids=lambda kernel: kernel.name)
def test_int8_inputs_are_rounded_before_kernels_that_take_floats(kernel: Kernel) -> None:
    weight = quantize(drawn(65, 256), integer(8, CHANNEL), torch.bfloat16)
    if kernel.refuses(Layer(weight.format, 65, 256)):
        pytest.skip(kernel.refuses(Layer(weight.format, 65, 256)))
    for tokens in (1, 40):
        x = inputs(tokens, 256)
        codes, scale = reference.quantize_tokens(x)
        expected = reference.linear(codes, weight, x_scale=scale)
        rounded = codes * scale.unsqueeze(1)
        error = (stored(weight, kernel, int8_inputs=True)(x) - expected).abs()
        assert (error <= bound(kernel, rounded, weight)).all()


def test_int8_products_are_used_only_where_they_are_exact() -> None:
    weight = quantize(drawn(65, 256), integer(8, CHANNEL), torch.bfloat16)
    layer = Layer(weight.format, 65, 256, int8_inputs=True)
    assert bool(Int8Inputs().refuses(layer)) == (not int8.products_are_exact())
    module = QuantizedWeight(weight, layer, Int8Inputs(), torch.bfloat16)
    x = inputs(5, 256)
    codes, scale = reference.quantize_tokens(x)
    expected = reference.linear(codes, weight, x_scale=scale)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        close = (module(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert bool(close) or not int8.products_are_exact()
    assert "onednn::qlinear_pointwise" in {event.key for event in profile.key_averages()}  # not the reference


def test_tokens_are_rounded_as_the_specification_does(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([inputs(5, 70), torch.zeros(1, 70), torch.arange(70.0).unsqueeze(0) + 57.5])  # halves, to even
    x[-1, -1] = 127
    codes, scale = reference.quantize_tokens(x)
    for _ in range(2):  # by planes.c, then by torch
        found, found_scale = int8.unsigned_tokens(x)
        assert found.dtype == torch.uint8
        assert torch.equal(found.int() - 128, codes.int())
        assert torch.equal(found_scale, scale)
        monkeypatch.setattr(native, "library", lambda: (None, "no compiler"))


def test_the_table_says_why() -> None:
    grouped = Layer(integer(5, 64), 64, 128)
    kernel, why = choose(grouped, kernels=(Int8Inputs(), Int8Pack(), Int4Pack()))
    assert kernel.name == "int4pack"
    assert why == "not int8-inputs: activations are floats; not int8pack: needs one scale per channel"
    with pytest.raises(ModelError, match=r"64 × 128 in int5-g64.*run the checkpoint on cpu"):
        choose(grouped, "tpu")
    assert choose(Layer(integer(5, 48), 64, 96))[0].name == "dequantize"


def test_operations_have_shapes_without_values_and_a_reference_of_their_own() -> None:
    weight = quantize(drawn(65, 256) + 0.1, integer(5, 64, False), torch.bfloat16)
    x = inputs(2, 256)
    expected = reference.linear(x, weight)
    for kernel in (Dequantize(), Int4Pack()):
        layer = Layer(weight.format, 65, 256)
        buffers = kernel.pack(weight, torch.bfloat16)
        on_meta = tuple(None if buffer is None else buffer.to("meta") for buffer in buffers)
        assert kernel.product(x.to("meta"), on_meta, layer).shape == (2, 65)
        name = "linear_planes" if isinstance(kernel, Dequantize) else "linear_int4"
        rest = (5,) if isinstance(kernel, Dequantize) else (65, 5)
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
        found = getattr(torch.ops.natprec, name).default.redispatch(keys, x, *buffers, *rest)
        assert (found - expected).abs().max() < 1e-4


def test_a_weight_stored_in_float32() -> None:
    """For few tokens too; planes.c reads 16 bits."""
    weight = drawn(9, 64)
    module = HalfWeight(weight)
    for tokens in (1, 3):
        x = drawn(tokens, 64, seed=2)
        assert (module(x) - x @ weight.T).abs().max() < 1e-5
