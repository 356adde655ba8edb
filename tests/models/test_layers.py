"""A layer's matrix is what its inputs are multiplied with, however the module stores it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from natprec.models.layers import KINDS, change_outputs, known_layer, layer_of, multiplies

ROWS, COLUMNS = 6, 4


class Scaled(nn.Embedding):
    """A subclass that computes something else."""

    def forward(self, ids: Tensor) -> Tensor:
        return 2 * super().forward(ids)


def products() -> list[Any]:
    return [nn.Linear(COLUMNS, ROWS), Conv1D(ROWS, COLUMNS)]


@pytest.mark.parametrize("module", products(), ids=lambda module: type(module).__name__)
def test_a_product_is_that_with_the_matrix(module: Any) -> None:
    """The gradient too: y = x Mᵀ + b, and dD/dM = gᵀ x."""
    layer, inputs, weights = known_layer(module), torch.randn(5, COLUMNS), torch.randn(5, ROWS)
    assert multiplies(module)
    assert layer.shape == (ROWS, COLUMNS) == layer.matrix.shape
    assert layer.matrix.is_contiguous()
    assert layer.bias is not None
    output = module(inputs)
    torch.testing.assert_close(output, inputs @ layer.matrix.T + layer.bias)
    assert layer.gradient is None
    (output * weights).sum().backward()
    assert layer.gradient is not None
    torch.testing.assert_close(layer.gradient, weights.T @ inputs)


@pytest.mark.parametrize("module", [*products(), nn.Embedding(ROWS, COLUMNS)], ids=lambda module: type(module).__name__)
def test_what_is_put_in_comes_out_and_overwrites_nothing(module: Any) -> None:
    layer, before = known_layer(module), module.weight.data
    kept, wanted = before.clone(), torch.randn(ROWS, COLUMNS)
    layer.put(wanted)
    assert torch.equal(layer.matrix, wanted)
    assert torch.equal(before, kept)
    assert layer.kind.stored(wanted).shape == module.weight.shape
    assert torch.equal(layer.kind.matrix(layer.kind.stored(wanted)), wanted)


@pytest.mark.parametrize("module", products(), ids=lambda module: type(module).__name__)
def test_outputs_are_changed_with_matrix_and_bias(module: Any) -> None:
    nn.init.normal_(module.bias)
    inputs, scale = torch.randn(5, COLUMNS), torch.exp2(torch.arange(ROWS).float())
    expected = module(inputs) / scale
    change_outputs(module, lambda outputs: outputs / scale.view(-1, *[1] * (outputs.dim() - 1)))
    assert torch.equal(module(inputs), expected)


def test_a_subclass_is_of_its_bases_kind() -> None:
    layer = known_layer(Scaled(ROWS, COLUMNS))
    assert layer.kind.looks_up
    assert not layer.own_forward
    assert not multiplies(layer.module)
    assert known_layer(nn.Embedding(ROWS, COLUMNS)).own_forward


def test_what_owns_no_matrix_is_no_layer() -> None:
    assert layer_of(nn.LayerNorm(4)) is None
    assert layer_of(nn.Conv2d(4, 4, 1)) is None
    with pytest.raises(TypeError, match="LayerNorm is none of Linear, Embedding, Conv1D"):
        known_layer(nn.LayerNorm(4))


def test_every_name_of_a_class_is_one() -> None:
    several = [nn.Linear, nn.Embedding, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d]
    several += [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
    assert {f"{each.__module__}.{each.__qualname__}" for each in several} == KINDS.keys()


def convolutions() -> list[Any]:
    """(module, an input of two samples)."""
    plane, line, space = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 11), torch.randn(2, 4, 5, 4, 3)
    return [
        (nn.Conv1d(4, 6, 3, padding=1), line),
        (nn.Conv2d(4, 6, 3, stride=2, dilation=2), plane),
        (nn.Conv2d(4, 6, (3, 1), padding="same", groups=2), plane),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), plane),
        (nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect", bias=False), plane),
        (nn.Conv3d(4, 6, 2), space),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), line),
        (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, output_padding=1), plane),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), plane),
        (nn.ConvTranspose3d(4, 4, 2, groups=4), space),
    ]


@pytest.mark.parametrize(
    ("module", "inputs"), convolutions(), ids=lambda each: "" if isinstance(each, Tensor) else str(each)
)
def test_a_convolution_s_matrix_has_a_row_for_each_output_channel(module: Any, inputs: Tensor) -> None:
    layer = known_layer(module)
    assert layer_of(module) is None, "language models keep theirs"
    assert layer_of(module, convolutions=True) == layer
    assert not multiplies(module)
    assert layer.shape == tuple(layer.matrix.shape)
    assert layer.shape[0] == module.out_channels
    only = torch.zeros(layer.shape)
    only[1] = layer.matrix.detach()[1]
    found = layer.multiplied(inputs, only)
    bias = 0 if module.bias is None else module.bias[1]
    torch.testing.assert_close(found[:, 1], module(inputs)[:, 1] - bias)
    others = [row for row in range(layer.shape[0]) if row != 1]
    assert not found[:, others].any()


@pytest.mark.parametrize(
    ("module", "inputs"), convolutions(), ids=lambda each: "" if isinstance(each, Tensor) else str(each)
)
def test_a_convolution_is_put_in_and_its_gradients_are_told_apart_by_sample(module: Any, inputs: Tensor) -> None:
    layer, before, wanted = known_layer(module), module.weight.data, torch.randn(known_layer(module).shape)
    layer.put(wanted)
    assert torch.equal(layer.matrix, wanted)
    assert module.weight.shape == before.shape
    output = module(inputs)
    slope = torch.randn(output.shape)
    products = list(layer.products(inputs, slope, 2))
    for number, product in enumerate(products):
        module.weight.grad = None
        (module(inputs[number : number + 1]) * slope[number : number + 1]).sum().backward()
        assert layer.gradient is not None
        torch.testing.assert_close(product, layer.gradient)


def test_a_subclass_of_a_convolution_is_one_too_and_kinds_have_unlike_names() -> None:
    class Own(nn.Conv2d):
        """A subclass."""

    assert known_layer(Own(2, 3, 1)).kind.name == "Conv2d"
    assert len({kind.name for kind in KINDS.values()}) == len(KINDS)
