"""What stands between products, one token to a program: its norm, and its values in units of the largest of them."""

from __future__ import annotations

import triton
import triton.language as tl

from natprec.runtime.kernels.triton.fused import rounded


@triton.jit
def scaled_tokens(
    x,
    values,
    scale,
    K,
    CODES: tl.constexpr,  # int8 codes; else halves
    BLOCK: tl.constexpr,  # columns of one turn
):
    """scale[m] = the largest |x[m, k]|, of codes over 127, or 1 where all are 0; values[m, k] = x[m, k] / scale[m]."""
    row = tl.program_id(0)
    x += row.to(tl.int64) * K
    values += row.to(tl.int64) * K
    k = tl.arange(0, BLOCK)
    most = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, K, BLOCK):
        most = tl.maximum(most, tl.abs(tl.load(x + begin + k, mask=k < K - begin, other=0).to(tl.float32)))
    largest = tl.max(most, 0)
    step = tl.where(largest > 0, tl.div_rn(largest, 127.0) if CODES else largest, 1.0)
    tl.store(scale + row, step)
    for begin in range(0, K, BLOCK):
        inside = k < K - begin
        value = tl.div_rn(tl.load(x + begin + k, mask=inside, other=0).to(tl.float32), step)
        if CODES:
            value = rounded(value)
        tl.store(values + begin + k, value.to(values.dtype.element_ty), mask=inside)


@triton.jit
def normed_tokens(
    x,
    weight,
    out,
    K,
    eps,
    BLOCK: tl.constexpr,  # columns of one turn
):
    """out[m, k] = x[m, k] / root(mean of x[m]² + eps) · weight[k]."""
    row = tl.program_id(0)
    x += row.to(tl.int64) * K
    out += row.to(tl.int64) * K
    k = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, K, BLOCK):
        value = tl.load(x + begin + k, mask=k < K - begin, other=0)
        squares += value * value
    root = tl.sqrt_rn(tl.sum(squares, 0) / K + eps)
    for begin in range(0, K, BLOCK):
        inside = k < K - begin
        value = tl.div_rn(tl.load(x + begin + k, mask=inside, other=0), root)
        tl.store(out + begin + k, value * tl.load(weight + begin + k, mask=inside, other=0), mask=inside)
