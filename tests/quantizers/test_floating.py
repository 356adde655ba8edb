"""Floating-point codes: compressed-tensors reads them as we do, and their scales are on the grids that files hold."""

from __future__ import annotations

import math

import pytest
import torch
from compressed_tensors.compressors.mxfp4 import MXFP4PackedCompressor
from compressed_tensors.compressors.mxfp8 import MXFP8QuantizationCompressor
from compressed_tensors.compressors.naive_quantized import FloatQuantizationCompressor
from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor, unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from torch import Tensor

from natprec.formats import Codebook, Format, Integer, Table
from natprec.formats.codebook import E2M1, E3M2, E4M3
from natprec.formats.compressed_tensors import arguments
from natprec.formats.presets import FLOAT_WEIGHTS
from natprec.quantizers import Extent, QuantizedTensor, quantize, rounding_errors
from natprec.quantizers.gptq import gptq
from natprec.quantizers.hessian import Hessian
from natprec.quantizers.ranks import code_at, interval, rank, rank_range
from natprec.quantizers.scale_storage import effective_scales, inner_scales
from natprec.quantizers.yaqa import output_order, yaqa

ALL = list(FLOAT_WEIGHTS.values())


def weight(rows: int = 160, columns: int = 288, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.rand(rows, 1, generator=draw) * 4 + 0.1
    return torch.randn(rows, columns, generator=draw) * sizes / 8


def scheme(fmt: Format) -> QuantizationScheme:
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments(fmt)))


def stored_scale(value: QuantizedTensor) -> Tensor:
    """As a file has it: one for all, a row, a group or a block."""
    if value.format.name == "fp8-tensor":
        return value.scale[:1, 0]
    return value.scale[::128] if value.format.name == "fp8-block128" else value.scale


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_codes_and_scales_have_the_agreed_shapes(fmt: Format) -> None:
    value = quantize(weight(), fmt, torch.bfloat16)
    assert value.codes.dtype == torch.uint8
    assert value.codes.shape == (160, 288)
    assert value.scale.shape == (160, fmt.groups(288))
    assert (value.scale > 0).all()
    assert (value.outer is not None) == (fmt.name == "nvfp4")
    assert int(value.codes.max()) < 2**fmt.bits
    if fmt.scaling.dtype == "model":
        assert torch.equal(value.scale, value.scale.bfloat16().float())
    if fmt.scaling.dtype == "e8m0":
        assert torch.equal(value.scale.log2(), value.scale.log2().round())
    if value.outer is not None:
        inner = inner_scales(value.scale, value.outer, fmt)
        assert torch.equal(inner, inner.to(torch.float8_e4m3fn).float())
        assert torch.equal(effective_scales(inner, value.outer), value.scale)
        assert torch.equal(1 / (1 / value.outer), value.outer)


@pytest.mark.parametrize("fmt", [fmt for fmt in ALL if fmt.bits == 8], ids=lambda fmt: fmt.name)
def test_compressed_tensors_has_the_same_eight_bits(fmt: Format) -> None:
    """Its codes and its values, from our scales, to the last bit."""
    compressor = MXFP8QuantizationCompressor if fmt.name == "mxfp8" else FloatQuantizationCompressor
    original, value = weight(), quantize(weight(), fmt, torch.float32)
    theirs = compressor.compress({"weight": original, "weight_scale": stored_scale(value)}, scheme(fmt))
    assert torch.equal(theirs["weight"].view(torch.uint8), value.codes)
    back = compressor.decompress(dict(theirs), scheme(fmt))["weight"]
    assert torch.equal(back, value.dequantize().to(back.dtype))


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4"])
def test_compressed_tensors_has_the_same_four_bits(name: str) -> None:
    fmt = FLOAT_WEIGHTS[name]
    original, value = weight(), quantize(weight(), fmt, torch.bfloat16)
    state = {"weight": original, "weight_scale": value.scale}
    compressor = MXFP4PackedCompressor
    if value.outer is not None:
        compressor = NVFP4PackedCompressor
        state["weight_scale"] = inner_scales(value.scale, value.outer, fmt)
        state["weight_global_scale"] = (1 / value.outer).reshape(1)
    theirs = compressor.compress(state, scheme(fmt))
    codes = unpack_fp4_from_uint8(theirs["weight_packed"], 160, 288).float()
    assert torch.equal(codes, fmt.codebook.decode(value.codes))
    sign = torch.signbit(codes) == torch.signbit(fmt.codebook.decode(value.codes))
    assert sign[codes != 0].all()
    back = compressor.decompress(dict(theirs), scheme(fmt))["weight"]
    assert torch.equal(back, value.dequantize().to(back.dtype))


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_no_neighbouring_code_is_nearer(fmt: Format) -> None:
    original, value = weight(), quantize(weight(), fmt, torch.bfloat16)
    error = (value.dequantize() - original).abs()
    for step in (-1, 1):
        other = (value.at_ranks(value.ranks + step).dequantize() - original).abs()
        assert (error <= other + 1e-7).all()


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_errors_of_some_rows_are_those_of_the_whole(fmt: Format) -> None:
    """Scales that rows share are those of all rows."""
    original = weight()
    whole = rounding_errors(original, [fmt], torch.bfloat16)[0].view(160, 288)
    assert torch.equal(whole, quantize(original, fmt, torch.bfloat16).dequantize() - original)
    extent = Extent.of(original, [fmt])
    some = rounding_errors(original[40:150], [fmt], torch.bfloat16, extent.at(slice(40, 150)))[0]
    assert torch.equal(some.view(110, 288), whole[40:150])


@pytest.mark.parametrize("name", ["mxfp4", "mxfp6", "mxfp8"])
def test_the_better_power_of_two(name: str) -> None:
    """Never worse than OCP's, which takes the one below; somewhere better."""
    fmt, original = FLOAT_WEIGHTS[name], weight()
    groups = original.view(160, -1, 32)
    plain = 2.0 ** math.floor(math.log2(fmt.codebook.largest))
    scale = (groups.abs().amax(-1, keepdim=True)).log2().floor().exp2() / plain
    theirs = (fmt.codebook.nearest_(groups / scale) * scale - groups).square().sum(-1)
    ours = (quantize(original, fmt, torch.bfloat16).dequantize() - original).view(160, -1, 32).square().sum(-1)
    assert (ours <= theirs * (1 + 1e-5)).all()
    assert (ours < 0.99 * theirs).any()


def test_four_over_six_errs_less_than_six() -> None:
    fmt, original = FLOAT_WEIGHTS["nvfp4"], weight()
    value = quantize(original, fmt, torch.bfloat16)
    assert value.outer is not None
    groups = original.view(160, -1, 16)
    divisor = 1 / value.outer
    scale = ((groups.abs().amax(-1, keepdim=True) / 6) * divisor).to(torch.float8_e4m3fn).float() / divisor
    six = (fmt.codebook.nearest_(groups / scale) * scale - groups).square().sum()
    assert (value.dequantize() - original).square().sum() < 0.97 * six


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_zeros_and_tiny_weights(fmt: Format) -> None:
    """Zeros stay zeros, and what is too small for a scale becomes no NaN and nothing large."""
    zeros = quantize(torch.zeros(160, 288), fmt, torch.float16)
    assert torch.equal(zeros.dequantize(), torch.zeros(160, 288))
    mixed = weight()
    mixed[:, :32] = 0
    mixed[0] *= 1e-12
    value = quantize(mixed, fmt, torch.float16).dequantize()
    assert torch.isfinite(value).all()
    assert (value[:, :32] == 0).all()
    assert value[0].abs().max() <= mixed.abs().max() * 2e-5


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_gptq_leaves_less_output_error(fmt: Format) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(900, 288, generator=draw) @ torch.randn(288, 288, generator=draw) / 17
    original, inputs = weight(), Hessian.of(x.T @ x)
    rounded = gptq(original, inputs, fmt, torch.bfloat16)

    def lost(value: QuantizedTensor) -> float:
        return float(((value.dequantize() - original) @ x.T).square().sum())

    assert lost(rounded) < 0.8 * lost(quantize(original, fmt, torch.bfloat16))
    assert torch.equal(fmt.codebook.encode(fmt.codebook.decode(rounded.codes)), rounded.codes)


@pytest.mark.parametrize("name", ["nvfp4", "fp8-channel"])
def test_yaqa_of_independent_rows_is_gptq(name: str) -> None:
    """Gradients that are alike at all outputs leave nothing for other rows to make up for."""
    fmt, original = FLOAT_WEIGHTS[name], weight(32, 128)
    x = torch.randn(400, 128, generator=torch.Generator().manual_seed(2)) @ torch.randn(128, 128)
    inputs = Hessian.of(x.T @ x)
    ours = yaqa(original, inputs, output_order(torch.eye(32)), fmt, torch.bfloat16)
    same = ours.codes == gptq(original, inputs, fmt, torch.bfloat16).codes
    assert same.float().mean() > 0.999


def test_an_outer_scale_is_that_of_all_that_share_it() -> None:
    fmt, original = FLOAT_WEIGHTS["nvfp4"], weight()
    alone = quantize(original, fmt, torch.bfloat16)
    shared = quantize(original, fmt, torch.bfloat16, Extent.of(original, [fmt], torch.tensor(50.0)))
    assert alone.outer is not None
    assert shared.outer is not None
    torch.testing.assert_close(shared.outer, torch.tensor(50.0 / (448 * 6)))
    assert alone.outer < shared.outer
    inner = inner_scales(shared.scale, shared.outer, fmt)
    assert torch.equal(E4M3.nearest_(inner.clone()), inner)


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_refined_scales_stay_on_what_files_hold(fmt: Format) -> None:
    """Powers of two do not move; scales that rows share move together; others are rounded to their dtype."""
    value = quantize(weight(), fmt, torch.bfloat16)
    slope = value.scale_slope(torch.randn(160, 288, generator=torch.Generator().manual_seed(3)))
    assert slope.shape == value.scale.shape
    moved = value.scaled(1 + 0.1 * slope.sign(), torch.bfloat16)
    assert torch.equal(moved.codes, value.codes)
    assert torch.equal(moved.scale, value.scale) == (fmt.scaling.dtype == "e8m0")
    if fmt.name == "fp8-tensor":
        assert len(moved.scale.unique()) == 1
    if fmt.name == "fp8-block128":
        assert torch.equal(moved.scale[:128], moved.scale[:1].expand(128, -1))
    if moved.outer is not None:
        inner = inner_scales(moved.scale, moved.outer, fmt)
        assert torch.equal(effective_scales(inner, moved.outer), moved.scale)


@pytest.mark.parametrize("codebook", [E2M1, E3M2, E4M3, Integer(4), Table("three", (-1.0, 0.25, 2.0))], ids=str)
def test_ranks_count_the_values_of_a_codebook(codebook: Codebook) -> None:
    low, high = rank_range(codebook)
    ranks = torch.arange(low, high + 1)
    values = codebook.decode(code_at(codebook, ranks.float()))
    assert (values[1:] > values[:-1]).all()
    assert (values[0], values[-1]) == (codebook.smallest, codebook.largest)
    assert torch.equal(rank(codebook, values), ranks.float())
    middle = (values[1:] + values[:-1]) / 2
    torch.testing.assert_close(rank(codebook, middle), ranks[:-1] + 0.5)
    below, above = interval(codebook, code_at(codebook, ranks.float()))
    assert torch.equal(below[1:], above[:-1])
    assert torch.equal(below[1:], middle)
    assert below[0] == -above[-1] == -torch.inf
