"""A number format: a codebook and a scaling.

    value = codebook value · scale + offset

Everything that has to be known of a format follows from the two: what it can store, its bytes, its name. So a plan, a
checkpoint and an engine profile speak of the same thing, and a format that one of them cannot say is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from natprec.formats.codebook import Codebook, Float, Integer, Table
from natprec.formats.scaling import PerBlock, PerChannel, PerGroup, PerScales, PerTensor, Scaling

if TYPE_CHECKING:
    import torch

WORD_BITS = 32
"""Codes of a row are packed into whole words."""


@dataclass(frozen=True)
class Format:
    """What a tensor is rounded to.

    Attributes:
        name: unique; `natprec.formats.parse_format` finds the format by it.
    """

    name: str
    codebook: Codebook
    scaling: Scaling

    def __hash__(self) -> int:
        """By the name, which is unique: a solver looks formats up thousands of times."""
        return hash(self.name)

    def __lt__(self, other: Format) -> bool:
        """Formats are listed from narrow to wide, then by name."""
        return (self.bits, self.name) < (other.bits, other.name)

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.codebook.bits

    @property
    def integer(self) -> Integer:
        """The codebook of a format whose codes are whole numbers.

        Raises:
            TypeError: they are not.
        """
        if not isinstance(self.codebook, Integer):
            raise TypeError(f"{self.name} has no integer codes")
        return self.codebook

    @property
    def code_dtype(self) -> torch.dtype:
        """Of codes in memory, see `Codebook.encode`."""
        import torch

        return torch.int8 if isinstance(self.codebook, Integer) else torch.uint8

    @property
    def floating(self) -> bool:
        """Whether codes are floating-point numbers."""
        return isinstance(self.codebook, Float)

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code of integers."""
        return self.integer.smallest, self.integer.largest

    @property
    def symmetric(self) -> bool:
        """Whether code 0 stands for 0, with no zero point or offset."""
        return self.scaling.zero == "none"

    @property
    def float_offset(self) -> bool:
        """Whether groups have an offset that is no multiple of the scale, instead of a zero point."""
        return self.scaling.zero == "float"

    @property
    def nested(self) -> bool:
        """Whether scales are themselves codes."""
        return not isinstance(self.scaling.dtype, str)

    @property
    def doubly_quantized(self) -> bool:
        """Whether scales, less their mean, are codes of a table: double quantization."""
        return isinstance(self.scaling.dtype, Table)

    @property
    def dynamic(self) -> bool:
        """Whether scales are found while the model runs, else they are fixed beforehand."""
        return self.scaling.dynamic

    @property
    def fixed(self) -> bool:
        """Whether something of the scales is fixed before the model runs: all of it, or an outer scale."""
        return not self.dynamic or self.scaling.outer is not None

    @property
    def full_range(self) -> bool:
        """See `Scaling`."""
        return self.scaling.full_range

    @property
    def group_size(self) -> int | None:
        """Neighbours that share a scale; None where there are no groups."""
        granularity = self.scaling.granularity
        return granularity.size if isinstance(granularity, PerGroup) else None

    @property
    def block(self) -> int:
        """Weights of a row that are stored together: those of an outer scale, else of a group."""
        outer = self.scaling.outer
        if outer is not None and isinstance(outer.granularity, PerGroup):
            return outer.granularity.size
        return self.group_size or 1

    def divides(self, features: int) -> bool:
        """Whether rows, or tokens, of this many features split into whole blocks."""
        return features % self.block == 0

    def span(self, columns: int) -> int:
        """Neighbours in a row of so many that share a scale."""
        granularity = self.scaling.granularity
        return granularity.columns if isinstance(granularity, PerBlock) else self.group_size or columns

    def groups(self, columns: int) -> int:
        """Scales per row; the last block of a row may be shorter than the others."""
        ragged = isinstance(self.scaling.granularity, PerBlock)
        return math.ceil(columns / self.span(columns)) if ragged else columns // self.span(columns)

    @property
    def by_row(self) -> bool:
        """Whether codes of a row follow from that row alone: no scale is shared with others."""
        outer = self.scaling.outer
        own = outer is None or not isinstance(outer.granularity, PerTensor | PerScales)
        return own and not isinstance(self.scaling.granularity, PerBlock | PerTensor)

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Bytes of the densely packed weight: codes, scales and zero points, padded to 32-bit words."""
        codes = rows * math.ceil(columns * self.bits / WORD_BITS) * 4
        zeros = math.ceil(rows * self.bits / WORD_BITS) * 4 * self.groups(columns) if self.scaling.zero == "code" else 0
        return codes + self.scale_bytes(rows, columns) + zeros

    def stored_bits(self, shape: tuple[int, int]) -> float:
        """Bits per weight of a weight (rows, columns), scales included."""
        return 8 * self.stored_bytes(*shape) / math.prod(shape)

    def scale_bytes(self, rows: int, columns: int) -> int:
        """Bytes of the scales alone, of float offsets and of outer scales."""
        return _scale_bits(self.scaling, rows, columns) // 8


def _scale_bits(scaling: Scaling, rows: int, columns: int) -> int:
    if scaling.dynamic:
        return 0
    granularity = scaling.granularity
    if isinstance(granularity, PerGroup):
        count = rows * (columns // granularity.size)
    elif isinstance(granularity, PerBlock):
        count = math.ceil(rows / granularity.rows) * math.ceil(columns / granularity.columns)
    else:
        count = rows if isinstance(granularity, PerChannel) else 1
    stored = count * scaling.bits * (2 if scaling.zero == "float" else 1)
    if scaling.outer is not None and isinstance(scaling.outer.granularity, PerScales):
        return stored + scaling.outer.bits * (math.ceil(count / scaling.outer.granularity.size) + 1)
    return stored + (_scale_bits(scaling.outer, rows, columns) if scaling.outer else 0)
