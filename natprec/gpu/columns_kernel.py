"""GPTQ's columns on a GPU: each program takes some rows of the weight through all columns of a block.

A program is one warp, a thread of it has one row: its errors are registers, and what a column loses of the errors
before it is a sum over those. So nothing waits for another thread, and nothing is shared.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from natprec.formats import Float

COLUMNS, ROWS, WARPS = 64, 32, 1
"""Of a block, at most; of a program; and its warps."""


@triton.jit
def round_block(
    block,
    factor,
    scale,
    offset,
    low,
    high,
    errors,
    chosen,
    LEAST,  # the least power of two that has all of its mantissa
    HALF,  # what a value of a float's power of two is added to, so that its last bit is one step
    COUNT,  # columns
    N,  # rows
    STRIDE,  # floats from one column of `block` to the next
    ACROSS,  # of `factor`
    GRID,  # of `scale` and `offset`
    FLOATS: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
):
    """See `natprec.gpu.columns.round_columns`; all that is two-dimensional is (columns, rows)."""
    k = tl.arange(0, BK)
    r = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = r < N
    least, most = tl.load(low + r, mask=inside, other=0.0), tl.load(high + r, mask=inside, other=0.0)
    lost = tl.zeros((BK, BN), dtype=tl.float32)
    for i in range(COUNT):
        push = tl.load(factor + k * ACROSS + i, mask=k < i, other=0.0)
        pivot = tl.load(factor + i * ACROSS + i)
        at = i * GRID + r
        step, origin = tl.load(scale + at, mask=inside, other=1.0), tl.load(offset + at, mask=inside, other=0.0)
        own = block + i * STRIDE + r
        left = tl.load(own, mask=inside, other=0.0) - tl.sum(push[:, None] * lost, 0)
        wanted = tl.minimum(tl.maximum(tl.div_rn(left - origin, step), least), most)
        if FLOATS:
            power = tl.maximum((wanted.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True), LEAST)
            power *= HALF
            size = tl.abs((wanted + power) - power)
            code = tl.where(wanted.to(tl.int32, bitcast=True) < 0, -size, size)
        else:
            code = (wanted + 12582912.0) - 12582912.0
        value = code * step + origin
        error = tl.div_rn(left - value, pivot)
        lost = tl.where((k == i)[:, None], error[None, :], lost)
        into = i * N + r
        tl.store(chosen + into, code, mask=inside)
        tl.store(errors + into, error, mask=inside)
        tl.store(own, value, mask=inside)


def arguments(
    block: Tensor,
    factor: Tensor,
    scale: Tensor,
    offset: Tensor,
    low: Tensor,
    high: Tensor,
    errors: Tensor,
    chosen: Tensor,
    codebook: Float | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of `round_block` by name, and its constants."""
    columns, rows = block.shape
    values = {
        "block": block, "factor": factor, "scale": scale, "offset": offset, "low": low, "high": high,
        "errors": errors, "chosen": chosen, "LEAST": 2.0 ** (1 - codebook.bias) if codebook else 1.0,
        "HALF": 1.5 * 2.0 ** (23 - codebook.mantissa) if codebook else 1.0, "COUNT": columns, "N": rows,
        "STRIDE": block.stride(0), "ACROSS": factor.stride(0), "GRID": scale.stride(0),
    }  # fmt: skip
    return values, {"FLOATS": codebook is not None, "BK": COLUMNS, "BN": ROWS}


def launch(
    block: Tensor,
    factor: Tensor,
    scale: Tensor,
    offset: Tensor,
    low: Tensor,
    high: Tensor,
    errors: Tensor,
    chosen: Tensor,
    codebook: Float | None,
) -> None:
    """Round a block of at most `COLUMNS` columns in place, and fill `errors` and `chosen`."""
    scale, offset = scale.contiguous(), offset.contiguous()
    values, fixed = arguments(block, factor, scale, offset, low, high, errors, chosen, codebook)
    interpreted = triton.knobs.runtime.interpret
    # fusing would round a product and a sum once where the stored value is rounded twice
    options = {} if interpreted else {"num_warps": WARPS, "enable_fp_fusion": False}
    with torch.cuda.device(block.device) if block.is_cuda else torch.device("cpu"):
        round_block[(triton.cdiv(block.shape[1], ROWS),)](**values, **fixed, **options)
