"""The epilogue: what happens to an accumulator between the product and the one rounding at its end (T11, T12).

    accumulate → scale, bias → activation → gated product → residual → quantize once

The accumulator is the most precise value there will ever be of the result. Each of these steps needs only its own
element (or channel), so all of them can be done before anything is stored; and of all ways to end on a given
grid, rounding once, last, is the nearest. What needs other elements (a norm, a scale that depends on the whole
row) is not an epilogue: the scale of the output is therefore static.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from natprec.errors import InputError, unknown

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda value: value,
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda value: functional.gelu(value, approximate="tanh"),
}

CODES = (-128, 127)
"""Range of the int8 codes of a quantized output."""


@dataclass(frozen=True)
class Epilogue:
    """A fused epilogue, without its tensors: two calls with equal epilogues run the same kernel.

    Attributes:
        activation: a name in `ACTIVATIONS`.
        gated: the activated value is multiplied by a tensor, as in silu(gate) · up.
        residual: a tensor is added after that.
        output_scale: the result is stored as int8 codes, value ≈ code · output_scale; None stores floats.
    """

    activation: str = "none"
    gated: bool = False
    residual: bool = False
    output_scale: float | None = None

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)
        if self.output_scale is not None and not 0 < self.output_scale < math.inf:
            raise InputError(f"output scale {self.output_scale}: use a positive, finite step, or None for floats")

    @property
    def name(self) -> str:
        """For example `silu+gated+int8`; `none` for no epilogue at all.

        >>> Epilogue("silu", gated=True, output_scale=0.1).name
        'silu+gated+int8'
        """
        parts = [self.activation] if self.activation != "none" else []
        parts += [name for name in ("gated", "residual") if getattr(self, name)]
        return "+".join(parts + (["int8"] if self.output_scale is not None else [])) or "none"

    def apply(
        self,
        value: Tensor,
        bias: Tensor | None = None,
        multiplier: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """What a kernel stores, eagerly, in the dtype of the accumulator.

        Args:
            value: (tokens, rows), the scaled accumulator; float32 or float64.
            bias: (rows,).
            multiplier: (tokens, rows), where `gated`.
            residual: (tokens, rows), where `residual`.
        Returns:
            (tokens, rows), int8 where the output is quantized, else the dtype of `value`.
        Raises:
            InputError: a tensor that the epilogue needs is missing, or one is given that it has no use for.
        """
        self.check(multiplier, residual)
        if bias is not None:
            value = value + bias.to(value.dtype)
        value = ACTIVATIONS[self.activation](value)
        if multiplier is not None:
            value = value * multiplier.to(value.dtype)
        if residual is not None:
            value = value + residual.to(value.dtype)
        return value if self.output_scale is None else round_to_codes(value, self.output_scale)

    def check(self, multiplier: Tensor | None, residual: Tensor | None) -> None:
        """Whether the tensors are those that the epilogue names.

        Raises:
            InputError: one is missing, or one too many.
        """
        for name, wanted, given in (("multiplier", self.gated, multiplier), ("residual", self.residual, residual)):
            if wanted != (given is not None):
                state = "needs" if wanted else "has no use for"
                raise InputError(f"epilogue {self.name!r} {state} a {name}; give one exactly where it names one")


@dataclass(frozen=True)
class Ending:
    """An epilogue with its tensors: all that follows one product.

    Attributes:
        bias: (rows,).
        multiplier: (tokens, rows), where the epilogue is gated.
        residual: (tokens, rows), where it has one.
    """

    epilogue: Epilogue = Epilogue()
    bias: Tensor | None = None
    multiplier: Tensor | None = None
    residual: Tensor | None = None

    def apply(self, value: Tensor) -> Tensor:
        """See `Epilogue.apply`."""
        return self.epilogue.apply(value, self.bias, self.multiplier, self.residual)


NOTHING = Ending()
"""What follows a product whose result is stored as it is."""


def round_to_codes(value: Tensor, scale: float) -> Tensor:
    """Nearest int8 codes, half to even, ends clamped."""
    return (value / scale).round().clamp(*CODES).to(torch.int8)
