"""One kernel: codes of 2 to 8 bits times floats or int8 codes, the whole epilogue before anything is stored.

Words (`natprec.runtime.kernels.layout`) are loaded once, 16 bytes a thread; each shift of them is an operand of a
tensor core, 2 or 4 codes in a register. Codes reach it as whole numbers, which 16-bit floats hold exactly; scales meet
the float32 sum of a group. So of the whole product only those sums are rounded. Where the output has few tiles, several
programs share the columns of one (`natprec.runtime.kernels.triton.split`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from natprec.runtime.kernels.triton.codes import held, joined, loaded_scale, numbers
from natprec.runtime.kernels.triton.fused import finish
from natprec.runtime.kernels.triton.split import gathered


@triton.jit
def planar_linear(
    x,
    x_scale,
    plane0,
    plane1,
    plane2,
    scale,
    zero,
    outer,
    bias,
    multiplier,
    residual,
    out,
    partial,  # sums of programs that share columns, and how many are there; None where one has them all
    arrived,
    M,
    N,
    PADDED,  # N, to whole tiles
    K,
    inverse_output_scale,
    BITS: tl.constexpr,
    MANTISSA: tl.constexpr,  # bits of floating-point codes; -1: integers
    SCALES: tl.constexpr,  # how scales are stored
    UNIT: tl.constexpr,  # what the kernel's numbers for codes are multiplied by
    PLANE0: tl.constexpr,  # bits of the planes; 0 where there is none
    PLANE1: tl.constexpr,
    PLANE2: tl.constexpr,
    TILE: tl.constexpr,  # columns of a tile of the layout
    WORDS: tl.constexpr,  # words of a step
    R: tl.constexpr,  # columns of a step
    TURN: tl.constexpr,  # columns of one turn of the loop
    GROUP: tl.constexpr,  # columns that share a scale; 0: all
    SPAN: tl.constexpr,  # columns summed before they are scaled: within one group and one turn
    EVEN: tl.constexpr,  # K consists of whole turns
    COMPUTE: tl.constexpr,  # dtype of the operands
    ACTIVATION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    JOIN: tl.constexpr,  # steps in one dot
    LEFT: tl.constexpr,  # weights are the left operand; the sum is then (rows, tokens)
):
    """out[m, n] = epilogue(Σ_k x[m, k] · (code[n, k] - zero[n, g]) · scale[n, g])."""
    T: tl.constexpr = 1 if LEFT else 0  # the dimension of tokens; rows have the other
    LANE: tl.constexpr = TILE // R  # bits of a word that one column has, and steps of a tile
    STEPS: tl.constexpr = TURN // R
    CODES: tl.constexpr = tl.int8 == COMPUTE
    WIDE: tl.constexpr = CODES and BITS == 8 and zero is not None  # code - zero point needs 9 bits
    SUM: tl.constexpr = tl.int32 if CODES else tl.float32

    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    k = _along(tl.arange(0, JOIN * R), 1 - T)
    # Weights are padded to whole tiles. Tokens outside are the last one again, and are not stored.
    inputs = x + _along(tl.minimum(rm, M - 1).to(tl.int64), T) * K + k
    words = rn[:, None] * WORDS + tl.arange(0, WORDS)[None, :]

    total = tl.zeros((BN, BM) if LEFT else (BM, BN), SUM if GROUP == 0 else tl.float32)
    heights = tl.zeros((BM,), tl.int32)  # Σ x, where WIDE
    if GROUP == 0:
        z = None if zero is None else tl.load(zero + rn)
    begin, end = 0, tl.cdiv(K, TURN)
    if partial is not None:
        share = tl.cdiv(end, tl.num_programs(2))
        begin = tl.program_id(2) * share
        end = tl.minimum(begin + share, end)
    for turn in range(begin, end):
        first = turn * STEPS
        words0, words1, words2 = None, None, None
        for step in tl.static_range(0, STEPS, JOIN):
            words0 = held(words0, plane0, words, PADDED * WORDS, first, step, PLANE0, LANE)
            if PLANE1 > 0:
                words1 = held(words1, plane1, words, PADDED * WORDS, first, step, PLANE1, LANE)
            if PLANE2 > 0:
                words2 = held(words2, plane2, words, PADDED * WORDS, first, step, PLANE2, LANE)
            if GROUP > 0 and step * R % SPAN == 0:
                at = (first + step) * R // GROUP * PADDED + rn
                s = loaded_scale(scale + at, outer, SCALES, UNIT)
                z = None if zero is None else tl.load(zero + at)
                part = tl.zeros_like(total).to(SUM)
                heights = tl.zeros((BM,), tl.int32)

            code = joined(words0, words1, words2, first, step, PLANE0, PLANE1, PLANE2, LANE, STEPS, JOIN)
            weights = numbers(code, None if WIDE else z, BITS, MANTISSA, COMPUTE)
            column = (first + step) * R
            values = tl.load(inputs + column) if EVEN else tl.load(inputs + column, mask=k < K - column, other=0)
            if WIDE:
                heights += tl.sum(values.to(tl.int32), 1 - T)
            values = values.to(COMPUTE)
            if GROUP == 0:
                total = _dot(weights, values, total, LEFT)
            else:
                part = _dot(weights, values, part, LEFT)
                if (step + JOIN) * R % SPAN == 0:
                    if WIDE:
                        part -= _along(heights, T) * _along(z.to(tl.int32), 1 - T)
                    total += part.to(tl.float32) * _along(s, 1 - T)
    if GROUP == 0:
        if WIDE:
            total -= _along(heights, T) * _along(z.to(tl.int32), 1 - T)
        s = loaded_scale(scale + rn, outer, SCALES, UNIT)
        total = total.to(tl.float32) * _along(s, 1 - T)
    value = tl.trans(total) if LEFT else total
    if x_scale is not None:
        value *= tl.load(x_scale + rm, mask=rm < M, other=0)[:, None]
    if partial is None:
        finish(value, rm, rn, M, N, bias, multiplier, residual, out, inverse_output_scale, ACTIVATION)
    else:
        value, last = gathered(value, (rm < M)[:, None], partial, arrived)
        if last:
            finish(value, rm, rn, M, N, bias, multiplier, residual, out, inverse_output_scale, ACTIVATION)


@triton.jit
def _along(vector, DIM: tl.constexpr):
    """The vector along one of two dimensions."""
    return tl.expand_dims(vector, 1 - DIM)


@triton.jit
def _dot(weights, values, sums, LEFT: tl.constexpr):
    """The sums and the product, in the accumulator's type."""
    if LEFT:
        sums = tl.dot(weights, values, sums, out_dtype=sums.dtype)
    else:
        sums = tl.dot(values, tl.trans(weights), sums, out_dtype=sums.dtype)
    return sums
