"""From words of a packed weight to the codes of some columns, as numbers of the type that is multiplied; and to scales.

Integer codes become whole numbers. Floating-point codes need no table: moved to where a half has its sign, exponent and
mantissa, they are halves, subnormal ones too, that differ from what they mean by one power of two, which joins the
scale: 2**14 of E2M1 and E2M3, 2**8 of E4M3.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def held(before, plane, words, run, first, STEP: tl.constexpr, WIDTH: tl.constexpr, LANE: tl.constexpr):
    """The words of a plane that hold step first + STEP: those before, as long as they have bits of it.

    Args:
        words: where in a run they lie.
        run: how many one run of 8 words for every row has.
    """
    if STEP * WIDTH % LANE == 0:
        before = tl.load(plane + (first + STEP) * WIDTH // LANE * run + words)
    return before


@triton.jit
def steps(
    words,
    first,
    STEP: tl.constexpr,
    WIDTH: tl.constexpr,
    LANE: tl.constexpr,
    STEPS: tl.constexpr,
    JOIN: tl.constexpr,
):
    """Steps first + STEP … first + STEP + JOIN - 1 of a plane's words, one code in each lane: (BN, JOIN, 8)."""
    ONES: tl.constexpr = 0x00010001 if LANE == 16 else 0x01010101
    MASK: tl.constexpr = ((1 << WIDTH) - 1) * ONES if WIDTH < LANE else -1
    shifts = STEP * WIDTH % LANE + tl.arange(0, JOIN) * WIDTH
    if STEPS * WIDTH % LANE:  # a word is for several turns
        shifts += first * WIDTH % LANE
    return words[:, None, :] >> shifts[None, :, None] & MASK


@triton.jit
def joined(
    words0,
    words1,
    words2,
    first,
    STEP: tl.constexpr,
    PLANE0: tl.constexpr,
    PLANE1: tl.constexpr,
    PLANE2: tl.constexpr,
    LANE: tl.constexpr,
    STEPS: tl.constexpr,
    JOIN: tl.constexpr,
):
    """The same of all planes, their bits put together."""
    code = steps(words0, first, STEP, PLANE0, LANE, STEPS, JOIN)
    if PLANE1 > 0:
        code = code | steps(words1, first, STEP, PLANE1, LANE, STEPS, JOIN) << PLANE0
    if PLANE2 > 0:
        code = code | steps(words2, first, STEP, PLANE2, LANE, STEPS, JOIN) << (PLANE0 + PLANE1)
    return code


@triton.jit
def operand(code, zero, BITS: tl.constexpr, COMPUTE: tl.constexpr):
    """Codes, stored from 0 up, as signed numbers of the tensor core's type, less the zero point of their row.

    All lanes of a word at once. Halves need no conversion: a code put into the mantissa of 1024 is that number plus the
    code (Kim et al. 2022, arXiv:2211.10017), and what is then subtracted is a whole number too. Bytes are subtracted
    with their top bit set, so that none borrows from its neighbour.

    Args:
        code: (BN, JOIN, 8), int32.
        zero: (BN,), int8, or None.
    Returns:
        (BN, JOIN · R).
    """
    HALF: tl.constexpr = 1 << (BITS - 1)
    TOPS: tl.constexpr = -0x7F7F7F80  # 128 in each byte
    if tl.int8 == COMPUTE:
        if BITS == 8:
            code = code ^ TOPS
        else:
            less = HALF if zero is None else (zero.to(tl.int32) + HALF)[:, None, None]
            code = ((code | TOPS) - less * 0x01010101) ^ TOPS
        low = tl.join(code.to(tl.int8), (code >> 16).to(tl.int8))
        lanes = tl.join(low, tl.join((code >> 8).to(tl.int8), (code >> 24).to(tl.int8)))
        value = tl.reshape(lanes, (code.shape[0], code.shape[1] * 32))
    else:  # whatever is no half goes through float32, with 2**23
        HALVES: tl.constexpr = tl.float16 == COMPUTE
        LESS: tl.constexpr = (1024 if HALVES else 8388608) + HALF
        if HALVES:
            code = code | 0x64006400
            lanes = tl.join(code.to(tl.int16), (code >> 16).to(tl.int16))
        else:
            lanes = tl.join(code & 0xFFFF, code >> 16) | 0x4B000000
        value = tl.reshape(lanes, (code.shape[0], code.shape[1] * 16))
        value = value.to(tl.float16 if HALVES else tl.float32, bitcast=True)
        value -= LESS if zero is None else (zero.to(tl.int32) + LESS).to(value.dtype)[:, None]
    return value.to(COMPUTE)


@triton.jit
def floats(code, BITS: tl.constexpr, MANTISSA: tl.constexpr, COMPUTE: tl.constexpr):
    """Floating-point codes as numbers of the tensor core's type, in units of 2**(the code's bias - 15).

    Args:
        code: (BN, JOIN, 8), int32, with a code in each half.
    Returns:
        (BN, JOIN · 16).
    """
    SIGNS: tl.constexpr = (1 << (BITS - 1)) * 0x00010001
    OTHERS: tl.constexpr = ((1 << (BITS - 1)) - 1) * 0x00010001
    code = (code & SIGNS) << (16 - BITS) | (code & OTHERS) << (10 - MANTISSA)
    lanes = tl.join(code.to(tl.int16), (code >> 16).to(tl.int16))
    value = tl.reshape(lanes, (code.shape[0], code.shape[1] * 16))
    return value.to(tl.float16, bitcast=True).to(COMPUTE)


@triton.jit
def numbers(code, zero, BITS: tl.constexpr, MANTISSA: tl.constexpr, COMPUTE: tl.constexpr):
    """Codes as numbers of the tensor core's type; MANTISSA is -1 for integers."""
    if MANTISSA < 0:  # noqa: SIM108  # a return here would compile both, and the two differ in shape
        made = operand(code, zero, BITS, COMPUTE)
    else:
        made = floats(code, BITS, MANTISSA, COMPUTE)
    return made


@triton.jit
def loaded_scale(at, outer, SCALES: tl.constexpr, UNIT: tl.constexpr):
    """Scales as float32, with the unit of the codes in them.

    Args:
        outer: what float8 scales are multiplied by, or None.
        SCALES: how they are stored: "float", "e4m3", "e8m0".
    """
    s = tl.load(at)
    if SCALES == "e8m0":  # an exponent; the least one is subnormal
        s = tl.maximum(s.to(tl.int32) << 23, 0x400000).to(tl.float32, bitcast=True) * UNIT
    elif SCALES == "e4m3":
        s = (s.to(tl.int16) << 7).to(tl.float16, bitcast=True).to(tl.float32) * (tl.load(outer) * (256.0 * UNIT))
    else:
        s = s.to(tl.float32)
        if UNIT != 1:
            s *= UNIT
    return s
