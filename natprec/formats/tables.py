"""The 4-bit formats of bitsandbytes: NormalFloat and its floating point, in blocks of a row under a float32 scale.

    nf4-g64      QLoRA's NormalFloat (Dettmers et al. 2023, arXiv:2305.14314, appendix E): 4.5 bits a weight
    nf4-g64-dq   the same with double quantization: a block's scale is a byte, 256 of them share a float32: 4.127 bits
    fp4-g64      sign, two exponent bits and one of mantissa, over 12

A scale is the largest magnitude of its block. Double quantization takes the mean off the scales of a weight and rounds
the rest to the dynamic 8-bit map (Dettmers et al. 2021, arXiv:2110.02861). The values are those of bitsandbytes 0.50
(`get_4bit_type`, `create_dynamic_map`), which a test compares. This module imports no torch.
"""

from __future__ import annotations

import re

from natprec.errors import InputError
from natprec.formats.codebook import Table
from natprec.formats.format import Format
from natprec.formats.scaling import PerGroup, PerScales, Scaling

NF4 = Table(
    "nf4",
    (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
)  # fmt: skip

_TWELFTHS = (0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)

FP4 = Table("fp4", tuple(each / 12 for each in (*(-x for x in reversed(_TWELFTHS)), 0.0, *_TWELFTHS)))


def _dynamic() -> tuple[float, ...]:
    """Seven decades of evenly spaced values, 2^i of them in decade i, with both signs; 0 and 1."""
    positive = []
    for power in range(7):
        step = 0.9 / 2**power
        positive += [10.0 ** (power - 6) * (0.1 + step * (index + 0.5)) for index in range(2**power)]
    return tuple(sorted([*positive, *(-each for each in positive), 0.0, 1.0]))


DYNAMIC = Table("dynamic8", _dynamic())
"""What scales are rounded to under double quantization."""

NESTED_BLOCK = 256
"""Scales that share a float32."""

BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Weights that share a scale, as bitsandbytes has kernels for on every device."""

_NAME = re.compile(r"(?P<table>nf4|fp4)-g(?P<block>[1-9]\d*)(?P<double>-dq)?", re.ASCII)


def four_bit(table: Table, block: int, double: bool = False) -> Format:
    """A format of bitsandbytes.

    Raises:
        InputError: a block size that bitsandbytes has no kernel for.
    """
    if block not in BLOCKS:
        raise InputError(f"block size {block} of {table.name}: bitsandbytes has {', '.join(map(str, BLOCKS))}")
    plain = Scaling(PerGroup(block), "float32")
    nested = Scaling(PerGroup(block), DYNAMIC, outer=Scaling(PerScales(NESTED_BLOCK), "float32"))
    return Format(f"{table.name}-g{block}" + ("-dq" if double else ""), table, nested if double else plain)


def parse_four_bit(name: str) -> Format | None:
    """The format with this name; None where it is not one of these.

    Raises:
        InputError: a block size that bitsandbytes has no kernel for.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return four_bit(NF4 if match["table"] == "nf4" else FP4, int(match["block"]), match["double"] is not None)


def beside_bytes(fmt: Format) -> int:
    """Bytes that bitsandbytes stores of each weight beside codes and scales: its tables, and a description in JSON."""
    return 4 * 16 + 80 + (4 * 256 + 100 if fmt.doubly_quantized else 0)


FOUR_BIT = tuple(four_bit(table, block, double) for block in BLOCKS for table in (NF4, FP4) for double in (True, False))
"""All of them."""
