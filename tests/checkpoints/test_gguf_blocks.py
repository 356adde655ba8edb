"""Blocks are bit for bit what the gguf package, which is llama.cpp's, unpacks and packs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from gguf import quantize as quantize_by_ggml
from torch import Tensor

from natprec.checkpoints.gguf_blocks import pack_blocks
from natprec.formats import GGUF_TYPES, Format
from natprec.quantizers import QuantizedTensor, quantize
from natprec.quantizers.gptq import gptq
from natprec.quantizers.hessian import Hessian
from natprec.quantizers.scale_storage import nested_grid

TYPES = list(GGUF_TYPES.values())
NESTED = [fmt for fmt in TYPES if fmt.nested]
PLAIN = [fmt for fmt in TYPES if not fmt.nested]


def weight(rows: int = 24, columns: int = 512, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=draw) * torch.logspace(-4, 1, rows).unsqueeze(1)
    values[3] = 0
    values[4, :256] = 0
    values[5] = 0.25  # one value throughout
    values[6] = values[6].abs() + 3  # far from 0
    values[7] = -values[7].abs() - 3
    return values


def unpacked(blocks: np.ndarray, fmt: Format) -> Tensor:
    return torch.from_numpy(dequantize(blocks, GGMLQuantizationType[fmt.name]))


@pytest.mark.parametrize("fmt", TYPES, ids=lambda fmt: fmt.name)
def test_sizes_are_ggmls(fmt: Format) -> None:
    assert GGML_QUANT_SIZES[GGMLQuantizationType[fmt.name]] == (fmt.block, fmt.stored_bytes(1, fmt.block))
    assert pack_blocks(quantize(weight(), fmt, torch.bfloat16)).nbytes == fmt.stored_bytes(24, 512)


@pytest.mark.parametrize("fmt", TYPES, ids=lambda fmt: fmt.name)
def test_ggml_unpacks_what_we_reconstruct(fmt: Format) -> None:
    value = quantize(weight(), fmt, torch.bfloat16)
    assert torch.equal(unpacked(pack_blocks(value), fmt), value.dequantize())


@pytest.mark.parametrize("fmt", TYPES, ids=lambda fmt: fmt.name)
def test_every_code_and_scale_survives(fmt: Format) -> None:
    """Random ones, not those that a weight happens to need."""
    draw = torch.Generator().manual_seed(1)
    low, high = fmt.code_range
    codes = torch.randint(low, high + 1, (8, 512), generator=draw).to(torch.int8)
    scale = torch.rand(8, fmt.groups(512), generator=draw).half().float() + 2.0**-10
    offset = -torch.rand(8, fmt.groups(512), generator=draw).half().float() if fmt.float_offset else None
    value = QuantizedTensor.of(fmt, codes, *nested_grid(scale, offset, fmt))
    assert torch.equal(unpacked(pack_blocks(value), fmt), value.dequantize())


@pytest.mark.parametrize("fmt", TYPES, ids=lambda fmt: fmt.name)
def test_gptq_stays_on_the_grid(fmt: Format) -> None:
    inputs = torch.randn(1000, 512, generator=torch.Generator().manual_seed(2)) @ torch.randn(512, 512)
    value = gptq(weight(), Hessian.of(inputs.T @ inputs), fmt, torch.bfloat16)
    assert torch.equal(unpacked(pack_blocks(value), fmt), value.dequantize())
    nearest = quantize(weight(), fmt, torch.bfloat16).dequantize() - weight()
    left = value.dequantize() - weight()
    assert (left @ inputs.T).norm() < (nearest @ inputs.T).norm()


@pytest.mark.parametrize("fmt", NESTED, ids=lambda fmt: fmt.name)
def test_storing_a_stored_grid_changes_nothing(fmt: Format) -> None:
    value = quantize(weight(), fmt, torch.bfloat16)
    again = nested_grid(value.scale, value.offset, fmt)
    assert torch.equal(again[0], value.scale)
    assert fmt.symmetric or torch.equal(again[1], value.offset)  # type: ignore[arg-type]


@pytest.mark.parametrize("fmt", PLAIN, ids=lambda fmt: fmt.name)
def test_a_weight_from_ggml_comes_back_in_the_same_bytes(fmt: Format) -> None:
    theirs = quantize_by_ggml(weight().numpy(), GGMLQuantizationType[fmt.name])
    ours = pack_blocks(quantize(unpacked(theirs, fmt), fmt, torch.bfloat16))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("fmt", PLAIN, ids=lambda fmt: fmt.name)
def test_error_is_about_that_of_ggml(fmt: Format) -> None:
    theirs = unpacked(quantize_by_ggml(weight().numpy(), GGMLQuantizationType[fmt.name]), fmt)
    ours = quantize(weight(), fmt, torch.bfloat16).dequantize()
    error, reference = (ours - weight()).square().sum(1), (theirs - weight()).square().sum(1)
    assert (error <= 1.25 * reference + 1e-12).all()
