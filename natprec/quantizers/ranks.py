"""Ranks: the place of a value among those of a codebook, so that a code's neighbours are one step away.

The rank of an integer is the integer. Other codebooks count from their least value up; between two of them a rank is
linear. So whatever moves codes, or asks which values share one, treats all codebooks alike.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from natprec.formats import Codebook, Integer, Table


@functools.cache
def ladder(codebook: Codebook) -> tuple[Tensor, Tensor]:
    """The different values of a codebook, float32 and rising, and a code of each, uint8."""
    count = len(codebook.values) if isinstance(codebook, Table) else 2**codebook.bits
    codes = torch.arange(count, dtype=torch.int32).to(torch.uint8)
    values = codebook.decode(codes)
    held = torch.isfinite(values) & (values >= codebook.smallest) & (values <= codebook.largest)
    values, codes = values[held], codes[held]
    order = values.argsort(stable=True)  # of both zeros the positive one comes first
    values, codes = values[order], codes[order]
    first = torch.ones(len(values), dtype=torch.bool)
    first[1:] = values[1:] != values[:-1]
    return values[first], codes[first]


def rank_range(codebook: Codebook) -> tuple[int, int]:
    """The least and the greatest rank."""
    if isinstance(codebook, Integer):
        return codebook.smallest, codebook.largest
    return 0, len(ladder(codebook)[0]) - 1


def rank(codebook: Codebook, values: Tensor) -> Tensor:
    """Of values in units of the scale, float32; beyond the range linear as at its end."""
    if isinstance(codebook, Integer):
        return values
    table = ladder(codebook)[0].to(values.device)
    below = (torch.bucketize(values, table, right=True) - 1).clamp_(0, len(table) - 2)
    return below + (values - table[below]) / (table[below + 1] - table[below])


def rank_of_code(codebook: Codebook, codes: Tensor) -> Tensor:
    """Of codes; whole numbers."""
    if isinstance(codebook, Integer):
        return codes
    table = ladder(codebook)[0].to(codes.device)
    return torch.bucketize(codebook.decode(codes), table)


def code_at(codebook: Codebook, ranks: Tensor) -> Tensor:
    """The code of the nearest rank."""
    low, high = rank_range(codebook)
    if isinstance(codebook, Integer):
        return ranks.round().clamp(low, high).to(torch.int8)
    return ladder(codebook)[1].to(ranks.device)[ranks.round().clamp(low, high).long()]


def interval(codebook: Codebook, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of what rounds to each code, in units of the scale, float32; infinite at the range's ends."""
    if isinstance(codebook, Integer):
        own = codes.float()
        ends = (own - 0.5, own + 0.5)
        at, (low, high) = own, rank_range(codebook)
    else:
        table = ladder(codebook)[0].to(codes.device)
        middles = (table[1:] + table[:-1]) / 2
        at, (low, high) = rank_of_code(codebook, codes), rank_range(codebook)
        ends = middles[(at - 1).clamp(min=0)], middles[at.clamp(max=high - 1)]
    return torch.where(at == low, -torch.inf, ends[0]), torch.where(at == high, torch.inf, ends[1])
