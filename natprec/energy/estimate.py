"""Joules of a token where no counter is: an interval from counted bytes and operations, sourced constants, and seconds.

On a CPU the low end is the busy threads' share of the package at its lowest, all weights in cache; the high end adds
memory and operations to the highest share, which may hold them already. On a GPU the low end is bytes and operations
alone; the high end is the board's rated power all the time. An interval has no middle that means anything, and two of
them are never ranked: they differ by what was modelled.
"""

from __future__ import annotations

from dataclasses import dataclass

from natprec.costs.peaks import Constant
from natprec.energy.constants import constant, of_gpu
from natprec.energy.footprint import Footprint

GPU_MEMORY = {"4090": "gddr6x", "l40s": "gddr6"}
"""A word of a GPU's name → its memory; all others are taken as HBM2, the most frugal."""


@dataclass(frozen=True)
class Estimate:
    """An interval of joules per token, and the constants that it rests on."""

    low: float
    high: float
    assumptions: tuple[Constant, ...]


def estimate(
    own: Footprint,
    *,
    seconds: float,
    tokens: float,
    bytes_read: float,
    threads: int,
    gpu: str | None = None,
    limit_watts: float | None = None,
) -> Estimate | None:
    """Of one token; None: on a GPU whose rated power is not known.

    Args:
        seconds: measured, for each token.
        tokens: that share a step.
        bytes_read: of a step.
        threads: busy ones of a CPU.
        limit_watts: of the board, where the driver tells it.
    """
    operations = 2 * (own.weights or 0)
    if gpu is None:
        memory, work, thread = (
            constant("joules_per_bit", "ddr"),
            constant("joules_per_operation", "float32"),
            constant("watts_per_thread", "cpu"),
        )
        low = thread.low * threads * seconds
        high = thread.high * threads * seconds + 8 * bytes_read / tokens * memory.high + operations * work.high
        return Estimate(low, high, (memory, work, thread))
    kind = next((name for word, name in GPU_MEMORY.items() if word in gpu.lower()), "hbm2")
    memory, work = constant("joules_per_bit", kind), constant("joules_per_operation", "float16")
    board = of_gpu("board_watts", gpu)
    if limit_watts is not None:
        board = Constant("board_watts.limit", limit_watts, limit_watts, "W", "the driver's power limit", "read")
    if board is None:
        return None
    low = 8 * own.must_move(bytes_read) / tokens * memory.low + operations * work.low
    return Estimate(min(low, board.high * seconds), board.high * seconds, (memory, work, board))
