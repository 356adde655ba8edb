"""Codebooks: the values that a code can stand for, in units of its scale.

    Integer(4)        -8 … 7            two's complement, as compressed-tensors packs it
    Float(4, 3)       0, 2⁻⁹ … 448      E4M3 (OCP 8-bit floating point); Float(2, 1) is the E2M1 of NVFP4 and MXFP4
    Table(values)     any values        NormalFloat and the like

`nearest_` is the only rounding that natprec knows; whatever rounds (to nearest, GPTQ, YAQA, learned, activations) asks
a codebook. This module imports no torch, so that a format can be named without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from natprec.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


class Codebook(Protocol):
    """What a code can stand for."""

    @property
    def name(self) -> str:
        """For example `int4`, `e4m3`."""

    @property
    def bits(self) -> int:
        """Width of a code."""

    @property
    def smallest(self) -> float:
        """The least value."""

    @property
    def largest(self) -> float:
        """The greatest value."""

    def nearest_(self, values: Tensor) -> Tensor:
        """The nearest values of the codebook, in units of the scale; ties to even codes; overwrites `values`."""

    def encode(self, values: Tensor) -> Tensor:
        """Codes of values that the codebook holds: int8 for integers, else uint8 as they are stored."""

    def decode(self, codes: Tensor) -> Tensor:
        """The values of codes, float32."""

    def __hash__(self) -> int:
        """Codebooks are values."""


@dataclass(frozen=True, order=True)
class Integer:
    """Whole numbers of 1 to 8 bits.

    Attributes:
        signed: from -2^(b-1) on; otherwise from 0.
        balanced: without the one negative code that has no positive counterpart.
    """

    bits: int
    signed: bool = True
    balanced: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise InputError(f"format of {self.bits} bits: integer formats have 1 to 8 bits")

    @property
    def name(self) -> str:
        """For example `int4` or `uint4`."""
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    @property
    def smallest(self) -> int:
        """The least code, which is its value."""
        return -(2 ** (self.bits - 1)) + self.balanced if self.signed else 0

    @property
    def largest(self) -> int:
        """The greatest code, which is its value."""
        return 2 ** (self.bits - self.signed) - 1

    def nearest_(self, values: Tensor) -> Tensor:
        """See `Codebook`."""
        return values.round_().clamp_(self.smallest, self.largest)

    def encode(self, values: Tensor) -> Tensor:
        """See `Codebook`: int8, unsigned codes of 8 bits wrapped."""
        import torch

        return values.to(torch.int8)

    def decode(self, codes: Tensor) -> Tensor:
        """See `Codebook`."""
        import torch

        return codes.to(torch.float32)


@dataclass(frozen=True, order=True)
class Float:
    """Floating-point numbers of at most 8 bits: a sign, `exponent` bits, `mantissa` bits, and subnormals.

    The greatest values are those of the OCP formats: E4M3 gives one mantissa code of the top exponent to NaN, E5M2 the
    whole top exponent to infinities and NaN, the narrower ones nothing.
    """

    exponent: int
    mantissa: int

    def __post_init__(self) -> None:
        if self.exponent < 2 or self.mantissa < 0 or not 3 <= self.bits <= 8:
            raise InputError(
                f"float format e{self.exponent}m{self.mantissa}: use 2 exponent bits or more, 3 to 8 bits in all"
            )

    @property
    def name(self) -> str:
        """For example `e4m3`."""
        return f"e{self.exponent}m{self.mantissa}"

    @property
    def bits(self) -> int:
        """Width of a code, with its sign."""
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        """What is subtracted of a stored exponent."""
        return 2 ** (self.exponent - 1) - 1

    @property
    def largest(self) -> float:
        """The greatest finite value: 448 of E4M3, 57344 of E5M2, 6 of E2M1."""
        top, fraction = 2**self.exponent - 1 - self.bias, 2 - 2.0**-self.mantissa
        if self.bits == 8 and self.exponent == 5:
            top -= 1
        elif self.bits == 8:
            fraction -= 2.0**-self.mantissa
        return fraction * 2.0**top

    @property
    def smallest(self) -> float:
        """The least value."""
        return -self.largest

    def nearest_(self, values: Tensor) -> Tensor:
        """See `Codebook`: what exceeds the range saturates."""
        import torch

        values.clamp_(self.smallest, self.largest)
        if values.dtype == torch.float32:  # a sum whose last bit is worth one step rounds as it should
            power = (values.view(torch.int32) & 0x7F800000).view(torch.float32).clamp_(min=2.0 ** (1 - self.bias))
            power.mul_(1.5 * 2.0 ** (23 - self.mantissa))
            return torch.copysign((values + power).sub_(power), values, out=values)
        exponent = torch.frexp(values)[1].sub_(1).clamp_(min=1 - self.bias)
        step = torch.ldexp(torch.ones_like(values), exponent - self.mantissa)
        return values.div_(step).round_().mul_(step)

    def encode(self, values: Tensor) -> Tensor:
        """See `Codebook`: sign, exponent and mantissa as stored, in the low bits of a byte."""
        import torch

        size = values.abs().float()
        exponent = torch.frexp(size)[1].sub_(1).masked_fill_(size == 0, 1 - self.bias).clamp_(min=1 - self.bias)
        steps = torch.ldexp(size, self.mantissa - exponent).round_().to(torch.int32)  # subnormal below 2^mantissa
        code = steps + ((exponent + self.bias - 1) << self.mantissa)
        return (code | (torch.signbit(values).to(torch.int32) << (self.bits - 1))).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """See `Codebook`."""
        import torch

        code = codes.to(torch.int32)
        size = code & (2 ** (self.bits - 1) - 1)
        exponent, fraction = size >> self.mantissa, size & (2**self.mantissa - 1)
        normal = exponent > 0
        steps = torch.where(normal, fraction + 2**self.mantissa, fraction).float()
        value = torch.ldexp(steps, exponent.clamp(min=1) - self.bias - self.mantissa)
        return torch.where((code >> (self.bits - 1)) > 0, -value, value)


@dataclass(frozen=True, order=True)
class Table:
    """Any rising values, at most 256.

    Attributes:
        label: how formats call it.
        values: in rising order; the code is the place.
    """

    label: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.values) <= 256 or list(self.values) != sorted(set(self.values)):
            raise InputError(
                f"table {self.label!r} of {len(self.values)} values: use 2 to 256 different ones that rise"
            )

    @property
    def name(self) -> str:
        """The label."""
        return self.label

    @property
    def bits(self) -> int:
        """Width of a code."""
        return (len(self.values) - 1).bit_length()

    @property
    def smallest(self) -> float:
        """The least value."""
        return self.values[0]

    @property
    def largest(self) -> float:
        """The greatest value."""
        return self.values[-1]

    def nearest_(self, values: Tensor) -> Tensor:
        """See `Codebook`; a tie goes to the lower value."""
        return values.copy_(self.decode(self.encode(values)))

    def encode(self, values: Tensor) -> Tensor:
        """See `Codebook`: the place of the nearest value."""
        import torch

        table = torch.tensor(self.values, device=values.device)
        return torch.bucketize(values.float(), (table[1:] + table[:-1]) / 2).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """See `Codebook`."""
        import torch

        return torch.tensor(self.values, device=codes.device)[codes.to(torch.int64)]


E4M3 = Float(4, 3)
E3M2 = Float(3, 2)
E2M3 = Float(2, 3)
E2M1 = Float(2, 1)
