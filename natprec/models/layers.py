"""Layers that own a matrix, by kind: where the matrix lies in the module, and what is done with it.

A site's weight is (rows, columns) = (outputs, inputs), of an embedding (entries, features), however its module stores
it: transformers' Conv1D, of which GPT-2 is made, computes x W and stores the transpose. Whoever measures, rounds,
writes or runs a weight asks its `Layer`; a new kind is an entry in `KINDS`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Kind:
    """How a class of modules keeps its matrix.

    Attributes:
        name: as engine profiles and messages call it.
        looks_up: whether rows are looked up by ids; else inputs (…, columns) become outputs (…, rows) in a product.
        transposed: whether the parameter is (columns, rows).
    """

    name: str
    looks_up: bool = False
    transposed: bool = False

    def matrix(self, stored: Tensor) -> Tensor:
        """(rows, columns), contiguous if the tensor is; a copy where the module stores it in another form."""
        return stored.T.contiguous() if self.transposed else stored

    def stored(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`."""
        return matrix.T.contiguous() if self.transposed else matrix


KINDS = {
    "torch.nn.modules.linear.Linear": Kind("Linear"),
    "torch.nn.modules.sparse.Embedding": Kind("Embedding", looks_up=True),
    "transformers.pytorch_utils.Conv1D": Kind("Conv1D", transposed=True),
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
        first, second = self.weight.shape
        return (second, first) if self.kind.transposed else (first, second)

    @property
    def matrix(self) -> Tensor:
        """The present weight as (rows, columns); to change it, `put` another."""
        return self.kind.matrix(self.weight)

    @property
    def gradient(self) -> Tensor | None:
        """By the matrix, (rows, columns), after a backward pass."""
        return None if self.weight.grad is None else self.kind.matrix(self.weight.grad)

    def multiplied(self, inputs: Tensor, matrix: Tensor) -> Tensor:
        """What another matrix (rows, columns) in place of the weight would make of inputs, without the bias."""
        return functional.linear(inputs, matrix)

    def put(self, matrix: Tensor) -> None:
        """Replace the weight, which is not overwritten, by that of a matrix (rows, columns)."""
        self.weight.data = self.kind.stored(matrix).to(self.weight.dtype)


def layer_of(module: nn.Module) -> Layer | None:
    """The module as a layer; None where it is of no known kind."""
    found = _kind_of(type(module))  # type: ignore[arg-type]  # mypy's doubt whether a class can be hashed
    return None if found is None else Layer(module, *found)


def known_layer(module: nn.Module) -> Layer:
    """The same of a module that is known to be one, as that of every site.

    Raises:
        TypeError: it is none.
    """
    layer = layer_of(module)
    if layer is None:
        raise TypeError(f"{type(module).__name__} is none of {', '.join(kind.name for kind in KINDS.values())}")
    return layer


def multiplies(module: nn.Module) -> bool:
    """Whether the module is a layer that multiplies its input with its matrix."""
    layer = layer_of(module)
    return layer is not None and not layer.kind.looks_up


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
