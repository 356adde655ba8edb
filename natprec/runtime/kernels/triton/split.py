"""Columns of one output tile shared by several programs: the last one that arrives adds up what all of them stored.

One token gives so few output tiles that most of a GPU would idle. The sums are added in the order of the columns,
whoever arrives last, so that a result does not depend on timing. The counters end as they began, at zero.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gathered(value, inside, partial, arrived):
    """The sum over the programs of an output tile, and whether this one is the last and so knows it.

    Args:
        value: (BM, BN), float32, this program's sum.
        inside: (BM, 1), which tokens exist; the others' sums are neither stored nor read.
        partial: float32, BM · BN for each program of the grid.
        arrived: int32 zeros, one for each output tile.
    """
    number, programs = tl.program_id(2), tl.num_programs(2)
    output = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    BM: tl.constexpr = value.shape[0]
    BN: tl.constexpr = value.shape[1]
    sums = partial + output.to(tl.int64) * programs * (BM * BN)
    sums += tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
    tl.store(sums + number * (BM * BN), value, mask=inside)
    tl.debug_barrier()  # what all threads stored, before one of them says so
    last = tl.atomic_add(arrived + output, 1, sem="acq_rel") == programs - 1
    if last:
        value = tl.zeros_like(value)
        for other in range(0, programs):
            value += tl.load(sums + other * (BM * BN), mask=inside, other=0, cache_modifier=".cg")
        tl.store(arrived + output, 0)
    return value, last
