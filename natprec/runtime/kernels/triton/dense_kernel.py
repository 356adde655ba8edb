"""One kernel more: rows of a packed weight as float16, for cuBLAS, where many tokens use each of them."""

from __future__ import annotations

import triton
import triton.language as tl

from natprec.runtime.kernels.triton.codes import held, joined, loaded_scale, numbers


@triton.jit
def planar_values(
    plane0,
    plane1,
    plane2,
    scale,
    zero,
    outer,
    unit,
    out,
    begin,  # the first row
    N,  # the last row and one
    PADDED,
    K,
    BITS: tl.constexpr,
    MANTISSA: tl.constexpr,  # bits of floating-point codes; -1: integers
    SCALES: tl.constexpr,  # how scales are stored
    UNIT: tl.constexpr,  # what the kernel's numbers for codes are multiplied by
    PLANE0: tl.constexpr,
    PLANE1: tl.constexpr,
    PLANE2: tl.constexpr,
    WORDS: tl.constexpr,
    TILE: tl.constexpr,
    R: tl.constexpr,
    GROUP: tl.constexpr,  # columns that share a scale; 0: all
    TURN: tl.constexpr,  # columns of one program
    SPAN: tl.constexpr,  # columns that share a scale within it
    BN: tl.constexpr,
    JOIN: tl.constexpr,
):
    """out[n - begin, k] = (code[n, k] - zero[n, g]) · scale[n, g] · unit; names are those of `planar_linear`."""
    LANE: tl.constexpr = TILE // R
    STEPS: tl.constexpr = TURN // R
    rn = begin + tl.program_id(0) * BN + tl.arange(0, BN)
    words = rn[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    line = out + (rn - begin).to(tl.int64)[:, None] * K
    first = tl.program_id(1) * STEPS
    factor = tl.load(unit)
    words0, words1, words2 = None, None, None
    for step in tl.static_range(0, STEPS, JOIN):
        words0 = held(words0, plane0, words, PADDED * WORDS, first, step, PLANE0, LANE)
        if PLANE1 > 0:
            words1 = held(words1, plane1, words, PADDED * WORDS, first, step, PLANE1, LANE)
        if PLANE2 > 0:
            words2 = held(words2, plane2, words, PADDED * WORDS, first, step, PLANE2, LANE)
        if step * R % SPAN == 0:
            group = (first + step) * R // GROUP * PADDED if GROUP > 0 else 0
            s = loaded_scale(scale + group + rn, outer, SCALES, UNIT) * factor
            z = None if zero is None else tl.load(zero + group + rn)
        code = joined(words0, words1, words2, first, step, PLANE0, PLANE1, PLANE2, LANE, STEPS, JOIN)
        value = numbers(code, z, BITS, MANTISSA, tl.float16).to(tl.float32) * s[:, None]
        k = (first + step) * R + tl.arange(0, JOIN * R)
        tl.store(line + k[None, :], value.to(tl.float16), mask=(rn < N)[:, None] & (k < K)[None, :])
