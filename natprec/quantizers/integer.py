"""Rounds to nearest on grids of integer codes, one grid a group.

Which grid a group takes is in `natprec.quantizers.grid_search`, what a format can store of it in `…scale_storage`. At 1
and 2 bits a grid is fitted to the codes it got by least squares: s = <w, q> / <q, q>.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from natprec import native
from natprec.formats import Format
from natprec.quantizers.scale_storage import code_ends, column, stored_grid
from natprec.utils.launches import portion

SHRINK = {1: (0.4, 0.6), 2: (0.75, 0.95)}
"""Fractions of the spanning scale that are tried, by width; wider formats take 1.0."""

CHUNK = 1 << 18
"""Weights handled at a time: small enough that one chunk and its copies stay in the cache."""

Grid = tuple[Tensor, Tensor | None]
"""Scale, as a format stores it, never 0, and offset, the value of code 0, or None when it is symmetric; float32."""


def fitted_grids(
    grouped: Tensor, formats: Sequence[Format], scale: Tensor, low: Tensor | None, scale_dtype: torch.dtype
) -> Grid:
    """Trial grids as they are stored; at 1 and 2 bits the least-squares ones for their codes.

    Args:
        formats: of each trial.
        scale: (trials, rows, groups); low: the same; None: symmetric.
    """
    first = formats[0]
    scale, offset = stored_grid(scale, low, formats, scale_dtype)
    if first.bits not in SHRINK:
        return scale, offset
    codes = round_to_grid(grouped, formats, scale, offset)
    if offset is not None and first.float_offset:
        return stored_grid(*_line(codes, grouped, scale, offset), formats, scale_dtype)
    steps = None if offset is None else (offset / scale).round_()
    if steps is not None:
        codes += steps.unsqueeze(-1)
    power = torch.linalg.vecdot(codes, codes)
    fitted = torch.where(power > 0, torch.linalg.vecdot(codes, grouped) / power, scale)
    fitted = torch.where(fitted * scale > 0, fitted, scale)
    lowest = None if steps is None else (steps + code_ends(formats, scale.device)[0]) * fitted
    return stored_grid(fitted, lowest, formats, scale_dtype)


def _line(codes: Tensor, grouped: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The least-squares scale and offset of each group for its codes; as given where all codes are equal."""
    mean_code, mean = codes.mean(-1), grouped.mean(-1)
    spread = codes - mean_code.unsqueeze(-1)
    power = torch.linalg.vecdot(spread, spread)
    slope = torch.linalg.vecdot(spread, grouped) / power
    better = (power > 0) & (slope > 0)
    return torch.where(better, slope, scale), torch.where(better, mean - slope * mean_code, offset)


def grid_errors(
    grouped: Tensor, formats: Sequence[Format], scale: Tensor, offset: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """Nearest value less weight, (formats, rows, groups, group size).

    Args:
        scale, offset: (formats, rows, groups).
        out: of so many elements; (formats, …), each contiguous.
    """
    shape = (len(formats), *grouped.shape)
    if native.reads(grouped):
        out = grouped.new_empty(shape) if out is None else out
        for number, fmt in enumerate(formats):
            own = None if offset is None else offset[number]
            native.grid_errors(grouped, scale[number], own, *fmt.code_range, out[number])
        return out.view(shape)
    values = _reconstruct(round_to_grid(grouped, formats, scale, offset), scale, offset)
    return torch.sub(values, grouped, out=None if out is None else out.view(shape))


def round_to_grid(grouped: Tensor, formats: Sequence[Format], scale: Tensor, offset: Tensor | None) -> Tensor:
    """Nearest codes (formats, rows, groups, group size), as float32 integers within the code range."""
    if offset is None:
        codes = grouped / scale.unsqueeze(-1)
    else:
        codes = (grouped - offset.unsqueeze(-1)).div_(scale.unsqueeze(-1))
    low, high = (end if isinstance(end, int) else end.unsqueeze(-1) for end in code_ends(formats, scale.device))
    return codes.round_().clamp_(low, high)  # type: ignore[arg-type]  # both numbers, or both tensors


def _reconstruct(codes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """Values of float codes, in place."""
    codes.mul_(scale.unsqueeze(-1))
    return codes if offset is None else codes.add_(offset.unsqueeze(-1))


def spanning_scale(low: Tensor, high: Tensor, formats: Sequence[Format]) -> Tensor:
    """(formats, rows, groups), whose grid covers [low, high]; negative where the positive side reaches further."""
    low, high = low.unsqueeze(0), high.unsqueeze(0)
    if not formats[0].symmetric:
        return (high - low) / _numbers([2**fmt.bits - 1 for fmt in formats], low.device)
    ranges = [fmt.code_range for fmt in formats]
    far, near = torch.maximum(high, -low), torch.minimum(high, -low)
    reach = far / _numbers([-smallest for smallest, _ in ranges], low.device)
    scale = torch.maximum(reach, near / _numbers([max(largest, 1) for _, largest in ranges], low.device))
    balanced = formats[0].integer.balanced
    return scale if balanced else torch.where(high > -low, -scale, scale)


def _numbers(values: list[int], device: torch.device) -> int | Tensor:
    return values[0] if len(values) == 1 else column(tuple(values), device)


def grouped_rows(weight: Tensor, fmt: Format, formats: int = 1) -> Iterator[Tensor]:
    """Chunks of whole rows as (rows, groups, group size), float32; `formats` of them are rounded together."""
    columns = weight.shape[1]
    step = max(1, portion(CHUNK * formats, weight.device) // (columns * formats))
    for rows in weight.split(step):
        yield rows.to(torch.float32).reshape(len(rows), fmt.groups(columns), -1)
