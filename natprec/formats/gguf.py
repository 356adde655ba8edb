"""GGUF's tensor types as number formats: what llama.cpp runs (ggml's block and K types).

    value = code * scale + offset

A block type stores 32 weights under a float16 scale; Q4_1 and Q5_1 add a float16 offset (their 'minimum'). A K type
stores 256 weights as a super-block: the scale of each 16 or 32 of them, and the offset where there is one, is quantized
in turn, to an integer times a float16 of the super-block. IQ types take codes from tables and are no such grid.
Layouts: `block_q4_0` to `block_q6_K` of ggml-common.h; the `gguf` package unpacks them.
"""

from __future__ import annotations

from dataclasses import dataclass

from natprec.formats.number_format import NumberFormat


@dataclass(frozen=True, order=True)
class GGUFType(NumberFormat):
    """One of GGUF's types.

    Attributes:
        label: its name in GGUF.
        codes: smallest and largest.
        block: weights stored together; divides the row.
        block_bytes: of such a block, scales and offsets included.
        scale_codes: smallest and largest integer that stands for a group's scale within the block; None where each
            scale is a float16 of its own. Offsets of such types are never positive.
    """

    label: str = ""
    codes: tuple[int, int] = (0, 0)
    block: int = 32
    block_bytes: int = 0
    scale_codes: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """For example `Q4_K`."""
        return self.label

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return self.codes

    @property
    def float_offset(self) -> bool:
        """Whether groups have an offset that is no multiple of the scale."""
        return not self.symmetric

    @property
    def nested(self) -> bool:
        """Whether scales are themselves quantized."""
        return self.scale_codes is not None

    def divides(self, columns: int) -> bool:
        """Whether rows of this many weights split into whole blocks."""
        return columns % self.block == 0

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Bytes of the packed weight."""
        return rows * columns // self.block * self.block_bytes


GGUF_TYPES = {
    fmt.label: fmt
    for fmt in (
        GGUFType(2, 16, False, "Q2_K", (0, 3), 256, 84, (0, 15)),
        GGUFType(3, 16, True, "Q3_K", (-4, 3), 256, 110, (-32, 31)),
        GGUFType(4, 32, True, "Q4_0", (-8, 7), 32, 18),
        GGUFType(4, 32, False, "Q4_1", (0, 15), 32, 20),
        GGUFType(4, 32, False, "Q4_K", (0, 15), 256, 144, (0, 63)),
        GGUFType(5, 32, True, "Q5_0", (-16, 15), 32, 22),
        GGUFType(5, 32, False, "Q5_1", (0, 31), 32, 24),
        GGUFType(5, 32, False, "Q5_K", (0, 31), 256, 176, (0, 63)),
        GGUFType(6, 16, True, "Q6_K", (-32, 31), 256, 210, (-128, 127)),
        GGUFType(8, 32, True, "Q8_0", (-127, 127), 32, 34),
    )
}
"""Narrowest first."""
