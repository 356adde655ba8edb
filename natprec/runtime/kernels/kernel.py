"""What a kernel is: something that packs codes its own way and multiplies by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from natprec.formats import Format, Integer
from natprec.quantizers import QuantizedTensor
from natprec.runtime.kernels.epilogue import Ending

Buffers = tuple[Tensor | None, ...]
"""A packed weight: what a kernel's product reads."""

ALWAYS = 1 << 62
"""More tokens than there are."""


@dataclass(frozen=True)
class Layer:
    """What a kernel has to run.

    Attributes:
        format: of the weight.
        rows: outputs.
        columns: inputs.
        int8_inputs: activations are rounded to int8, one scale per token.
    """

    format: Format
    rows: int
    columns: int
    int8_inputs: bool = False

    @property
    def groups(self) -> int:
        """Scales per row."""
        return self.format.groups(self.columns)

    @property
    def name(self) -> str:
        """For example `int4-g64` or `int8-channel with int8 inputs`."""
        return self.format.name + (" with int8 inputs" if self.int8_inputs else "")


class Kernel(ABC):
    """One way to run a layer. With many tokens every weight is used often: then its dense values are made once for all.

    Attributes:
        name: as `natprec generate --explain` shows it.
        few: tokens up to which `product` is faster than `values` and a dense product.
        rounds_inputs: `product` rounds activations to int8 itself; for others that is done before.
        codebooks: kinds of codes that it multiplies.
    """

    name: str
    few: int
    rounds_inputs = False
    codebooks: tuple[type, ...] = (Integer,)

    @abstractmethod
    def refuses(self, layer: Layer) -> str:
        """Why it cannot run a layer, or should not; empty if it does."""

    @abstractmethod
    def pack(self, weight: QuantizedTensor, dtype: torch.dtype) -> Buffers:
        """Codes to buffers; `dtype` holds the scales exactly."""

    @abstractmethod
    def product(self, x: Tensor, buffers: Buffers, layer: Layer) -> Tensor:
        """X (tokens, columns) times the weight, transposed: (tokens, rows)."""

    @abstractmethod
    def values(self, buffers: Buffers, layer: Layer, rows: slice | Tensor) -> Tensor:
        """Rows of the weight, or some by number, float32."""


class Fused(Kernel):
    """A kernel that does what follows a product before it stores anything.

    Activations are scaled first, and those of one input may be shared by several products: `scaled` is equal for all
    kernels of one class.
    """

    @abstractmethod
    def scaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X (tokens, columns) as it is multiplied, and the scale of each token, (tokens,)."""

    @abstractmethod
    def finished(
        self, scaled: tuple[Tensor, Tensor], buffers: Buffers, layer: Layer, ending: Ending, dtype: torch.dtype
    ) -> Tensor:
        """The product with all that follows it: (tokens, rows), of a dtype of floats."""
