"""Tells how many sequences share a buffer of squared gradients."""

from __future__ import annotations

POOL_MEMORY = 1 << 30
"""Bytes that the squared gradients of one site may take; beyond it sequences share a pool."""

MIN_POOLS = 4


def pools(sequences: int, parts: int, elements: int) -> int:
    """How many pools sequences form: as many as memory allows, all of one size and of one kind of text.

    Args:
        sequences: in `parts` kinds of text.
        elements: of all weights that share the memory.
    """
    affordable, each = max(MIN_POOLS, POOL_MEMORY // (4 * elements)), sequences // parts
    return parts * max(n for n in range(1, each + 1) if each % n == 0 and (n == 1 or n * parts <= affordable))
