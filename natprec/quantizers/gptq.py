"""GPTQ rounding (Frantar et al. 2022, arXiv:2210.17323, Algorithm 1), with static activation order.

Columns are rounded one after the other, those with the largest inputs first; each column's error is
pushed onto the columns not yet rounded, so that the layer's output changes least: min ‖(W - Q) X‖².
Each group's grid is chosen beforehand, from the original weights, for the least error weighted by input
power: so the order changes no layout, and an engine needs to know nothing of it.

A convolution multiplies the patches of its input, and is rounded as any matrix is. Where it has groups, each has inputs
of its own, thus a factor and an order; the columns of all groups are rounded together, since groups may be as many as
channels, and as small as a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from natprec import native
from natprec.formats import Codebook, Format, Integer, Table
from natprec.gpu.columns import one_by_one, round_columns
from natprec.quantizers.floating import Extent
from natprec.quantizers.grid_search import alike, choose_grids
from natprec.quantizers.hessian import Hessian
from natprec.quantizers.nearest import grid_for, squared_errors
from natprec.quantizers.tensor import QuantizedTensor
from natprec.utils.launches import portion
from natprec.utils.matmul import product

LAZY_COLUMNS = 64
"""Columns rounded before the rest of the matrix is updated."""

SHARE_ROWS = 128
"""Rows of a weight, at most, in which `gptq_shares` sees how much is left."""

WORK = 1 << 22
"""Weights, times formats, rounded at a time on a CPU."""


def gptq(
    weight: Tensor, inputs: Hessian, fmt: Format, scale_dtype: torch.dtype, extent: Extent | None = None
) -> QuantizedTensor:
    """Round a weight for least output error.

    Args:
        weight: (rows, columns).
        fmt: a format whose group size divides the columns.
        scale_dtype: the dtype in which scales are stored.
        extent: of the weight together with those that share its outer scale; default: its own.
    """
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=fmt.code_dtype, device=weight.device)
    order, power = inputs.of_rows(rows)
    scale, offset, outer = grid_for(weight.float(), fmt, scale_dtype, power, extent)
    for part in _parts(rows, columns, weight.device) if inputs.groups == 1 else [slice(rows)]:
        own = None if offset is None else offset[part].unsqueeze(0)
        grid = Grid.of(scale[part].unsqueeze(0), own, [fmt], order)
        codes[part] = _round_columns(_ordered(weight[part].float(), order), inputs, grid)[0].T
    return QuantizedTensor.of(fmt, codes, scale, offset, outer)


@dataclass(frozen=True)
class Judged:
    """Some rows of a weight, and what their rounding errors count.

    Errors D of a row add ½ E[(G · D)²], G the row's gradient of one sequence: the directional form, which has in it all
    that tokens have in common. Rows are rounded independently of each other, so that they add up; so do, for
    rounding to nearest, the columns: ½ E[Σ G² D²].

    Attributes:
        weight: (rows, columns).
        gradients: (sequences, rows, columns), of text that GPTQ was not fitted to.
    """

    weight: Tensor
    gradients: Tensor

    def losses(self, errors: Tensor) -> Tensor:
        """Of errors (…, rows, columns): (…,)."""
        return torch.einsum("...rc,src->...sr", errors, self.gradients).square().sum((-1, -2))

    def nearest_losses(self, squared: Tensor) -> Tensor:
        """Of rounding to nearest: (formats,).

        Args:
            squared: errors of it, (formats, rows, columns).
        """
        return squared.flatten(1) @ self.gradients.square().sum(0).flatten()


def judged_rows(count: int, groups: int = 1) -> Tensor:
    """Numbers of rows, of `count`, that are enough to see how much is left: equally many of each `judged_groups`."""
    chosen, own = judged_groups(groups), count // groups
    among = evenly(own, max(1, SHARE_ROWS // len(chosen)))
    return (chosen.unsqueeze(1) * own + among).flatten()


def judged_groups(groups: int) -> Tensor:
    """Numbers of the groups of a convolution whose rows are judged."""
    return evenly(groups, SHARE_ROWS)


def evenly(count: int, most: int) -> Tensor:
    """At most so many of the numbers below `count`, evenly apart."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def gptq_shares(
    weights: Sequence[Judged],
    inputs: Hessian,
    formats: Sequence[Format],
    scale_dtype: torch.dtype,
    scalings: Sequence[Tensor | None] = (None,),
) -> Tensor:
    """How much of the output error of rounding to nearest GPTQ leaves, of every weight under every format.

    Where the weights are: nothing is waited for.

    Args:
        weights: of layers that share `inputs`; a sample of their rows is enough.
        inputs: of the text that GPTQ is fitted to; of several groups those of the rows alone.
        formats: whose group sizes divide the columns.
        scalings: (columns,) each, factors by which GPTQ finds the columns multiplied (a gauge); None: as they are, as
            all columns of several groups are.
    Returns:
        (weights, scalings, formats), float64; 1 where nothing reaches the layer.
    """
    counts = [len(each.weight) for each in weights]
    stacked = torch.cat([each.weight for each in weights])
    factors = [stacked.new_ones(stacked.shape[1]) if scaling is None else scaling for scaling in scalings]
    row_order, _ = inputs.of_rows(len(stacked))
    losses = torch.empty(len(weights), len(factors), len(formats), device=stacked.device)
    for places in _of_one_codebook(formats):
        for part in _parts(len(places), stacked.numel() * len(scalings), stacked.device):
            some = [formats[place] for place in places[part]]
            grid, order = _found_grids(stacked, inputs, factors, some, scale_dtype)
            work = _ordered(stacked, row_order).repeat(1, len(factors) * len(some))
            values = _round_columns(work, inputs, grid, len(factors) * len(some))[1].T
            values = values.reshape(len(factors), -1, *stacked.shape)
            left = (values - stacked).split(counts, 2)
            found = torch.stack([each.losses(error) for each, error in zip(weights, left, strict=True)])
            for number, place in enumerate(order):
                losses[..., places[part][place]] = found[..., number]
    squared = squared_errors(stacked, formats, scale_dtype)[:-1].view(len(formats), *stacked.shape).split(counts, 1)
    nearest = torch.stack([each.nearest_losses(some) for each, some in zip(weights, squared, strict=True)]).unsqueeze(1)
    return torch.where(nearest > 0, losses / nearest, 1.0).double()


def _of_one_codebook(formats: Sequence[Format]) -> list[list[int]]:
    """Places of the formats that can be rounded together: all integers, or all of one other codebook."""
    found: dict[Codebook | None, list[int]] = {}
    for place, fmt in enumerate(formats):
        found.setdefault(None if isinstance(fmt.codebook, Integer) else fmt.codebook, []).append(place)
    return list(found.values())


def _found_grids(
    weight: Tensor, inputs: Hessian, factors: Sequence[Tensor], formats: Sequence[Format], scale_dtype: torch.dtype
) -> tuple[Grid, list[int]]:
    """The grids that GPTQ chooses for columns multiplied by each factor, as those of the columns as they are.

    Returns:
        Of all factors, one after the other, and of each all formats, side by side; the places of those formats.
    """
    families, (order, counted) = alike(formats, known=True), inputs.of_rows(len(weight))
    grids = []
    for factor in factors:
        scaled, power = weight * factor, counted / factor.square()
        ordered = _ordered(factor.unsqueeze(0) if inputs.groups == 1 else factor.expand_as(weight), order).unsqueeze(1)
        for places in families:
            some = [formats[place] for place in places]
            if isinstance(some[0].codebook, Integer):
                groups = some[0].groups(weight.shape[1])
                grouped = scaled.view(len(weight), groups, -1)
                scale, offset = choose_grids(grouped, some, scale_dtype, power.unflatten(-1, (groups, -1)))
            else:
                found, _, _ = grid_for(scaled, some[0], scale_dtype, power)
                scale, offset = found.unsqueeze(0), None
            grids.append(Grid.of(scale, offset, some, order, ordered))
    return Grid.joined(grids), [place for places in families for place in places]


@dataclass
class Grid:
    """Scale and offset (columns in rounding order, rows) of a transposed weight.

    Attributes:
        low, high: (rows,), the codebook's range.
        codebook: of all rows; None: integers, of any widths.
    """

    scale: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor
    codebook: Codebook | None = None

    @classmethod
    def of(
        cls,
        scale: Tensor,
        offset: Tensor | None,
        formats: Sequence[Format],
        order: Tensor,
        divisor: Tensor | None = None,
    ) -> Grid:
        """Of (formats, rows, groups), the formats' rows side by side, with their groups' columns in rounding order.

        Args:
            formats: of one group size.
            order: (columns,), or of each row, (rows, columns).
            divisor: (columns, 1, 1 or rows), of scales and offsets, in rounding order.
        """
        group, book = order // formats[0].span(order.shape[-1]), formats[0].codebook
        count, rows = scale.shape[:2]
        low, high = (
            torch.cat([torch.full((rows,), float(end), device=scale.device) for end in several])
            for several in zip(*((fmt.codebook.smallest, fmt.codebook.largest) for fmt in formats), strict=True)
        )

        def placed(values: Tensor) -> Tensor:
            of_all = group.dim() == 1
            ordered = (values[..., group] if of_all else values.gather(2, group.expand(count, -1, -1))).permute(2, 0, 1)
            return (ordered if divisor is None else ordered / divisor).reshape(-1, count * rows)

        steps = placed(scale)
        origins = torch.zeros_like(steps) if offset is None else placed(offset)
        return cls(steps, origins, low, high, None if isinstance(book, Integer) else book)

    def columns(self, start: int, stop: int) -> Grid:
        """Of some columns, by their place in the order."""
        return replace(self, scale=self.scale[start:stop], offset=self.offset[start:stop])

    @classmethod
    def joined(cls, grids: list[Grid]) -> Grid:
        """Side by side, of one codebook or all integers."""
        if len(grids) == 1:
            return grids[0]
        names = ("scale", "offset", "low", "high")
        scale, offset, low, high = (torch.cat([getattr(grid, name) for grid in grids], -1) for name in names)
        return cls(scale, offset, low, high, grids[0].codebook)


def _ordered(weight: Tensor, order: Tensor) -> Tensor:
    """(columns in rounding order, rows) of (rows, columns); `order`: of all rows or of each."""
    return weight.T[order] if order.dim() == 1 else weight.gather(1, order).T


def _round_columns(work: Tensor, inputs: Hessian, grid: Grid, copies: int = 1) -> tuple[Tensor, Tensor]:
    """Codes and rounded values, both in the original order of columns.

    Args:
        work: (columns in rounding order, rows); it is overwritten.
        copies: of the same rows, one after the other.
    Returns:
        (columns, rows), int8 (or uint8) and float32.
    """
    work, (columns, rows) = work.contiguous(), work.shape
    codes = torch.empty(columns, rows, dtype=torch.uint8 if grid.codebook else torch.int8, device=work.device)
    if inputs.groups > 1:
        _groups_in_turn(work, inputs, grid, codes, copies)
        places = inputs.of_rows(rows // copies)[0].argsort(-1).T.repeat(1, copies)
        return codes.gather(0, places), work.gather(0, places)
    for start in range(0, columns, LAZY_COLUMNS):
        stop = min(start + LAZY_COLUMNS, columns)
        block, factor = work[start:stop], inputs.inverse[start:stop, start:stop]
        errors = _in_turn(block, factor, grid.columns(start, stop), codes[start:stop])
        if stop < columns:
            work[stop:] -= product(inputs.inverse[start:stop, stop:].T, errors.T)
    back = inputs.order.argsort()
    return codes[back], work[back]


def _in_turn(block: Tensor, factor: Tensor, grid: Grid, codes: Tensor) -> Tensor:
    """Round a block (columns, rows) in place and fill its codes; returns its errors."""
    book, arguments = grid.codebook, (block, factor, grid.scale, grid.offset, grid.low, grid.high)
    if book is None and native.reads(block):  # a tenth of the time
        return native.round_columns(*arguments, codes)
    errors, chosen = (one_by_one if isinstance(book, Table) else round_columns)(*arguments, book)
    codes.copy_(chosen if book is None else book.encode(chosen))
    return errors


def _groups_in_turn(work: Tensor, inputs: Hessian, grid: Grid, codes: Tensor, copies: int) -> None:
    """Round all columns of groups that do not share a factor in place, and fill their codes."""
    apart = (copies, inputs.groups, -1)
    factor = inputs.inverse.permute(1, 2, 0).unsqueeze(3).contiguous()
    block, scale, offset = (each.unflatten(1, apart) for each in (work, grid.scale, grid.offset))
    low, high = (each.unflatten(0, apart) for each in (grid.low, grid.high))
    _, chosen = one_by_one(block, factor, scale, offset, low, high, grid.codebook)
    codes.copy_((chosen if grid.codebook is None else grid.codebook.encode(chosen)).flatten(1))


def _parts(rows: int, work_per_row: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows with about `WORK` of work each."""
    step = max(1, portion(WORK, device) // work_per_row)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
