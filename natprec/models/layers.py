"""Layers that own a matrix, by kind: where the matrix lies in the module, and what is done with it.

A site's weight is (rows, columns) = (outputs, inputs), of an embedding (entries, features), however its module stores
it: transformers' Conv1D, of which GPT-2 is made, computes x W and stores the transpose. Whoever measures, rounds,
writes or runs a weight asks its `Layer`; a new kind is an entry in `KINDS`.

A convolution's matrix has a row for each output channel, and in it the inputs of that channel's group times the places
of the kernel: the product that it makes with the patches of its input is the same sum. Language models have some that
engines keep (Mamba's), so a convolution is a layer only to whoever asks for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from natprec.quantizers import QuantizedTensor


@dataclass(frozen=True)
class Kind:
    """How a class of modules keeps its matrix.

    Attributes:
        name: as engine profiles and messages call it.
        looks_up: whether rows are looked up by ids; else inputs (…, columns) become outputs (…, rows) in a product.
        transposed: whether the parameter is (columns, rows); of a convolution, whether it is a transposed one.
        dimensions: of space, over which a convolution shares its matrix; 0: it is none.
    """

    name: str
    looks_up: bool = False
    transposed: bool = False
    dimensions: int = 0

    def matrix(self, stored: Tensor, groups: int = 1) -> Tensor:
        """(rows, columns), contiguous if the tensor is; a copy where the module stores it in another form."""
        if not self.dimensions:
            return stored.T.contiguous() if self.transposed else stored
        if self.transposed:  # (inputs, outputs of a group, *kernel)
            stored = stored.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        return stored.flatten(1)

    def stored(self, matrix: Tensor, shape: torch.Size | None = None, groups: int = 1) -> Tensor:
        """The inverse of `matrix`; a convolution needs the parameter's `shape`."""
        if not self.dimensions:
            return matrix.T.contiguous() if self.transposed else matrix
        assert shape is not None
        if not self.transposed:
            return matrix.reshape(shape)
        by_group = matrix.reshape(groups, shape[1], shape[0] // groups, *shape[2:])
        return by_group.transpose(1, 2).reshape(shape).contiguous()


KINDS = {
    "torch.nn.modules.linear.Linear": Kind("Linear"),
    "torch.nn.modules.sparse.Embedding": Kind("Embedding", looks_up=True),
    "transformers.pytorch_utils.Conv1D": Kind("Conv1D", transposed=True),
    **{f"torch.nn.modules.conv.Conv{size}d": Kind(f"Conv{size}d", dimensions=size) for size in (1, 2, 3)},
    **{
        f"torch.nn.modules.conv.ConvTranspose{size}d": Kind(f"ConvTranspose{size}d", False, True, size)
        for size in (1, 2, 3)
    },
}
"""Class, by its full name so that its package need not be imported, → kind; subclasses are of the same kind."""


@dataclass(frozen=True)
class Layer:
    """A module of a known kind.

    Attributes:
        module: that owns the parameters.
        own_forward: whether the module computes as its kind does: no subclass or wrapper has replaced `forward`.
    """

    module: nn.Module
    kind: Kind
    own_forward: bool = True

    @property
    def weight(self) -> nn.Parameter:
        """The parameter as the module stores it."""
        return self.module.weight  # type: ignore[return-value]

    @property
    def bias(self) -> nn.Parameter | None:
        """(rows,); an embedding has none."""
        return getattr(self.module, "bias", None)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        if self.kind.dimensions:
            rows = self.weight.shape[1] * self.groups if self.kind.transposed else self.weight.shape[0]
            return rows, self.weight.numel() // rows
        first, second = self.weight.shape
        return (second, first) if self.kind.transposed else (first, second)

    @property
    def groups(self) -> int:
        """Of a convolution, whose outputs see the inputs of their own group alone; else 1."""
        return int(self.module.groups) if self.kind.dimensions else 1  # type: ignore[arg-type]

    @property
    def moments(self) -> tuple[int, ...]:
        """Shape of Σ x xᵀ of what the matrix multiplies: (columns, columns), or one such for each of several groups."""
        columns = self.shape[1]
        return (columns, columns) if self.groups == 1 else (self.groups, columns, columns)

    @property
    def matrix(self) -> Tensor:
        """The present weight as (rows, columns); to change it, `put` another."""
        return self.kind.matrix(self.weight, self.groups)

    @property
    def gradient(self) -> Tensor | None:
        """By the matrix, (rows, columns), after a backward pass."""
        return None if self.weight.grad is None else self.kind.matrix(self.weight.grad, self.groups)

    def multiplied(self, inputs: Tensor, matrix: Tensor) -> Tensor:
        """What another matrix (rows, columns) in place of the weight would make of inputs, without the bias."""
        if not self.kind.dimensions:
            return functional.linear(inputs, matrix)
        weight = self.kind.stored(matrix, self.weight.shape, self.groups)
        inputs, *how = self.geometry(inputs)
        return torch.ops.aten.convolution(inputs, weight, None, *how, self.groups)

    def products(self, inputs: Tensor, gradient: Tensor, count: int) -> Iterator[Tensor]:
        """The gradient of a convolution's weight, (rows, columns), for each of so many samples.

        Args:
            inputs: of the module, samples first; gradient: at its output.
        """
        inputs, *how = self.geometry(inputs)
        inputs, gradient = (each.unflatten(0, (count, -1)) for each in (inputs.to(gradient.dtype), gradient))
        weight = self.weight.detach().to(gradient.dtype)
        for before, after in zip(inputs, gradient, strict=True):
            found = torch.ops.aten.convolution_backward(
                after, before, weight, None, *how, self.groups, [False, True, False]
            )
            yield self.kind.matrix(found[1], self.groups)

    def geometry(self, inputs: Tensor) -> tuple[Any, ...]:
        """A convolution's inputs with their padding, where torch names it, and how its kernel goes over them.

        Returns:
            Inputs; stride, padding, dilation; whether it is transposed; output padding.
        """
        module: Any = self.module
        padding = module.padding
        if isinstance(padding, str) or module.padding_mode != "zeros":
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            inputs = functional.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
            padding = (0,) * self.kind.dimensions
        return inputs, module.stride, padding, module.dilation, self.kind.transposed, module.output_padding

    def put(self, matrix: Tensor) -> None:
        """Replace the weight, which is not overwritten, by that of a matrix (rows, columns)."""
        self.weight.data = self.kind.stored(matrix, self.weight.shape, self.groups).to(self.weight.dtype)


def layer_of(module: nn.Module, convolutions: bool = False) -> Layer | None:
    """The module as a layer; None where it is of no known kind, or a convolution and these are not asked for."""
    found = _kind_of(type(module))  # type: ignore[arg-type]  # mypy's doubt whether a class can be hashed
    return None if found is None or (found[0].dimensions and not convolutions) else Layer(module, *found)


def known_layer(module: nn.Module) -> Layer:
    """The same of a module that is known to be one, as that of every site.

    Raises:
        TypeError: it is none.
    """
    layer = layer_of(module, convolutions=True)
    if layer is None:
        raise TypeError(f"{type(module).__name__} is none of {', '.join(kind.name for kind in KINDS.values())}")
    return layer


def multiplies(module: nn.Module) -> bool:
    """Whether the module is a layer that multiplies its input with its matrix."""
    layer = layer_of(module)
    return layer is not None and not layer.kind.looks_up


def put_codes(layers: Mapping[str, Layer], codes: Mapping[str, QuantizedTensor]) -> None:
    """Leave in layers, by name, what an engine reconstructs from their codes."""
    for name, layer in layers.items():
        layer.put(codes[name].dequantize())


def change_outputs(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Replace the parameters that a module's outputs are made of.

    Args:
        module: a layer or a norm.
        change: from rows of its matrix, its bias or a norm's factors, each with outputs along the first dimension, to
            new ones.
    """
    layer = layer_of(module)
    for parameter in module.parameters(recurse=False):
        if layer is not None and parameter is layer.weight:
            layer.put(change(layer.matrix.detach()))
        else:
            parameter.data = change(parameter.data)


@functools.cache
def _kind_of(cls: type) -> tuple[Kind, bool] | None:
    """Of the nearest class that has a kind, and whether `forward` is that class's own."""
    for base in cls.__mro__:
        kind = KINDS.get(f"{base.__module__}.{base.__qualname__}")
        if kind is not None:
            return kind, cls.forward is base.forward  # type: ignore[attr-defined]
    return None
