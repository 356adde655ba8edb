"""Weights as codes: what they realize, and what rounding them to a format erases (T9).

Scales belong to groups, so the map from a weight to its code does too. What it erases is H(X | code, group), with X
the weight. On a grid X is one of few codes of its group, counted there. Elsewhere a group is too small a sample: there
X has the distribution of the whole tensor, and a code says in which interval of it the weight lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from natprec.formats import Format
from natprec.inspection.information import Codebook, LosslessGrid, landauer_joules, lossless_grid
from natprec.inspection.information.codebook import half_histogram
from natprec.inspection.information.entropy import miller_madow_bits
from natprec.inspection.information.landauer import marginal_bound_bits
from natprec.inspection.ir.boundaries import Boundary
from natprec.quantizers import Extent, QuantizedTensor, quantize
from natprec.quantizers.ranks import interval

CHUNK = 1 << 21


@dataclass(frozen=True)
class WeightCodes:
    """What a weight realizes.

    Attributes:
        entropy_bits: of its codes: those of the grid that it lies on, else those of the 16-bit float.
        realized_codes: how many different codes occur, on a grid in one group at most.
        lossless_bits: the fewest bits that tell them apart.
        grid: the grid that it lies on; None: it lies on none, and `book` holds its codes.
    """

    entropy_bits: float
    realized_codes: int
    lossless_bits: int
    grid: LosslessGrid | None
    book: Codebook | None


def weight_codes(weight: Tensor, dtype: torch.dtype) -> WeightCodes:
    """Look for a grid; else count the codes of the 16-bit dtype.

    Args:
        weight: of any shape, its first dimension the outputs.
    """
    rows = weight.detach().reshape(len(weight), -1)
    grid = lossless_grid(rows)
    if grid is not None and grid.best is not None:
        _, bits = grid.best
        return WeightCodes(miller_madow_bits(grid.counts, 2**bits), grid.realized, bits, grid, None)
    book = Codebook.of_half(half_histogram(rows, dtype).cpu(), dtype)
    return WeightCodes(book.entropy_bits, book.size, book.lossless_bits, None, book)


def rounding_cost(
    name: str, weight: Tensor, codes: WeightCodes, fmt: Format, scale_dtype: torch.dtype, kelvin: float
) -> Boundary:
    """What rounding a weight to nearest in a format erases."""
    rows = weight.detach().reshape(len(weight), -1)
    elements = rows.numel()
    lost, bound, colliding = 0.0, 0.0, 0
    extent, size = Extent.of(rows, [fmt]), fmt.span(rows.shape[1])
    whole = rows.shape[1] % size == 0  # else the last block is short: whole rows, by the values that codes stand for
    step = max(1, CHUNK // rows.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        made = quantize(part, fmt, scale_dtype, extent.at(slice(start, start + step)))
        values = part.reshape(-1, size if whole else part.shape[1])
        order = values.sort(1)
        given = made.ranks if whole else made.dequantize()
        own, images = _runs(order.values), _runs(given.reshape(values.shape).gather(1, order.indices))
        colliding += int(((images.counts != own.counts) & own.starts).sum())
        if codes.book is None:
            lost += float((images.counts.double() / own.counts).log2().sum())
            bound += _bound(own.counts, fmt.bits)
        else:
            lost += interval_bits(codes.book, made)
    if codes.book is not None:
        bound = marginal_bound_bits(codes.entropy_bits, fmt.bits, elements)
    return Boundary(
        source=f"{name}.weight",
        target=name,
        source_operation=None,
        target_operation=None,
        kind="weight",
        elements=elements,
        source_bits=codes.lossless_bits,
        target_bits=fmt.bits,
        source_entropy_bits=codes.entropy_bits,
        realized_codes=codes.realized_codes,
        unseen_mass=None,
        injective=colliding == 0,
        colliding_codes=colliding,
        heldout_unseen=None,
        heldout_collisions=None,
        free=colliding == 0,
        erased_bits=lost,
        erased_bits_bound=bound,
        landauer_joules=landauer_joules(lost, kelvin),
        fused=False,
    )


def interval_bits(book: Codebook, made: QuantizedTensor) -> float:
    """Σ over weights of the entropy of `book` within the interval of values that share the weight's code."""
    scale = made.spread(made.scale)
    zero = 0.0 if made.zero_point is None else made.spread(made.zero_point).float()
    ends = [((end - zero) * scale).reshape(-1) for end in interval(made.format.codebook, made.codes)]
    counts = book.counts.double()
    sums = torch.stack([counts, counts * counts.log2()]).cumsum(1)
    sums = torch.cat([torch.zeros(2, 1, dtype=torch.float64), sums], 1).to(scale.device)
    table = book.values.to(scale.device)
    first = torch.searchsorted(table, torch.minimum(*ends))  # a negative scale turns the interval round
    last = torch.searchsorted(table, torch.maximum(*ends))
    inside, weighted = sums[:, last] - sums[:, first]
    entropy = torch.where(inside > 0, inside.clamp(min=1).log2() - weighted / inside.clamp(min=1), 0.0)
    return float(entropy.clamp(min=0).sum())


def _bound(counts: Tensor, bits: int) -> float:
    """N · max(0, H - b), with H of each group by itself."""
    size = counts.shape[1]
    entropy = (size / counts.double()).log2().mean(1)
    return float((entropy - bits).clamp(min=0).sum()) * size


@dataclass(frozen=True)
class _Runs:
    """Equal neighbours in sorted rows: of each element the length of its run, and whether it is the first."""

    counts: Tensor
    starts: Tensor


def _runs(rows: Tensor) -> _Runs:
    starts = torch.ones(rows.shape, dtype=torch.bool, device=rows.device)
    starts[:, 1:] = rows[:, 1:] != rows[:, :-1]
    place = starts.reshape(-1).cumsum(0) - 1
    counts = torch.bincount(place)[place].reshape(rows.shape)
    return _Runs(counts, starts)
