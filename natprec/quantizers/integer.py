"""Round to nearest on a grid of integer codes that spans each group: from 3 bits up nothing is clipped.

A narrower grid has a smaller squared error at 3 to 5 bits, but a larger output KL: what it clips are
the largest weights, whose errors are not independent (LOG.md, 2026-11-22). Where the power of each
input is known, GPTQ lets it decide how much to clip. At 1 and 2 bits the spanning grid is too coarse;
there each group takes the best of a few shrunken scales, and then the least-squares scale for the
codes it got: s = <w, q> / <q, q>. What a format can store of a grid is in `natprec.quantizers.scale_storage`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from natprec import native
from natprec.formats import Format
from natprec.quantizers.scale_storage import nested_grid, stored_grid

SHRINK = {1: (0.4, 0.6), 2: (0.75, 0.95)}
"""Fractions of the spanning scale that are tried, by width; wider formats take 1.0."""

CLIP = {3: (1.0, 0.9, 0.8, 0.7), 4: (1.0, 0.92, 0.84), 5: (1.0, 0.95)}
"""The same where it is known how much an error counts at each column: clipping then helps (LOG.md)."""

CHUNK = 1 << 18
"""Weights handled at a time: small enough that one chunk and its copies stay in the cache."""


ENDS = {
    2: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6),
    3: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7),
    4: (1.0, 0.92, 0.84, 0.76),
    5: (1.0, 0.95),
}
"""Fractions of both ends of a grid with a zero point, tried in pairs where it is known how much an error counts: scale
and zero point are searched together, in place of one clipped range (NeUQI, arXiv:2505.17595)."""


def choose_grid(
    grouped: Tensor, fmt: Format, scale_dtype: torch.dtype, power: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The grid of each group with the least squared error among those tried.

    Args:
        grouped: (rows, groups, group size), float32.
        power: (groups, group size), what an error at each weight counts; then clipping is tried too.
    Returns:
        scale (rows, groups), float32 as the format stores it, never 0; offset (rows, groups), float32, the
        value of code 0, or None when the format is symmetric.
    """
    low, high = grouped.amin(-1), grouped.amax(-1)  # faster than aminmax
    if not fmt.float_offset or fmt.nested:
        low, high = low.clamp(max=0), high.clamp(min=0)  # 0 is on such a grid, or next to it
    trials = [_grid(grouped, fmt, *trial, scale_dtype) for trial in _trials(low, high, fmt, power is not None)]
    (scale, offset), *others = trials
    if not others:
        return nested_grid(scale, offset, fmt)
    least = _squared_error(grouped, fmt, scale, offset, power)
    for grid in others:  # an argmin over a stack of them takes longer
        error = _squared_error(grouped, fmt, *grid, power)
        better = error < least
        least, scale = torch.where(better, error, least), torch.where(better, grid[0], scale)
        offset = None if offset is None or grid[1] is None else torch.where(better, grid[1], offset)
    return nested_grid(scale, offset, fmt)


def _trials(low: Tensor, high: Tensor, fmt: Format, known: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Scales and lowest values to try; `known`: how much an error counts at each column."""
    if known and fmt.scaling.zero == "code" and fmt.bits in ENDS:
        for one, other in product(ENDS[fmt.bits], repeat=2):
            yield _spanning_scale(low * one, high * other, fmt), low * one
        return
    spanning = _spanning_scale(low, high, fmt)
    for fraction in SHRINK.get(fmt.bits) or (CLIP.get(fmt.bits, (1.0,)) if known else (1.0,)):
        yield spanning * fraction, low * fraction


def _grid(
    grouped: Tensor, fmt: Format, scale: Tensor, low: Tensor, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """A trial grid as it is stored; at 1 and 2 bits the least-squares one for its codes."""
    scale, offset = stored_grid(scale, None if fmt.symmetric else low, fmt, scale_dtype)
    if fmt.bits not in SHRINK:
        return scale, offset
    codes = round_to_grid(grouped, fmt, scale, offset)
    if offset is not None and fmt.float_offset:
        return stored_grid(*_line(codes, grouped, scale, offset), fmt, scale_dtype)
    steps = None if offset is None else (offset / scale).round_()
    if steps is not None:
        codes += steps.unsqueeze(-1)
    power = torch.linalg.vecdot(codes, codes)
    fitted = torch.where(power > 0, torch.linalg.vecdot(codes, grouped) / power, scale)
    fitted = torch.where(fitted * scale > 0, fitted, scale)
    return stored_grid(fitted, None if steps is None else (steps + fmt.code_range[0]) * fitted, fmt, scale_dtype)


def _line(codes: Tensor, grouped: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The least-squares scale and offset of each group for its codes; as given where all codes are equal."""
    mean_code, mean = codes.mean(-1), grouped.mean(-1)
    spread = codes - mean_code.unsqueeze(-1)
    power = torch.linalg.vecdot(spread, spread)
    slope = torch.linalg.vecdot(spread, grouped) / power
    better = (power > 0) & (slope > 0)
    return torch.where(better, slope, scale), torch.where(better, mean - slope * mean_code, offset)


def _squared_error(grouped: Tensor, fmt: Format, scale: Tensor, offset: Tensor | None, power: Tensor | None) -> Tensor:
    """Of each group, (rows, groups)."""
    error = grid_errors(grouped, fmt, scale, offset)
    return torch.linalg.vecdot(error, error if power is None else error * power)


def grid_errors(
    grouped: Tensor, fmt: Format, scale: Tensor, offset: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """Nearest value less weight, of the shape of `grouped`; into `out`, contiguous, of so many elements."""
    if native.reads(grouped):
        return native.grid_errors(grouped, scale, offset, *fmt.code_range, out)
    values = _reconstruct(round_to_grid(grouped, fmt, scale, offset), scale, offset)
    return torch.sub(values, grouped, out=None if out is None else out.view(grouped.shape))


def round_to_grid(grouped: Tensor, fmt: Format, scale: Tensor, offset: Tensor | None) -> Tensor:
    """Nearest codes (rows, groups, group size), as float32 integers within the code range."""
    codes = (
        grouped / scale.unsqueeze(-1) if offset is None else (grouped - offset.unsqueeze(-1)).div_(scale.unsqueeze(-1))
    )
    return codes.round_().clamp_(*fmt.code_range)


def _reconstruct(codes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """Values of float codes, in place."""
    codes.mul_(scale.unsqueeze(-1))
    return codes if offset is None else codes.add_(offset.unsqueeze(-1))


def _spanning_scale(low: Tensor, high: Tensor, fmt: Format) -> Tensor:
    """The scale whose grid covers [low, high]; negative where the positive side reaches further."""
    if not fmt.symmetric:
        return (high - low) / (2**fmt.bits - 1)
    smallest, largest = fmt.code_range
    far, near = torch.maximum(high, -low), torch.minimum(high, -low)
    scale = torch.maximum(far / -smallest, near / max(largest, 1))
    return torch.where(high > -low, -scale, scale) if -smallest != largest else scale


def grouped_rows(weight: Tensor, fmt: Format) -> Iterator[Tensor]:
    """Chunks of whole rows as (rows, groups, group size), float32."""
    columns = weight.shape[1]
    step = max(1, CHUNK // columns)
    for rows in weight.split(step):
        yield rows.to(torch.float32).reshape(len(rows), fmt.groups(columns), -1)
