"""The cases of `gpu_bench`: products of two models, and random operands for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from torch import Tensor

from natprec.formats import integer
from natprec.quantizers import QuantizedTensor
from natprec.runtime.kernels import Epilogue, reference
from natprec.runtime.kernels.traffic import Product

GROUP = 64
SHAPES = {
    "smollm2-135m": {"qkv": (960, 576), "o": (576, 576), "gate": (1536, 576), "down": (576, 1536)},
    "llama-3.1-8b": {"qkv": (6144, 4096), "o": (4096, 4096), "gate": (14336, 4096), "down": (4096, 14336)},
}
"""Model → layer → rows and columns."""

EPILOGUES = {
    "qkv": Epilogue(),
    "o": Epilogue(residual=True),
    "gate": Epilogue("silu", gated=True),
    "down": Epilogue(residual=True),
}
OUTPUT_SCALE = 0.02
"""Of the gated product beside int8 activations, which is then the int8 input of what follows."""

Call = Callable[[int], Tensor]
"""A prepared product; its argument says which copy of the weight is used."""


class NotRun(Exception):
    """Why a kernel does not take part."""


@dataclass(frozen=True)
class Case:
    """One product: x (tokens, columns) times a weight, then the layer's epilogue."""

    model: str
    layer: str
    bits: int
    tokens: int
    coded: bool

    @property
    def product(self) -> Product:
        """With its shape, format and epilogue."""
        rows, columns = SHAPES[self.model][self.layer]
        epilogue = EPILOGUES[self.layer]
        if self.coded and epilogue.gated:
            epilogue = replace(epilogue, output_scale=OUTPUT_SCALE)
        return Product(self.tokens, rows, columns, integer(self.bits, GROUP), epilogue, self.coded)


class Operands:
    """Random tensors of a case, on a device."""

    def __init__(self, case: Case, device: str, copies: int) -> None:
        draw = torch.Generator(device).manual_seed(case.bits)
        self.product, self.device = case.product, device
        shape = (case.tokens, self.product.rows)
        self.x = torch.randn(case.tokens, self.product.columns, generator=draw, device=device).half()
        self.x_scale: Tensor | None = None
        if case.coded:
            self.codes, self.x_scale = reference.quantize_tokens(self.x)
            self.x = (self.codes * self.x_scale.unsqueeze(1)).half()
        epilogue = self.product.epilogue
        first, second = (torch.randn(shape, generator=draw, device=device).half() for _ in range(2))
        self.multiplier = first if epilogue.gated else None
        self.residual = second if epilogue.residual else None
        self.weights = [self._weight(draw) for _ in range(copies)]

    def _weight(self, draw: torch.Generator) -> QuantizedTensor:
        (low, high), rows, columns = self.product.format.code_range, self.product.rows, self.product.columns
        where = {"generator": draw, "device": self.device}
        codes = torch.randint(low, high + 1, (rows, columns), dtype=torch.int8, **where)
        scale = (0.5 + torch.rand(rows, columns // GROUP, **where)) / (high * columns**0.5)
        return QuantizedTensor(self.product.format, codes, scale.half(), None)

    @cached_property
    def expected(self) -> Tensor:
        """Of the first weight, float64 or int8: the specification."""
        inputs = self.x if self.x_scale is None else self.codes
        return reference.linear(
            inputs, self.weights[0], x_scale=self.x_scale, epilogue=self.product.epilogue,
            multiplier=self.multiplier, residual=self.residual,
        )  # fmt: skip

    def then_epilogue(self, products: Callable[[int], Tensor]) -> Call:
        """An unfused kernel's product, and the epilogue as one kernel more."""
        epilogue = self.product.epilogue
        if epilogue == Epilogue():
            return products
        apply = compiled(epilogue) if self.device != "cpu" else epilogue.apply
        return lambda copy: apply(products(copy), None, self.multiplier, self.residual)


@cache
def compiled(epilogue: Epilogue) -> Callable[..., Tensor]:
    """The epilogue as one kernel, compiled once for all shapes and each combination of operands."""
    torch._dynamo.config.recompile_limit = 64  # beyond it, Torch would run it uncompiled, and say so on stderr only
    return torch.compile(epilogue.apply, dynamic=True)
