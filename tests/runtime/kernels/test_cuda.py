"""The kernels of CUDA devices, without one: their layout, inputs and outputs, on the operation's specification.

Triton's own numbers are tested in its interpreter (tests/runtime/kernels/triton, tests/runtime/test_cuda.py).
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import Tensor

from natprec.errors import InputError
from natprec.formats import CHANNEL, Format, Integer, integer, parse_format
from natprec.formats.presets import FLOAT_WEIGHTS
from natprec.quantizers import QuantizedTensor, quantize
from natprec.runtime.kernels import reference
from natprec.runtime.kernels.cuda import Triton, TritonInt8, linear_half
from natprec.runtime.kernels.dispatch import KERNELS, choose
from natprec.runtime.kernels.kernel import Layer
from natprec.runtime.kernels.layout import ROWS, planar
from natprec.runtime.kernels.linear import HalfWeight, QuantizedWeight
from natprec.runtime.kernels.triton import dense
from natprec.runtime.kernels.triton.dense import planar_values, unit_of
from tests.runtime.kernels.test_cpu import drawn, inputs, stored, weights

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="they refuse without triton")


def bound(x: Tensor, weight: QuantizedTensor) -> Tensor:
    """What float16 may be wrong by: 2^-11 of each activation, and 2^-25 of its token's largest."""
    largest = x.double().abs().amax(1, keepdim=True)
    return (x.double().abs() * (2**-11 + 1e-6) + largest * 2**-25) @ reference.dequantize(weight).abs().T


@pytest.mark.parametrize("bits", range(2, 9))
def test_it_is_the_specification(bits: int) -> None:
    for weight in weights(bits):
        rows, columns = weight.codes.shape
        assert Triton().refuses(Layer(weight.format, rows, columns)) == ""
        module, dense = stored(weight, Triton()), reference.dequantize(weight)
        some = torch.tensor([rows - 1, 0, 3, 0])
        assert (module.values(slice(0, rows)) - dense).abs().max() < 1e-5
        assert (module.values(slice(2, 5)) - dense[2:5]).abs().max() < 1e-5
        assert (module.values(some) - dense[some]).abs().max() < 1e-5
        for tokens in (1, 40):
            x = inputs(tokens, columns)
            x[0] *= 1e6  # beyond float16
            error = (module(x) - reference.linear(x, weight)).abs()
            assert (error <= bound(x, weight)).all(), weight.format.name


@pytest.mark.parametrize("fmt", FLOAT_WEIGHTS.values(), ids=lambda fmt: fmt.name)
def test_floats_are_the_specification(fmt: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens, and many that meet dense blocks."""
    weight = quantize(drawn(150, 384), fmt, torch.bfloat16)
    module, dense = stored(weight, Triton()), reference.dequantize(weight)
    some = torch.tensor([149, 0, 3, 0])
    torch.testing.assert_close(module.values(some), dense[some].float(), rtol=2e-7, atol=0)
    for many, times in ((8, 1), (1, 2)):
        monkeypatch.setattr(Triton, "many", many)
        x = inputs(4, 384)
        x[0] *= 1e6  # beyond float16
        error = (module(x) - reference.linear(x, weight)).abs()
        assert (error <= times * bound(x, weight)).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_many_tokens_meet_dense_blocks(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the weight differ by a factor of 10,000, as scales do; none loses digits, and blocks are joined."""
    monkeypatch.setattr(Triton, "many", 8)
    for weight in weights(bits):
        rows, columns = weight.codes.shape
        tall = replace(
            weight,
            codes=weight.codes.repeat(9, 1),
            scale=(weight.scale.repeat(9, 1) * torch.logspace(-4, 0, 9 * rows).unsqueeze(1)).bfloat16(),
            zero_point=None if weight.zero_point is None else weight.zero_point.repeat(9, 1),
        )
        for block in (ROWS * columns, 1 << 26):
            monkeypatch.setattr(dense, "DENSE", block)
            module, asked = stored(tall, Triton()), []
            with mock.patch.object(
                dense, "planar_values", lambda *a, asked=asked: asked.append(a[2:]) or planar_values(*a)
            ):
                for tokens in (1, 8):
                    x = inputs(tokens, columns)
                    x[0] *= 1e6
                    error = (module(x) - reference.linear(x, tall)).abs()
                    assert (error <= 2 * bound(x, tall)).all(), weight.format.name
            blocks = math.ceil(9 * rows / ROWS) if block < 1 << 26 else 1
            assert len(asked) == blocks
            assert [(begin, end) for begin, end in asked if begin % ROWS] == []


def test_dense_blocks_hold_the_largest_and_the_smallest_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Triton, "many", 8)
    for scale in (1e-37, 1e-20, 1e20, 1e35):
        weight = quantize(drawn(40, 128), integer(4, 64), torch.bfloat16)
        weight = replace(weight, scale=(weight.scale * scale).bfloat16())
        x = inputs(8, 128).half().float()
        error = (stored(weight, Triton())(x) - reference.linear(x, weight)).abs()
        assert (error <= bound(x, weight)).all(), scale
    nothing = replace(weight, scale=torch.zeros_like(weight.scale))
    assert not stored(nothing, Triton())(x).any()


def test_few_bits_are_dense_without_an_error() -> None:
    """A scale of bfloat16 times 4 bits fits into float16, since the unit is a power of two."""
    weight = quantize(drawn(40, 128), integer(4, 64), torch.bfloat16)
    packed = planar(weight)
    unit = unit_of(packed.scale, 4)
    assert torch.equal(planar_values(packed, unit, 0, 40) / unit, reference.dequantize(weight).float())


def test_values_of_rows_that_no_tile_begins_with_are_refused() -> None:
    weight = planar(quantize(drawn(300, 128), integer(4, 64), torch.float16))
    unit = torch.ones(())
    assert planar_values(weight, unit, 128, 300).shape == (172, 128)
    for begin, end in ((1, 300), (0, 301), (128, 128), (-128, 5)):
        with pytest.raises(InputError, match="multiples of 128"):
            planar_values(weight, unit, begin, end)
    with pytest.raises(InputError, match="depth 32"):
        planar_values(replace(weight, depth=32), unit, 0, 300)
    arguments = (list(weight.planes), weight.scale, weight.zero_point, unit, None, "int4-g64", 300, 128, 128, 300)
    torch.library.opcheck(
        torch.ops.natprec.planar_values.default, arguments, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("bits", range(2, 9))
def test_int8_inputs_meet_codes(bits: int) -> None:
    ran = 0
    for weight in weights(bits):
        if TritonInt8().refuses(Layer(weight.format, *weight.codes.shape, int8_inputs=True)):
            assert weight.format.group_size == 48  # and by floats that were rounded before
            continue
        x = inputs(3, weight.codes.shape[1])
        codes, scale = reference.quantize_tokens(x)
        expected = reference.linear(codes, weight, x_scale=scale)
        error = (stored(weight, TritonInt8(), int8_inputs=True)(x) - expected).abs()
        assert error.max() <= 1e-6 * expected.abs().max()
        ran += 1
    assert ran


def test_the_bound_catches_one_wrong_code_and_one_wrong_scale() -> None:
    weight = quantize(drawn(64, 256) + 0.1, integer(6, CHANNEL, False), torch.bfloat16)
    code, scale = weight.codes.clone(), weight.scale.clone()
    code[3, 5] ^= 8
    scale[3] *= 1.02
    x = inputs(1, 256)
    for wrong in (replace(weight, codes=code), replace(weight, scale=scale)):
        assert ((stored(wrong, Triton())(x) - reference.linear(x, weight)).abs() > bound(x, weight)).any()


def test_a_token_of_zeros_stays_one() -> None:
    weight = quantize(drawn(8, 64), integer(4, 32), torch.bfloat16)
    for kernel, int8_inputs in ((Triton(), False), (TritonInt8(), True)):
        assert not stored(weight, kernel, int8_inputs)(torch.zeros(2, 64)).any()


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    floats, codes = (Layer(integer(4, 64), 8, 128, int8_inputs=rounded) for rounded in (False, True))
    assert [kernel.name for kernel in KERNELS["cuda"]] == [
        "triton-int8", "triton", "dequantize", "dequantize-floats"
    ]  # fmt: skip
    assert choose(floats, "cuda")[0].name == "triton"
    assert choose(codes, "cuda")[0].name == "triton-int8"
    assert choose(replace(codes, format=integer(4, 48)), "cuda")[0].name == "triton"
    kernel, why = choose(replace(floats, format=integer(4, 8)), "cuda")
    assert kernel.name == "dequantize"
    assert "not triton: needs 2 to 8 bits in groups of a multiple of 16" in why
    assert choose(replace(floats, format=parse_format("nvfp4")), "cuda")[0].name == "triton"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    kernel, why = choose(replace(floats, format=parse_format("nvfp4")), "cuda")
    assert kernel.name == "dequantize-floats"
    assert "not dequantize: has no float codes" in why
    kernel, why = choose(floats, "cuda")
    assert kernel.name == "dequantize"
    assert "not triton: triton is not installed" in why


@pytest.mark.parametrize(
    "kernel", [each for each in KERNELS["cuda"] if Integer in each.codebooks], ids=lambda kernel: kernel.name
)
def test_a_moved_module_leaves_nothing_behind(kernel: Triton) -> None:
    """To a device without values: an operand that stayed on the CPU would be refused there."""
    weight = quantize(drawn(40, 128), integer(5, 64, False), torch.bfloat16)
    module = QuantizedWeight(weight, Layer(weight.format, 40, 128, kernel.rounds_inputs), kernel, torch.bfloat16)
    module(torch.zeros(3, 128))
    module.to("meta")
    assert {buffer.device.type for buffer in module.packed if buffer is not None} == {"meta"}
    y = module(torch.empty(3, 128, device="meta"))
    assert (y.device.type, y.shape, y.dtype) == ("meta", (3, 40), torch.float32)
    assert module.values(torch.tensor([3, 1], device="meta")).shape == (2, 128)


def test_weights_of_16_bits_go_to_the_operation_however_many_tokens() -> None:
    weight = drawn(16, 64).bfloat16()
    module = HalfWeight(weight, "cuda")
    assert module.few > 10**9
    x = drawn(40, 64, seed=1)
    expected = x.double() @ weight.double().T
    assert (linear_half(x, weight) - expected).abs().max() < 2**-7 * expected.abs().max()
