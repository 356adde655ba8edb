"""The grids that a format can store, nearest to one that was found: value = code * scale + offset, per group.

An integer format stores the scale in 16 bits, and as offset a whole number of steps (a zero point). GGUF's block types
store both as float16. Its K types store, per super-block, one float16 and an integer for each group: there the scales
are quantized as weights are, one level up. Storing a stored grid again changes nothing, so a file is written from the
scales alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.formats import Format, Integer

TINY = 2.0**-24
"""The smallest float16: a GGUF scale is never 0, so that codes are defined; ggml may decode it to 0."""


def stored_grid(scale: Tensor, low: Tensor | None, fmt: Format, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Rounded to what the format stores; nested scales are left to `nested_grid`.

    Args:
        scale: (rows, groups).
        low: (rows, groups), the value of the smallest code; None for symmetric formats.
        dtype: of the scales of integer formats.
    Returns:
        scale, never 0, and offset, None when symmetric; both (rows, groups), float32.
    """
    if fmt.nested:
        return torch.where(scale == 0, TINY, scale), None if low is None else low.clamp(max=0)
    if fmt.scaling.dtype == "float16":
        scale = scale.half().float()
        return torch.where(scale == 0, TINY, scale), None if low is None else low.half().float()
    scale = scale.to(dtype).to(torch.float32)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # a group of zeros: every code is 0
    if low is None:
        return scale, None
    smallest, largest = fmt.code_range
    zero = (smallest - (low.clamp(max=0) / scale).round_()).clamp_(smallest, largest)
    return scale, zero.mul_(scale).neg_()


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
