"""What GPTQ, which makes up for its errors, will leave of a site's distortion.

It follows from the inputs' second moments, Σ x xᵀ, which sites with one input share, and from the power of each
output's gradient: see `gptq_shares`. GPTQ is fitted to three of four sequences and judged on the fourth. Where a
unit's channels can be rescaled (see `natprec.transforms`), both ways are judged and the better one is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from natprec.formats import NumberFormat
from natprec.quantizers.gptq import InputOrder, Judged, gptq_shares
from natprec.sites import Site
from natprec.transforms import Gauge, channel_scales

JUDGING = 4
"""Of so many sequences one judges what GPTQ, fitted to the others, leaves."""

DECIDING_BITS = 4
"""A unit's channels are rescaled if that helps at this width, or the nearest measured."""

PRODUCT_COLUMNS = 256
"""Rows of a matrix of products that are computed at a time, from the diagonal on."""


@dataclass
class Compensation:
    """Gathers second moments at one weight.

    Attributes:
        fitted: unit → Σ x xᵀ, on and above the diagonal; shared by the sites of a sweep.
        sensitivity: (rows,), Σ g² of the output's gradient.
        judging: (columns, columns), Σ |g|² x xᵀ of the sequences that judge, on and above the diagonal.
        columns: (columns,), factors by which GPTQ finds the columns multiplied; None: as they are.
        left: (formats,), the share of rounding to nearest's distortion that GPTQ leaves; None: not decided.
    """

    site: Site
    weight: Tensor
    scale_dtype: torch.dtype
    fitted: dict[str, Tensor]
    sensitivity: Tensor | None = None
    judging: Tensor | None = None
    columns: Tensor | None = None
    left: Tensor | None = None

    def add(self, inputs: Tensor, gradient: Tensor, sequences: Sequence[int]) -> None:
        """Account for y = x Wᵀ: inputs (batch, time, columns), gradient (batch, time, rows), the batch's indices."""
        width = inputs.shape[-1]
        power = gradient.float().square()
        total = power.sum((0, 1))
        self.sensitivity = total if self.sensitivity is None else self.sensitivity + total
        judges = torch.tensor([sequence % JUDGING == JUDGING - 1 for sequence in sequences])
        if self.site.name == self.site.unit and not judges.all():
            seen = inputs[~judges].flatten(0, 1)
            _add_products(self.fitted.setdefault(self.site.unit, inputs.new_zeros(width, width)), seen, seen)
        if judges.any():
            seen = inputs[judges].flatten(0, 1)
            weighted = seen * power[judges].sum(-1).view(-1, 1)
            self.judging = inputs.new_zeros(width, width) if self.judging is None else self.judging
            _add_products(self.judging, weighted, seen)

    def judged(self) -> Judged | None:
        """What errors count here; None where no text came to judge by."""
        if self.judging is None or self.sensitivity is None:
            return None
        return Judged(self.weight, _mirrored(self.judging), self.sensitivity)


def deciding_format(formats: Sequence[NumberFormat], columns: int) -> int:
    """The place of the format at which it is decided whether to rescale: of the nearest width the smallest groups."""
    distance = [(abs(fmt.bits - DECIDING_BITS), -fmt.groups(columns)) for fmt in formats]
    return distance.index(min(distance))


def decide(
    members: Sequence[Compensation],
    formats: Sequence[NumberFormat],
    nearest: Sequence[Tensor],
    gauge: Gauge | None,
) -> None:
    """Set what is left at all sites of a unit, and how its columns are rescaled if less is left that way.

    Args:
        formats: of all of them.
        nearest: of each member, (formats,), the distortion of rounding to nearest.
        gauge: where the unit can be rescaled.
    """
    first = members[0]
    moments, judged = first.fitted.get(first.site.unit), [each.judged() for each in members]
    weights = [each for each in judged if each is not None]
    if moments is None or len(weights) < len(members):
        return
    inputs = InputOrder.of(_mirrored(moments))
    scalings: list[Tensor | None] = [None]
    if gauge is not None:
        place = deciding_format(formats, first.site.shape[1])
        scale = channel_scales([each.weight for each in members], inputs.cost, formats[place], gauge)
        scalings.append(scale[gauge.channels(len(inputs.order)).to(scale.device)])
    shares = gptq_shares(weights, inputs, formats, first.scale_dtype, scalings)
    best = 0
    if gauge is not None:
        totals = sum(kl[place] * share[:, place] for kl, share in zip(nearest, shares, strict=True))
        best = int(torch.as_tensor(totals).argmin())
    for each, share in zip(members, shares, strict=True):
        each.columns, each.left = scalings[best], share[best]


def _add_products(sums: Tensor, left: Tensor, right: Tensor) -> None:
    """Add leftᵀ right (columns, columns), which is symmetric, on and above the diagonal; blocks below it stay 0."""
    for start in range(0, len(sums), PRODUCT_COLUMNS):
        stop = start + PRODUCT_COLUMNS
        sums[start:stop, start:].addmm_(left[:, start:stop].T, right[:, start:])


def _mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix of which only what lies on and above the diagonal is right."""
    return upper.triu() + upper.triu(1).T
