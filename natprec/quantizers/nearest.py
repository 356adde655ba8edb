"""Round to nearest, in any codebook; integers are in `natprec.quantizers.integer`, others in `…floating`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from natprec.formats import Format, Integer
from natprec.quantizers.floating import Extent, choose_scale, chunks, nearest_errors, quantize_floating
from natprec.quantizers.grid_search import alike, choose_grid, choose_grids
from natprec.quantizers.integer import grid_errors, grouped_rows, round_to_grid
from natprec.quantizers.tensor import QuantizedTensor


def quantize(weight: Tensor, fmt: Format, scale_dtype: torch.dtype, extent: Extent | None = None) -> QuantizedTensor:
    """Round a weight to the nearest code, group by group.

    Args:
        weight: (rows, columns), finite.
        fmt: a format whose group size divides the columns.
        scale_dtype: the dtype in which scales are stored; they are rounded to it first.
        extent: of the weight together with those that share its outer scale; default: its own.
    """
    if not isinstance(fmt.codebook, Integer):
        return quantize_floating(weight, fmt, scale_dtype, extent)
    rows, columns = weight.shape
    parts = []
    for grouped in grouped_rows(weight, fmt):
        grid = choose_grid(grouped, fmt, scale_dtype)
        parts.append((_codes(grouped, fmt, *grid), *grid))
    return QuantizedTensor.of(
        fmt,
        codes=torch.cat([codes for codes, _, _ in parts]).view(rows, columns),
        scale=torch.cat([scale for _, scale, _ in parts]),
        offset=None if fmt.symmetric else torch.cat([offset for _, _, offset in parts if offset is not None]),
    )


def _codes(grouped: Tensor, fmt: Format, scale: Tensor, offset: Tensor | None) -> Tensor:
    found = round_to_grid(grouped, [fmt], scale.unsqueeze(0), None if offset is None else offset.unsqueeze(0))
    return found[0].to(torch.int8)


def grid_for(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, power: Tensor | None, extent: Extent | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The grid of each group with the least squared error among those tried.

    Args:
        weight: (rows, columns), float32.
        power: (columns,) or (rows, columns), what an error at each weight counts; then integers try to clip.
        extent: see `quantize`.
    Returns:
        Scale and offset (rows, groups), the latter None when symmetric, and the outer scale () where there is one.
    """
    if not isinstance(fmt.codebook, Integer):
        return _scale_only(weight, fmt, scale_dtype, extent, power)
    groups = fmt.groups(weight.shape[1])
    grouped = weight.reshape(len(weight), groups, -1)
    scale, offset = choose_grid(grouped, fmt, scale_dtype, None if power is None else power.unflatten(-1, (groups, -1)))
    return scale, offset, None


def _scale_only(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, extent: Extent | None, power: Tensor | None
) -> tuple[Tensor, None, Tensor | None]:
    scale, outer = choose_scale(weight, fmt, scale_dtype, extent or Extent.of(weight, [fmt]), power)
    return scale, None, outer


def rounding_errors(
    weight: Tensor, formats: Sequence[Format], scale_dtype: torch.dtype, extent: Extent | None = None
) -> Tensor:
    """Q_b(w) - w of every weight under every format, and last that of storing it unquantized.

    Args:
        extent: of the weight that these rows are of; default: they are all of it.
    Returns:
        (formats + 1, rows * columns), float32; the last row is 0 where `scale_dtype` holds w exactly.
    """
    errors = torch.empty(len(formats) + 1, weight.numel(), device=weight.device)
    flat = weight.float().reshape(-1)
    torch.sub(flat.to(scale_dtype).float(), flat, out=errors[-1])
    extent = Extent.of(weight, formats) if extent is None else extent
    for places in alike(formats):
        some = [formats[place] for place in places]
        if not isinstance(some[0].codebook, Integer):
            _floating_errors(weight, some[0], scale_dtype, extent, errors[places[0]].view(weight.shape))
            continue
        own = errors[min(places) : max(places) + 1]
        neighbours = list(range(places[0], places[0] + len(places))) == places
        start = 0
        for grouped in grouped_rows(weight, some[0], len(some)):
            grid = choose_grids(grouped, some, scale_dtype)
            part = slice(start, start := start + grouped.numel())
            if neighbours:
                grid_errors(grouped, some, *grid, own[:, part])
                continue
            for number, place in enumerate(places):  # there are others between them
                scale, offset = (None if each is None else each[number : number + 1] for each in grid)
                assert scale is not None
                grid_errors(grouped, [formats[place]], scale, offset, errors[place : place + 1, part])
    return errors


def _floating_errors(weight: Tensor, fmt: Format, scale_dtype: torch.dtype, extent: Extent, out: Tensor) -> None:
    for rows in chunks(weight):
        part = weight[rows].to(torch.float32)
        scale, _ = choose_scale(part, fmt, scale_dtype, extent.at(rows))
        nearest_errors(part, fmt, scale, out[rows])


def squared_errors(
    weight: Tensor, formats: Sequence[Format], scale_dtype: torch.dtype, extent: Extent | None = None
) -> Tensor:
    """(Q_b(w) - w)**2: see `rounding_errors`."""
    return rounding_errors(weight, formats, scale_dtype, extent).square_()
