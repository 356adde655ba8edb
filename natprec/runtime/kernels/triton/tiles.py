"""How the output is cut into programs: data. The first tile is the default, the others are what a GPU is tuned over.

Many tokens take the weights as the *left* operand, which the tensor core of sm_90 reads from registers and that of
sm_100 from its own memory; a right one would be written to shared memory first, two bytes at a time. On other machines
both operands are registers, and warps side by side along the rows then hold each word once. With 16 tokens weights
to the right leave the sums in the order in which they are stored.

Those for all machines and for sm_90 were found on an H200 (docs/kernels.md); the others by what the compiler says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from natprec.runtime.kernels.layout import TILE


@dataclass(frozen=True)
class Tile:
    """One program's share of the output, and how it is compiled.

    Attributes:
        tokens: BM.
        rows: BN; divides `natprec.runtime.kernels.layout.ROWS`.
        join: steps of R columns in one dot, at most; 1, 2 or 4.
        left: weights are the left operand.
        warps: of 32 threads.
        stages: buffers of loaded tiles.
        columns: of one turn of the loop; 64, 128 or 256.
        shares: programs for each multiprocessor that sharing the columns of an output tile aims at.
        registers: the most per thread; None is as many as the compiler likes.
    """

    tokens: int
    rows: int
    join: int = 4
    left: bool = False
    warps: int = 4
    stages: int = 3
    columns: int = 128
    shares: float = 1.0
    registers: int | None = None


FEW_TOKENS, SOME_TOKENS = 16, 64

DECODE = (Tile(16, 64, join=2, shares=3.5), Tile(16, 64, shares=3.5))
"""Few tokens, all machines: the bytes of the weights are what counts, so many small programs."""

DECODE_CODES = (Tile(16, 64, shares=3.5, registers=128), Tile(16, 64, join=2, columns=64, shares=3.5))
"""The same of int8 activations."""

BATCH = (Tile(64, 64, left=True, columns=64, shares=2.5), Tile(32, 64, left=True, columns=64, shares=2.5))
"""Some tokens, as of several texts at once, all machines."""

PREFILL = {
    80: (Tile(64, 128, join=1, left=True, warps=8), Tile(32, 128, join=1, left=True, warps=8)),
    90: (Tile(128, 64, left=True), Tile(64, 64, left=True)),
    100: (Tile(64, 128, left=True, warps=8), Tile(64, 128, join=1, left=True, warps=8)),
    120: (Tile(64, 128, join=1, left=True, warps=8), Tile(32, 128, join=1, left=True, warps=8)),
}
"""More tokens, by the lowest compute capability that a row is for."""

PREFILL_CODES = PREFILL | {90: (Tile(128, 64, left=True, columns=64), Tile(64, 128, left=True, columns=64))}
"""Of int8 activations."""

PREFILL_BYTES = PREFILL | {90: (Tile(64, 128, left=True, columns=64), Tile(128, 64, left=True, columns=64))}
"""Of 8-bit weights."""

PREFILL_FINE = PREFILL | {
    90: (Tile(64, 64, left=True), Tile(64, 64, left=True, columns=64)),
    100: (Tile(64, 128, left=True, warps=8, columns=64), Tile(64, 64, left=True, columns=64)),
}
"""Of floating-point weights, and of groups of one step: more is kept between a code and its sum. With 128 columns
Triton 3.9 makes an empty kernel of groups of 16 on sm_100a, and spills MXFP6 on sm_90a (docs/kernels.md)."""

VALUES = Tile(16, 64)
"""Of the kernel that only writes a weight's values; it has no tokens."""

TOKENS = Tile(1, 1, warps=8, columns=4096)
"""Of the kernels that norm and scale tokens, one to a program."""


def tiles(tokens: int, capability: int, bits: int, codes: bool, fine: bool = False) -> tuple[Tile, ...]:
    """The tiles for a product, the default first.

    Args:
        tokens: M.
        capability: of the device, such as 90.
        bits: of the weight.
        codes: activations are int8.
        fine: see `PREFILL_FINE`.
    """
    if tokens <= FEW_TOKENS:
        return DECODE_CODES if codes else DECODE
    if tokens <= SOME_TOKENS:
        return BATCH
    table = PREFILL_FINE if fine else PREFILL_BYTES if bits == 8 else PREFILL_CODES if codes else PREFILL
    return table[max((known for known in table if known <= capability), default=min(table))]


def sharing(tile: Tile, outputs: int, turns: int, processors: int) -> int:
    """Programs that share the columns of one output tile: 1 where there are enough of them anyway.

    A power of 2, or as many fewer as would have no columns.

    Args:
        outputs: tiles of the output.
        turns: of the loop over all columns.
        processors: multiprocessors of the GPU.
    """
    programs = 1
    while outputs * programs < tile.shares * processors and turns >= 2 * programs:
        programs *= 2
    return math.ceil(turns / math.ceil(turns / programs))


def span(group_size: int | None, tile: Tile) -> int:
    """Columns that are summed before they are scaled: the most that lie within one group and one turn.

    Args:
        group_size: None where all columns share a scale.
    """
    return tile.columns if group_size is None else math.gcd(group_size, tile.columns)


def join(tile: Tile, group_size: int | None, depth: int, widest: int) -> int:
    """Steps in one dot: what the tile asks for, as far as the span and the lanes of a word allow.

    Args:
        depth: R.
        widest: bits of the first plane.
    """
    return math.gcd(tile.join, span(group_size, tile) // depth, TILE // depth // widest)
