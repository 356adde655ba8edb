"""Round to nearest on an integer grid that spans each group: from 3 bits up nothing is clipped.

A narrower grid has a smaller squared error at 3 to 5 bits, but a larger output KL: what it clips are
the largest weights, whose errors are not independent (LOG.md, 2026-11-22). Where the power of each
input is known, GPTQ lets it decide how much to clip. At 1 and 2 bits the spanning grid is too coarse;
there each group takes the best of a few shrunken scales, and then the least-squares scale for the
codes it got: s = <w, q> / <q, q>.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from natprec.formats import NumberFormat

SHRINK = {1: (0.4, 0.6), 2: (0.75, 0.95)}
"""Fractions of the spanning scale that are tried, by width; wider formats take 1.0."""

CLIP = {3: (1.0, 0.9, 0.8, 0.7), 4: (1.0, 0.92, 0.84), 5: (1.0, 0.95)}
"""The same where it is known how much an error counts at each column: clipping then helps (LOG.md)."""

CHUNK = 1 << 18
"""Weights handled at a time: small enough that one chunk and its copies stay in the cache."""


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight on its grid.

    Attributes:
        codes: (rows, columns), int8.
        scale: (rows, groups), float32 values that the stored dtype holds exactly.
        zero_point: (rows, groups), int8; None when symmetric.
    """

    format: NumberFormat
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def dequantize(self) -> Tensor:
        """(rows, columns), float32: what an engine reconstructs."""
        rows, columns = self.codes.shape
        values = self.codes.view(rows, self.scale.shape[1], -1).to(torch.float32)
        if self.zero_point is not None:
            values = values - self.zero_point.unsqueeze(-1)
        return (values * self.scale.unsqueeze(-1)).view(rows, columns)

    def to(self, device: str) -> QuantizedTensor:
        """The same tensor on a device."""
        zero = None if self.zero_point is None else self.zero_point.to(device)
        return QuantizedTensor(self.format, self.codes.to(device), self.scale.to(device), zero)


def quantize(weight: Tensor, fmt: NumberFormat, scale_dtype: torch.dtype) -> QuantizedTensor:
    """Round a weight to the nearest code, group by group.

    Args:
        weight: (rows, columns), finite.
        fmt: a format whose group size divides the columns.
        scale_dtype: the dtype in which scales are stored; they are rounded to it first.
    """
    rows, columns = weight.shape
    parts = []
    for grouped in _grouped_rows(weight, fmt):
        scale, zero = choose_grid(grouped, fmt, scale_dtype)
        codes = round_to_grid(grouped, fmt, scale, zero)
        parts.append((codes.to(torch.int8), scale, zero))
    return QuantizedTensor(
        fmt,
        codes=torch.cat([codes for codes, _, _ in parts]).view(rows, columns),
        scale=torch.cat([scale for _, scale, _ in parts]),
        zero_point=None if fmt.symmetric else torch.cat([zero.to(torch.int8) for _, _, zero in parts]),  # type: ignore[union-attr]
    )


def rounding_errors(weight: Tensor, formats: Sequence[NumberFormat], scale_dtype: torch.dtype) -> Tensor:
    """Q_b(w) - w of every weight under every format, and last that of storing it unquantized.

    Returns:
        (formats + 1, rows * columns), float32; the last row is 0 where `scale_dtype` holds w exactly.
    """
    errors = torch.empty(len(formats) + 1, weight.numel(), device=weight.device)
    flat = weight.float().reshape(-1)
    torch.sub(flat.to(scale_dtype).float(), flat, out=errors[-1])
    for index, fmt in enumerate(formats):
        start = 0
        for grouped in _grouped_rows(weight, fmt):
            scale, zero = choose_grid(grouped, fmt, scale_dtype)
            values = _reconstruct(round_to_grid(grouped, fmt, scale, zero), scale, zero)
            out = errors[index, start : start + grouped.numel()]
            torch.sub(values.view(-1), grouped.reshape(-1), out=out)
            start += grouped.numel()
    return errors


def squared_errors(weight: Tensor, formats: Sequence[NumberFormat], scale_dtype: torch.dtype) -> Tensor:
    """(Q_b(w) - w)**2: see `rounding_errors`."""
    return rounding_errors(weight, formats, scale_dtype).square_()


def choose_grid(
    grouped: Tensor, fmt: NumberFormat, scale_dtype: torch.dtype, power: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The grid of each group with the least squared error among those tried.

    Args:
        grouped: (rows, groups, group size), float32.
        power: (groups, group size), what an error at each weight counts; then clipping is tried too.
    Returns:
        scale (rows, groups), float32 rounded to `scale_dtype`, never 0; zero point (rows, groups),
        float32 integers, or None when the format is symmetric.
    """
    low, high = grouped.amin(-1), grouped.amax(-1)  # faster than aminmax
    spanning = _spanning_scale(low, high, fmt)
    fractions = SHRINK.get(fmt.bits) or (CLIP.get(fmt.bits, (1.0,)) if power is not None else (1.0,))
    grids = [_grid(grouped, fmt, spanning * fraction, low * fraction, scale_dtype) for fraction in fractions]
    if len(grids) == 1:
        return grids[0]
    errors = [_squared_error(grouped, fmt, *grid, power) for grid in grids]
    best = torch.stack(errors).argmin(0, keepdim=True)
    scale = torch.stack([scale for scale, _ in grids]).gather(0, best)[0]
    zeros = [zero for _, zero in grids if zero is not None]
    return scale, torch.stack(zeros).gather(0, best)[0] if zeros else None


def _grid(
    grouped: Tensor, fmt: NumberFormat, scale: Tensor, low: Tensor, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """A trial scale as it is stored, and its zero point; at 1 and 2 bits the least-squares scale for its codes."""
    scale = _stored(scale, scale_dtype)
    zero = _zero_point(low, scale, fmt)
    if fmt.bits not in SHRINK:
        return scale, zero
    codes = round_to_grid(grouped, fmt, scale, zero)
    if zero is not None:
        codes -= zero.unsqueeze(-1)
    power = torch.linalg.vecdot(codes, codes)
    fitted = torch.where(power > 0, torch.linalg.vecdot(codes, grouped) / power, scale)
    return _stored(torch.where(fitted * scale > 0, fitted, scale), scale_dtype), zero


def _squared_error(
    grouped: Tensor, fmt: NumberFormat, scale: Tensor, zero: Tensor | None, power: Tensor | None
) -> Tensor:
    """Of each group, (rows, groups)."""
    error = _reconstruct(round_to_grid(grouped, fmt, scale, zero), scale, zero).sub_(grouped)
    return torch.linalg.vecdot(error, error if power is None else error * power)


def round_to_grid(grouped: Tensor, fmt: NumberFormat, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Nearest codes (rows, groups, group size), as float32 integers within the code range."""
    codes = grouped / scale.unsqueeze(-1)
    codes.round_()
    if zero is not None:
        codes += zero.unsqueeze(-1)
    return codes.clamp_(*fmt.code_range)


def _reconstruct(codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Values of float codes, in place."""
    if zero is not None:
        codes -= zero.unsqueeze(-1)
    return codes.mul_(scale.unsqueeze(-1))


def _spanning_scale(low: Tensor, high: Tensor, fmt: NumberFormat) -> Tensor:
    """The scale whose grid covers [low, high]; negative where the positive side reaches further."""
    if not fmt.symmetric:
        return (high.clamp(min=0) - low.clamp(max=0)) / (2**fmt.bits - 1)
    smallest, largest = fmt.code_range
    far, near = torch.maximum(high, -low), torch.minimum(high, -low)
    scale = torch.maximum(far / -smallest, near / max(largest, 1))
    return torch.where(high > -low, -scale, scale)


def _zero_point(low: Tensor, scale: Tensor, fmt: NumberFormat) -> Tensor | None:
    """The code of the value 0; the grid then begins at `low` (or at 0 where low > 0)."""
    if fmt.symmetric:
        return None
    smallest, largest = fmt.code_range
    return (smallest - (low.clamp(max=0) / scale).round_()).clamp_(smallest, largest)


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to the stored dtype; 1 where that is zero (a group of zeros: every code is 0)."""
    scale = scale.to(dtype).to(torch.float32)
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _grouped_rows(weight: Tensor, fmt: NumberFormat) -> Iterator[Tensor]:
    """Chunks of whole rows as (rows, groups, group size), float32."""
    columns = weight.shape[1]
    step = max(1, CHUNK // columns)
    for rows in weight.split(step):
        yield rows.to(torch.float32).reshape(len(rows), fmt.groups(columns), -1)
