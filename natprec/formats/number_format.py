"""A number format: integer codes of b bits that share a scale in groups along the input dimension.

    value = (code - zero_point) * scale        code in [-2**(b-1), 2**(b-1) - 1]

This is the integer grid of compressed-tensors (`pack-quantized`), which vLLM and transformers read.
A symmetric format has no zero point; its scale may be negative, so that the one extra negative
code can serve whichever side of the group reaches further.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from natprec.errors import InputError

CHANNEL = -1
"""Group size that stands for one scale per output channel (a whole row)."""

SCALE_BITS = 16
"""A scale is stored as float16 or bfloat16."""


@dataclass(frozen=True, order=True)
class NumberFormat:
    """An integer format for a weight of shape (rows, columns).

    Attributes:
        bits: width of a code, 1 to 8.
        group_size: weights of one row that share a scale; `CHANNEL` for the whole row.
        symmetric: no zero point.
    """

    bits: int
    group_size: int
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise InputError(f"format of {self.bits} bits: integer formats have 1 to 8 bits")
        if self.group_size < 1 and self.group_size != CHANNEL:
            raise InputError(f"group size {self.group_size}: use a positive size, or -1 for a whole row")

    @property
    def name(self) -> str:
        """For example `int4-g64` or `int8-channel-asym`."""
        group = f"g{self.group_size}" if self.group_size != CHANNEL else "channel"
        return f"int{self.bits}-{group}" + ("" if self.symmetric else "-asym")

    @property
    def float_offset(self) -> bool:
        """Whether groups have an offset that is no multiple of the scale, instead of a zero point."""
        return False

    @property
    def nested(self) -> bool:
        """Whether scales are themselves quantized."""
        return False

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def divides(self, columns: int) -> bool:
        """Whether rows of this many weights split into whole groups."""
        return self.group_size == CHANNEL or columns % self.group_size == 0

    def groups(self, columns: int) -> int:
        """Scales per row."""
        return 1 if self.group_size == CHANNEL else columns // self.group_size

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Bytes of the densely packed weight: codes, scales and zero points, padded to 32-bit words."""
        codes = rows * math.ceil(columns * self.bits / 32) * 4
        zeros = 0 if self.symmetric else math.ceil(rows * self.bits / 32) * 4 * self.groups(columns)
        return codes + self.scale_bytes(rows, columns) + zeros

    def scale_bytes(self, rows: int, columns: int) -> int:
        """Bytes of the scales alone."""
        return rows * self.groups(columns) * SCALE_BITS // 8
