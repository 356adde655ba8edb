"""How the output is cut into programs: data. The first tile is the default, the others are what a GPU is tuned over.

Many tokens take the weights as the *left* operand, which the tensor core of sm_90 reads from registers and that of
sm_100 from its own memory; a right one would be written to shared memory first, two bytes at a time. On other machines
both operands are registers, and warps side by side along the rows then hold each word once. With 16 tokens weights
to the right leave the sums in the order in which they are stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from natprec.kernels.layout import STEPS


@dataclass(frozen=True)
class Tile:
    """One program's share of the output, and how it is compiled.

    Attributes:
        tokens: BM.
        rows: BN; divides `natprec.kernels.layout.ROWS`.
        join: steps of R columns in one dot, at most; 1, 2 or 4.
        left: weights are the left operand.
        warps: of 32 threads.
        stages: buffers of loaded tiles.
        registers: the most per thread; None is as many as the compiler likes.
    """

    tokens: int
    rows: int
    join: int = 4
    left: bool = False
    warps: int = 4
    stages: int = 3
    registers: int | None = None


FEW_TOKENS = 16

DECODE = (
    Tile(16, 64),
    Tile(16, 64, join=2),
    Tile(16, 64, join=2, registers=54),
    Tile(16, 32, join=2, warps=2, stages=5),
)
"""Up to 16 tokens, all machines: the bytes of the weights are what counts, so many small programs."""

DECODE_CODES = (Tile(16, 64, registers=168), Tile(16, 64, registers=128), Tile(16, 32, join=2, warps=2, stages=5))
"""The same of int8 activations: left alone, or held to 128, the compiler spills at 2 or 3 bits for one more program."""

PREFILL = {
    80: (Tile(64, 128, join=1, left=True, warps=8), Tile(32, 128, join=1, left=True, warps=8)),
    100: (Tile(64, 128, left=True, warps=8), Tile(64, 128, join=1, left=True, warps=8)),
    120: (Tile(64, 128, join=1, left=True, warps=8), Tile(32, 128, join=1, left=True, warps=8)),
}
"""More tokens, by the lowest compute capability (major and minor digit) that a row is for."""


def tiles(tokens: int, capability: int, codes: bool) -> tuple[Tile, ...]:
    """The tiles for a product, the default first.

    Args:
        tokens: M.
        capability: of the device, such as 90.
        codes: activations are int8.
    """
    if tokens <= FEW_TOKENS:
        return DECODE_CODES if codes else DECODE
    return PREFILL[max((known for known in PREFILL if known <= capability), default=min(PREFILL))]


PROGRAMS, STEPS_EACH = 4, 2
"""Programs for each multiprocessor that sharing columns aims at, and the tiles of columns that each has at least."""


def sharing(outputs: int, steps: int, processors: int) -> int:
    """Programs that share the columns of one output tile: a power of 2, or 1 where there are enough of them anyway.

    Args:
        outputs: tiles of the output.
        steps: tiles of 8·R columns.
        processors: multiprocessors of the GPU.
    """
    programs = 1
    while outputs * programs < PROGRAMS * processors and steps >= 2 * programs * STEPS_EACH:
        programs *= 2
    return programs


def span(group_size: int | None, depth: int) -> int:
    """Columns that are summed before they are scaled: the most that lie within one group and one tile.

    Args:
        group_size: None where all columns share a scale.
        depth: R.
    """
    return STEPS * depth if group_size is None else math.gcd(group_size, STEPS * depth)


def join(tile: Tile, group_size: int | None, depth: int) -> int:
    """Steps in one dot: what the tile asks for, as far as the span allows."""
    return math.gcd(tile.join, span(group_size, depth) // depth)
