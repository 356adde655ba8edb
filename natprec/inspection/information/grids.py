"""Weights that lie on an affine grid already (T9), group by group: w = step · code + offset, exactly.

A checkpoint that was quantized before (a GGUF, or any other) and then stored as floats still realizes few values in
each of its groups. Found here: the fewest bits with which a 16-bit scale and codes give back every weight bit by bit,
for three kinds of offset: none (symmetric codes), an integer zero point, or a 16-bit float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

OFFSETS = ("none", "integer", "float")
MAX_BITS = 8
LEVELS = 2**MAX_BITS
SCALE_DTYPES = (torch.float16, torch.bfloat16)

DIVISORS = 4
"""The smallest gap between realized values of a group may be up to so many steps."""

SAMPLE_GROUPS = 512
CHUNK_WEIGHTS = 1 << 21


@dataclass(frozen=True)
class LosslessGrid:
    """What grids of one group size give back.

    Attributes:
        group_size: consecutive weights of a row that share scale and offset.
        bits: offset kind ('none', 'integer', 'float') → fewest bits; None where none up to 8 give the weights back.
        exact_share: offset kind → share of the groups that are given back; of a kind that fails, in a sample of them.
        realized: the largest number of different values in one group.
        counts: how often each code of the best kind occurs, over all groups.
    """

    group_size: int
    bits: dict[str, int | None]
    exact_share: dict[str, float]
    realized: int
    counts: Tensor

    @property
    def best(self) -> tuple[str, int] | None:
        """The offset kind that needs the fewest bits, the simplest among equals, and its bits."""
        found = [(bits, OFFSETS.index(kind)) for kind, bits in self.bits.items() if bits is not None]
        return (OFFSETS[min(found)[1]], min(found)[0]) if found else None


def lossless_grid(weight: Tensor, group_sizes: Sequence[int] = (32, 64, 128)) -> LosslessGrid | None:
    """The grid with the widest groups on which all weights lie.

    Args:
        weight: (rows, columns).
        group_sizes: tried in this order, each a multiple of the one before; those that divide the columns not, are
            left out.
    Returns:
        None where the weights lie on no grid in groups of the first size.
    """
    found = None
    for size in group_sizes:
        if weight.shape[1] % size:
            continue
        groups = weight.detach().reshape(-1, size)
        sample = groups[:: max(1, len(groups) // SAMPLE_GROUPS)].float()
        exact = _Fit.of(sample, torch.ones(len(OFFSETS), dtype=torch.bool)).bits.isfinite()
        if not exact.all(1).any():
            break
        grid = _over_all(groups, exact)
        if grid.best is None:
            break
        found = grid
    return found


def _over_all(groups: Tensor, sampled: Tensor) -> LosslessGrid:
    """One grid for (groups, group size) weights; kinds that failed on the (kinds, groups) sampled are not tried."""
    wanted = sampled.all(1)
    worst = torch.zeros(len(OFFSETS))
    exact = torch.zeros(len(OFFSETS))
    realized = 0
    counts = torch.zeros(2, 2 * LEVELS, dtype=torch.int64)  # codes from the group's lowest value, and from zero
    for part in groups.split(max(1, CHUNK_WEIGHTS // groups.shape[1])):
        fit = _Fit.of(part.float(), wanted)
        worst = torch.maximum(worst, fit.bits.amax(1))
        exact += fit.bits.isfinite().sum(1)
        realized = max(realized, fit.realized)
        for row, codes in enumerate((fit.codes, fit.codes + fit.zero.unsqueeze(1))):
            kept = codes.to(torch.int64).clamp_(-LEVELS, LEVELS - 1) + LEVELS
            counts[row] += torch.bincount(kept.reshape(-1), minlength=2 * LEVELS)
    bits = {kind: int(worst[i]) if worst[i].isfinite() else None for i, kind in enumerate(OFFSETS)}
    shares = torch.where(wanted, exact / len(groups), sampled.float().mean(1))
    exact_share = dict(zip(OFFSETS, shares.tolist(), strict=True))
    grid = LosslessGrid(groups.shape[1], bits, exact_share, realized, counts[0])
    return grid if grid.best is None or grid.best[0] == "float" else replace(grid, counts=counts[1])


@dataclass
class _Fit:
    """Grids of some groups.

    Attributes:
        bits: (offset kinds, groups), inf where none fits.
        codes: (groups, group size), steps above the group's lowest value.
        zero: (groups,), steps from zero to that value.
    """

    bits: Tensor
    codes: Tensor
    zero: Tensor
    realized: int

    @classmethod
    def of(cls, values: Tensor, wanted: Tensor) -> _Fit:
        order = values.sort(1).values
        low, high, gaps = order[:, 0], order[:, -1], order.diff(dim=1)
        realized = int((gaps > 0).sum(1).max()) + 1
        smallest = torch.where(gaps > 0, gaps, torch.inf).amin(1)
        constant = high == low
        # A constant group is one step away from zero, or zero itself.
        smallest = torch.where(constant, torch.where(low == 0, torch.ones_like(low), low.abs()), smallest)
        fit = cls(torch.full((len(OFFSETS), len(values)), torch.inf), torch.zeros_like(values), low * 0, realized)
        for divisor in range(1, DIVISORS + 1):
            for dtype in SCALE_DTYPES:
                left = (~fit.bits[wanted].isfinite()).any(0).nonzero().squeeze(1)
                if len(left):
                    fit._try(left, values[left], low[left], high[left], smallest[left] / divisor, dtype)
        return fit

    def _try(self, which: Tensor, values: Tensor, low: Tensor, high: Tensor, step: Tensor, dtype: torch.dtype) -> None:
        """One trial step per group; keeps what it gives back exactly in fewer bits."""
        span = ((high - low) / step).round()
        step = torch.where(span > 0, (high - low) / span.clamp(min=1), step)  # the span has the smallest relative error
        step = step.to(dtype).float()
        codes = ((values - low.unsqueeze(1)) / step.unsqueeze(1)).round_()
        zero = (low / step).round()
        offset = low.to(dtype).float().unsqueeze(1)
        with_float = ((codes * step.unsqueeze(1) + offset) == values).all(1)
        with_integer = ((codes + zero.unsqueeze(1)) * step.unsqueeze(1) == values).all(1)
        top = zero + span
        reach = torch.maximum(torch.maximum(top + 1, -zero), torch.ones_like(top))  # codes -reach to reach - 1
        mirrored = torch.maximum(torch.maximum(top, 1 - zero), torch.ones_like(top))  # with a negative scale
        levels = torch.stack(
            [
                2 * torch.minimum(reach, mirrored),
                top.clamp(min=0) - zero.clamp(max=0) + 1,  # a zero point is one of the codes
                span + 1,
            ]
        )
        bits = levels.clamp(min=2).log2().ceil()
        fits = torch.stack([with_integer, with_integer, with_float]) & (bits <= MAX_BITS)
        better = fits & (bits < self.bits[:, which])
        self.bits[:, which] = torch.where(better, bits, self.bits[:, which])
        taken = better.any(0)
        self.codes[which[taken]] = codes[taken]
        self.zero[which[taken]] = zero[taken]
