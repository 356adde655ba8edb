"""Activations in floating point: compressed-tensors rounds them to the same values, where it has the same rule."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from torch import Tensor

from natprec.formats import Format
from natprec.formats.compressed_tensors import arguments
from natprec.formats.presets import FLOAT_ACTIVATIONS
from natprec.quantizers.activations import fixed_scale, flowing_scale, round_activations

ALL = [fmt for name, fmt in FLOAT_ACTIVATIONS.items() if name != "fp8-head"]


def values() -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(3, 7, 256, generator=draw) * torch.rand(3, 7, 1, generator=draw).exp2()


@pytest.mark.parametrize("name", ["fp8-token", "fp8-g128", "nvfp4", "mxfp8"])
def test_compressed_tensors_has_the_same_values(name: str) -> None:
    """With the same rule of scales it rounds to the same float32 values, to the last bit."""
    fmt, x = FLOAT_ACTIVATIONS[name], values()
    args = QuantizationArgs(**arguments(fmt))
    outer = fixed_scale(fmt, x.abs().amax()) if fmt.fixed else None
    divisor = None if outer is None else (1 / outer).reshape(1)
    scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Linear(1, 1), divisor)
    theirs = fake_quantize(x, scale, zero, args, divisor)
    assert torch.equal(round_activations(x, fmt, outer), theirs)


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_zeros_stay_and_nothing_saturates(fmt: Format) -> None:
    x = values()
    x[0, 0] = 0
    rounded = round_activations(x, fmt)
    assert (rounded[0, 0] == 0).all()
    step = {4: 1 / 4, 8: 1 / 16}[fmt.bits]  # half a step of the top binade, of the largest of a group
    grouped = x.unflatten(-1, (-1, fmt.group_size or 256))
    error = (rounded - x).view(grouped.shape)
    assert (error.abs() <= step * grouped.abs().amax(-1, keepdim=True)).all()


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8"])
def test_the_least_power_of_two_that_holds_a_group(name: str) -> None:
    fmt = FLOAT_ACTIVATIONS[name]
    largest = torch.linspace(0.01, 500, 4001)
    scale = flowing_scale(fmt, largest)
    assert torch.equal(scale.log2(), scale.log2().round())
    assert (largest <= scale * fmt.codebook.largest).all()
    assert (largest > scale / 2 * fmt.codebook.largest).all()


def test_text_beyond_what_calibration_saw_saturates_in_nvfp4() -> None:
    fmt, x = FLOAT_ACTIVATIONS["nvfp4"], values()
    outer = fixed_scale(fmt, x.abs().amax() / 4)
    rounded = round_activations(x, fmt, outer)
    assert rounded.abs().max() == pytest.approx(float(x.abs().max()) / 4, rel=1e-6)
