"""From gathered gradients to numbers: the sums that turn E[g²] and δ(b)² into a distortion.

Each function takes what an observer gathered at one site and contracts it with the squared errors
of all formats at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from natprec.formats import NumberFormat
from natprec.quantizers import squared_errors

CONTRACT_ROWS = 1 << 18
"""Weights contracted at a time."""


def contract(
    squares: Tensor, weight: Tensor, formats: Sequence[NumberFormat], scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Σ_ij squares[u, i, j] · error_f[i, j]², and Σ_ij squares[u, i, j].

    Args:
        squares: (units, rows, columns), squared gradients.
    Returns:
        (units, formats + 1) and (units,), float64.
    """
    values = torch.zeros(len(squares), len(formats) + 1, dtype=torch.float64)
    energy = torch.zeros(len(squares), dtype=torch.float64)
    step = max(1, CONTRACT_ROWS // weight.shape[1])
    for start in range(0, len(weight), step):
        errors = squared_errors(weight[start : start + step], formats, scale_dtype)
        chunk = squares[:, start : start + step].reshape(len(squares), -1)
        values += (chunk @ errors.T).cpu().double()
        energy += chunk.sum(1).cpu().double()
    return values, energy


def rounding_distortion(
    sampled: dict[int, Tensor], standing: dict[int, Tensor], formats: Sequence[NumberFormat], sequences: int
) -> Tensor:
    """‖∇ - Q(∇)‖² of each sequence's gradient, from a sample of its rows (T3): (sequences, formats).

    Args:
        sampled: sequence → (rows, columns) of its gradient.
        standing: sequence → (rows,), the number of rows that each sampled row stands for.
    """
    result = torch.zeros(sequences, len(formats), dtype=torch.float64)
    if sampled:
        order = sorted(sampled)
        rows = torch.cat([sampled[sequence] for sequence in order])
        owner = torch.cat([torch.full((len(sampled[sequence]),), sequence) for sequence in order])
        errors = squared_errors(rows, formats, torch.float32)[:-1].view(len(formats), *rows.shape).sum(2).double()
        result.index_add_(0, owner, (errors * torch.cat([standing[sequence] for sequence in order])).T)
    return result


@dataclass
class Lookup:
    """Gradients at the rows of an embedding that one sequence touched."""

    rows: Tensor  # (touched,), int64
    counts: Tensor  # (touched,), occurrences
    own: Tensor  # (touched, columns): gradient through the lookup, squared
    joint: Tensor  # (touched, columns): own plus twice its product with the head's gradient


def lookup_values(
    lookups: dict[int, Lookup],
    weight: Tensor,
    formats: Sequence[NumberFormat],
    scale_dtype: torch.dtype,
    terms: int,
) -> Tensor:
    """Distortion per term through an embedding's lookups: (sequences, formats + 1), float64.

    Rows that the text never touched are unknown, not free. A share m of the positions of other text
    holds unseen tokens (Good 1953: m = tokens seen once / tokens); each costs what a token seen once
    cost here, with the rounding errors of the unseen rows. Seen rows keep the share 1 - m. Where
    no token was seen once, one position counts as if, at the cost of an occurrence of the rarest.
    """
    counts = torch.zeros(weight.shape[0], dtype=torch.int64, device=weight.device)
    for lookup in lookups.values():
        counts[lookup.rows] += lookup.counts
    seen = counts.nonzero().squeeze(1)
    position = torch.full_like(counts, -1)
    position[seen] = torch.arange(len(seen), device=weight.device)
    columns = weight.shape[1]
    errors = squared_errors(weight[seen], formats, scale_dtype).view(-1, len(seen), columns)
    values = torch.zeros(len(lookups), len(errors), dtype=torch.float64)
    single = torch.zeros(columns, device=weight.device)
    rarest = counts[seen].min()  # 1, unless the text repeats itself throughout
    for index, lookup in enumerate(lookups.values()):
        at = position[lookup.rows]
        values[index] = torch.einsum("rc,krc->k", lookup.joint, errors[:, at]).cpu().double() / (2 * terms)
        single += lookup.own[counts[lookup.rows] == rarest].sum(0)
    singles = int((counts == rarest).sum())
    others = (counts == 0).nonzero().squeeze(1)
    if len(others) == 0:
        return values
    tokens = int(counts.sum())
    mass = (singles if rarest == 1 else 1) / tokens
    unseen = mass * (tokens / (len(lookups) * terms))  # positions per term of a sequence
    typical = torch.zeros(len(errors), columns, device=weight.device)
    for rows in others.split(max(1, CONTRACT_ROWS // columns)):
        chunk = squared_errors(weight[rows], formats, scale_dtype)
        typical += chunk.view(-1, len(rows), columns).sum(1)
    per_occurrence = (typical / len(others)) @ (single / (singles * rarest)) / 2
    return (1 - mass) * values + unseen * per_occurrence.cpu().double()
