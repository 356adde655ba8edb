"""The grids that a format can store, nearest to one that was found: value = code * scale + offset, per group.

An integer format stores the scale in 16 bits, and as offset a whole number of steps (a zero point). GGUF's block types
store both as float16. Its K types store, per super-block, one float16 and an integer for each group: there the scales
are quantized as weights are, one level up. Storing a stored grid again changes nothing, so a file is written from the
scales alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from natprec.formats import Float, Format, Integer

TINY = 2.0**-24
"""The smallest float16: a GGUF scale is never 0, so that codes are defined; ggml may decode it to 0."""


def stored_grid(
    scale: Tensor, low: Tensor | None, formats: Sequence[Format], dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Rounded to what the formats store; nested scales are left to `nested_grid`.

    Args:
        scale: (formats, rows, groups), or (rows, groups) of one.
        low: the same, the value of the smallest code; None for symmetric formats.
        formats: that differ in their width alone.
        dtype: of the scales of integer formats.
    Returns:
        scale, never 0, and offset, None when symmetric; both of the same shape, float32.
    """
    fmt = formats[0]
    if fmt.nested:
        return torch.where(scale == 0, TINY, scale), None if low is None else low.clamp(max=0)
    if fmt.scaling.dtype == "float16":
        scale = scale.half().float()
        return torch.where(scale == 0, TINY, scale), None if low is None else low.half().float()
    scale = scale.to(dtype).to(torch.float32)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # a group of zeros: every code is 0
    if low is None:
        return scale, None
    smallest, largest = code_ends(formats, scale.device)
    zero = (smallest - (low.clamp(max=0) / scale).round_()).clamp_(smallest, largest)  # type: ignore[arg-type]  # both numbers, or both tensors
    return scale, zero.mul_(scale).neg_()


def code_ends(formats: Sequence[Format], device: torch.device) -> tuple[int, int] | tuple[Tensor, Tensor]:
    """The least and the greatest code, (formats, 1, 1); of formats that share them, the numbers."""
    ranges = [fmt.code_range for fmt in formats]
    if len(set(ranges)) == 1:
        return ranges[0]
    low, high = (column(ends, device) for ends in zip(*ranges, strict=True))
    return low, high


@functools.cache
def column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(values, 1, 1), float32: copied to a device once."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).to(device)


def nested_grid(scale: Tensor, offset: Tensor | None, fmt: Format) -> tuple[Tensor, Tensor | None]:
    """The same with each scale and offset as an integer times a float16 of its super-block; others are left alone.

    Args:
        scale, offset: (rows, groups), as `stored_grid` returns them.
    """
    if not fmt.nested:
        return scale, offset
    step, codes = nested_codes(scale, fmt)
    scale = (torch.where(codes == 0, 1, codes) * step).flatten(1)
    if offset is None:
        return scale, None
    step, codes = nested_codes(-offset, fmt)
    return scale, -(codes * step).flatten(1)


def nested_codes(values: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """Quantize scales, or offsets without their sign; the largest gets the code that is farthest from 0.

    Args:
        values: (rows, groups).
    Returns:
        (rows, super-blocks, 1), float32 that float16 holds exactly, and (rows, super-blocks, groups of one), integers.
    """
    codebook = fmt.scaling.dtype
    assert isinstance(codebook, Integer)
    assert fmt.group_size is not None
    smallest, largest = codebook.smallest, codebook.largest
    blocks = values.view(len(values), -1, fmt.block // fmt.group_size)
    far = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    step = (far / (smallest or largest)).half().float()
    step = torch.where(step == 0, TINY, step)
    return step, (blocks / step).round().clamp(smallest, largest)


SMALLEST_POWER, LARGEST_POWER = -126, 127
"""Exponents of scales that are powers of two: E8M0 without 2^-127, which bfloat16 has as a subnormal alone."""


def stored_scale(scale: Tensor, fmt: Format, dtype: torch.dtype, outer: Tensor | None) -> Tensor:
    """Positive scales as a format of floating-point codes stores them, never 0.

    Args:
        scale: (rows, groups); 0 where all values are.
        dtype: of scales in the model's dtype.
        outer: see `outer_scale`.
    Returns:
        Rounded to nearest, float32; powers of two are rounded up.
    """
    wanted, kind = torch.where(scale > 0, scale, 1.0), fmt.scaling.dtype
    if isinstance(kind, Float):
        assert outer is not None
        wanted = torch.where(scale > 0, scale * (1.0 / outer), 1.0)
        least = 2.0 ** (1 - kind.bias - kind.mantissa)
        return kind.nearest_(wanted).clamp_(min=least) / (1.0 / outer)
    if kind == "e8m0":
        fraction, exponent = torch.frexp(wanted)
        exponent = exponent - (fraction == 0.5).to(exponent.dtype)
        return torch.ldexp(torch.ones_like(wanted), exponent.clamp(SMALLEST_POWER, LARGEST_POWER))
    stored = {"model": dtype, "float16": torch.float16, "float32": torch.float32}[str(kind)]
    return wanted.clamp(min=torch.finfo(stored).tiny, max=torch.finfo(stored).max).to(stored).to(torch.float32)


def outer_scale(largest: Tensor, fmt: Format) -> Tensor:
    """What the codes of scales are multiplied by, so that the group with the largest magnitude has the largest code.

    Args:
        largest: (), the largest magnitude of all weights that share it.
    Returns:
        (), float32, whose reciprocal's reciprocal it is: compressed-tensors stores the reciprocal.
    """
    kind = fmt.scaling.dtype
    assert isinstance(kind, Float)
    reach = kind.largest * fmt.codebook.largest
    divisor = reach / largest.float().clamp(min=reach * torch.finfo(torch.float32).tiny)
    divisor = torch.where(largest > 0, divisor, 1.0)
    for _ in range(4):
        divisor = 1.0 / (1.0 / divisor)
    return 1.0 / divisor


def inner_scales(scale: Tensor, outer: Tensor, fmt: Format) -> Tensor:
    """The codes' values of scales (rows, groups) in units of their outer scale, float32, exactly as stored."""
    kind = fmt.scaling.dtype
    assert isinstance(kind, Float)
    return kind.nearest_(scale * (1.0 / outer))


def effective_scales(inner: Tensor, outer: Tensor) -> Tensor:
    """What values are multiplied by, of what `inner_scales` gives: divided by the reciprocal, as engines do."""
    return inner / (1.0 / outer)


def rescaled(scale: Tensor, factor: Tensor, fmt: Format, dtype: torch.dtype, outer: Tensor | None) -> Tensor:
    """Stored scales times `factor`, on stored scales again; powers of two stay."""
    return scale if fmt.scaling.dtype == "e8m0" else stored_scale(scale * factor, fmt, dtype, outer)
