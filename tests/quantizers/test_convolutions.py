"""GPTQ of convolutions: of the patches of their inputs, group by group."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from natprec.formats import CHANNEL, Format, integer, parse_format
from natprec.models.layers import Layer, known_layer
from natprec.models.patches import add_moments, patches
from natprec.quantizers import QuantizedTensor, quantize
from natprec.quantizers.gptq import Judged, gptq, gptq_shares, judged_groups, judged_rows
from natprec.quantizers.gram import mirrored
from natprec.quantizers.hessian import Hessian

FP8 = parse_format("fp8-channel")
CASES = {
    "1d": lambda: nn.Conv1d(6, 8, 3, padding=1),
    "2d": lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1),
    "2d dilated": lambda: nn.Conv2d(6, 8, (3, 2), padding="same", dilation=2),
    "2d reflected": lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
    "3d": lambda: nn.Conv3d(4, 6, 2, stride=(1, 2, 1), padding=1),
    "grouped": lambda: nn.Conv2d(12, 24, 3, padding=1, groups=4),
    "depthwise": lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16),
    "transposed 1d": lambda: nn.ConvTranspose1d(6, 8, 4, stride=2, padding=1),
    "transposed 2d": lambda: nn.ConvTranspose2d(6, 8, 3, stride=(2, 3), padding=2, dilation=2, output_padding=(1, 0)),
    "transposed 3d": lambda: nn.ConvTranspose3d(4, 6, 2, stride=2),
    "transposed grouped": lambda: nn.ConvTranspose2d(8, 12, 4, stride=2, padding=1, groups=4),
}


def layer(case: str) -> Layer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return known_layer(CASES[case]().requires_grad_(False))


def given(to: Layer, seed: int = 1, count: int = 3) -> Tensor:
    """Samples that are smooth, as images are, so that neighbouring inputs are alike; channels of unequal size."""
    draw, channels = torch.Generator().manual_seed(seed), int(to.module.in_channels)  # type: ignore[arg-type]
    found = torch.randn(count, channels, *[9, 8, 7][: to.kind.dimensions], generator=draw)
    for dim in range(1, found.dim()):
        found = found + found.roll(1, dim)
    return found * torch.linspace(0.3, 2, channels).view(-1, *[1] * to.kind.dimensions)


def output(to: Layer, inputs: Tensor, matrix: Tensor | None = None) -> Tensor:
    return to.multiplied(inputs, to.matrix if matrix is None else matrix)


def moments(of: Layer, inputs: Tensor) -> Tensor:
    sums: dict[str, Tensor] = {}
    add_moments(sums, "it", of, inputs, torch.float64)
    return mirrored(sums["it"])


def output_error(of: Layer, found: QuantizedTensor, inputs: Tensor) -> float:
    return float((output(of, inputs, found.dequantize()) - output(of, inputs)).square().sum())


@pytest.mark.parametrize("case", CASES)
def test_the_matrix_times_patches_is_the_convolution(case: str) -> None:
    own = layer(case)
    inputs = given(own)
    found = patches(own, inputs) @ own.matrix.unflatten(0, (own.groups, -1)).mT
    expected = output(own, inputs).movedim(1, -1)
    torch.testing.assert_close(found.transpose(0, 1).reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(expected, (own.module(inputs) - bias(own)).movedim(1, -1), rtol=1e-4, atol=1e-4)


def bias(of: Layer) -> Tensor:
    assert of.bias is not None
    return of.bias.view(-1, *[1] * of.kind.dimensions)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fmt", [integer(3, CHANNEL, False), integer(4, CHANNEL), FP8], ids=lambda fmt: fmt.name)
def test_gptq_leaves_less_error_at_the_output_than_nearest(case: str, fmt: Format) -> None:
    own = layer(case)
    inputs = given(own)
    rounded = gptq(own.matrix, Hessian.of(moments(own, inputs)), fmt, torch.float32)
    nearest = quantize(own.matrix, fmt, torch.float32)
    assert rounded.codes.shape == own.shape
    assert output_error(own, rounded, inputs) < 0.95 * output_error(own, nearest, inputs)


def test_a_convolution_of_one_place_is_a_linear() -> None:
    convolution, linear = nn.Conv2d(24, 16, 1), nn.Linear(24, 16)
    linear.weight.data = convolution.weight.data.flatten(1)
    one, other = known_layer(convolution.requires_grad_(False)), known_layer(linear.requires_grad_(False))
    inputs = given(one)
    of_one, of_other = moments(one, inputs), moments(other, inputs.movedim(1, -1))
    torch.testing.assert_close(of_one, of_other, rtol=1e-5, atol=1e-4)
    found = [gptq(each.matrix, Hessian.of(of_other), integer(4, CHANNEL), torch.float32) for each in (one, other)]
    assert torch.equal(found[0].codes, found[1].codes)


@pytest.mark.parametrize("case", ["grouped", "depthwise", "transposed grouped"])
@pytest.mark.parametrize("fmt", [integer(3, CHANNEL, False), integer(4, CHANNEL), FP8], ids=lambda fmt: fmt.name)
def test_groups_are_rounded_as_separate_convolutions(case: str, fmt: Format) -> None:
    """Sums in another order may move a weight that lies near the middle between two codes, no more."""
    own = layer(case)
    together = moments(own, given(own))
    found = gptq(own.matrix, Hessian.of(together), fmt, torch.float32)
    rows = own.shape[0] // own.groups
    for number, each in enumerate(together):
        part = slice(number * rows, (number + 1) * rows)
        alone = gptq(own.matrix[part], Hessian.of(each), fmt, torch.float32)
        torch.testing.assert_close(found.scale[part], alone.scale)
        assert float((found.codes[part] != alone.codes).float().mean()) <= 0.05


def test_a_group_that_nothing_reaches_is_rounded_to_nearest() -> None:
    own, fmt = layer("grouped"), integer(4, CHANNEL)
    inputs = given(own)
    inputs[:, :3] = 0
    found = gptq(own.matrix, Hessian.of(moments(own, inputs)), fmt, torch.float32)
    assert torch.equal(found.codes[:6], quantize(own.matrix, fmt, torch.float32).codes[:6])
    assert not torch.equal(found.codes, quantize(own.matrix, fmt, torch.float32).codes)


@pytest.mark.parametrize("case", ["2d", "grouped", "depthwise"])
def test_shares_are_what_the_rounded_weights_show(case: str) -> None:
    own = layer(case)
    fitted = Hessian.of(moments(own, given(own)))
    formats = [integer(bits, CHANNEL, symmetric) for bits in (3, 4) for symmetric in (True, False)]
    gradient = torch.randn(5, *own.shape, generator=torch.Generator().manual_seed(2))
    (shares,) = gptq_shares([Judged(own.matrix, gradient)], fitted, formats, torch.float32).squeeze(1)
    for fmt, share in zip(formats, shares, strict=True):
        error = gptq(own.matrix, fitted, fmt, torch.float32).dequantize() - own.matrix
        nearest = quantize(own.matrix, fmt, torch.float32).dequantize() - own.matrix
        left = sum(float((each * error).sum(1).square().sum()) for each in gradient)
        assert share == pytest.approx(left / float((gradient * nearest).square().sum()), rel=0.05)


@pytest.mark.parametrize(("rows", "groups"), [(1000, 1), (12, 4), (960, 960), (1000, 250), (512, 2)])
def test_rows_that_judge_are_equally_many_of_each_group_that_judges(rows: int, groups: int) -> None:
    found, own = judged_rows(rows, groups), rows // groups
    assert len(found.unique()) == len(found) <= 128
    assert (found // own).unique(return_counts=True)[0].tolist() == judged_groups(groups).tolist()
    assert len((found // own).unique(return_counts=True)[1].unique()) == 1


def test_some_patches_say_what_all_do() -> None:
    own = known_layer(nn.Conv2d(4, 5, 3, padding=1).requires_grad_(False))
    inputs = torch.randn(1, 4, 80, 80, generator=torch.Generator().manual_seed(0)) + 0.5
    every, some = patches(own, inputs), patches(own, inputs, 1024)
    assert every.shape == (1, 6400, 36)
    assert some.shape == (1, 1024, 36)
    assert {tuple(each) for each in some[0].tolist()} <= {tuple(each) for each in every[0].tolist()}
    torch.testing.assert_close(some[0].T @ some[0] / 1024, every[0].T @ every[0] / 6400, rtol=0.2, atol=0.15)
