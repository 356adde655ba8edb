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
from natprec.quantizers.gptq import InputOrder, gptq_shares
from natprec.sites import Site
from natprec.transforms import Gauge, channel_scales

JUDGING = 4
"""Of so many sequences one judges what GPTQ, fitted to the others, leaves."""

DECIDING_BITS = 4
"""A unit's channels are rescaled if that helps at this width, or the nearest measured."""


@dataclass
class Compensation:
    """Gathers second moments at one weight, in float64: their sums must not depend on how sequences are shared out.

    Attributes:
        fitted: unit → Σ x xᵀ, later factorized; shared by the sites of a sweep.
        sensitivity: (rows,), Σ g² of the output's gradient.
        judging: (columns, columns), Σ |g|² x xᵀ of the sequences that judge.
        columns: (columns,), factors by which GPTQ finds the columns multiplied; None: as they are.
        left: (formats,), of rounding to nearest's distortion what is left: `shares` under the chosen columns.
    """

    site: Site
    weight: Tensor
    scale_dtype: torch.dtype
    fitted: dict[str, Tensor | InputOrder]
    sensitivity: Tensor | None = None
    judging: Tensor | None = None
    columns: Tensor | None = None
    left: Tensor | None = None

    def add(self, inputs: Tensor, gradient: Tensor, sequences: Sequence[int]) -> None:
        """Account for y = x Wᵀ: inputs (batch, time, columns), gradient (batch, time, rows), the batch's indices."""
        width = inputs.shape[-1]
        power = gradient.float().square()
        total = power.sum((0, 1)).double()
        self.sensitivity = total if self.sensitivity is None else self.sensitivity + total
        judges = torch.tensor([sequence % JUDGING == JUDGING - 1 for sequence in sequences])
        if self.site.name == self.site.unit and not judges.all():
            seen = inputs[~judges].flatten(0, 1)
            sums = self.fitted.setdefault(self.site.unit, inputs.new_zeros(width, width, dtype=torch.float64))
            assert isinstance(sums, Tensor)
            sums += seen.T @ seen
        if judges.any():
            seen = inputs[judges].flatten(0, 1)
            weighted = seen * power[judges].sum(-1).view(-1, 1)
            if self.judging is None:
                self.judging = inputs.new_zeros(width, width, dtype=torch.float64)
            self.judging += weighted.T @ seen

    def inputs(self) -> InputOrder | None:
        """The unit's, factorized by the first that asks; None where nothing came to fit or to judge by."""
        found = self.fitted.get(self.site.unit)
        if found is None or self.judging is None:
            return None
        self.fitted[self.site.unit] = inputs = found if isinstance(found, InputOrder) else InputOrder.of(found.float())
        return inputs

    def shares(self, formats: Sequence[NumberFormat], columns: Tensor | None) -> Tensor:
        """(formats,): of rounding to nearest's distortion what is left with columns multiplied by `columns`."""
        inputs = self.inputs()
        if inputs is None or self.judging is None or self.sensitivity is None:
            return torch.ones(len(formats), dtype=torch.float64)
        judging, sensitivity = self.judging.float(), self.sensitivity.float()
        return gptq_shares(self.weight, inputs, judging, sensitivity, formats, self.scale_dtype, columns)


def deciding_format(formats: Sequence[NumberFormat], columns: int) -> int:
    """The place of the format at which it is decided whether to rescale: of the nearest width the smallest groups."""
    distance = [(abs(fmt.bits - DECIDING_BITS), -fmt.groups(columns)) for fmt in formats]
    return distance.index(min(distance))


def rescale(members: Sequence[Compensation], gauge: Gauge, fmt: NumberFormat, nearest: Sequence[float]) -> None:
    """Set `columns` of all sites of a unit, if GPTQ leaves less of their distortion that way.

    Args:
        fmt: at which it is decided.
        nearest: of each member, the distortion of rounding to nearest under that format.
    """
    inputs = members[0].inputs()
    if inputs is None:
        return
    scale = channel_scales([each.weight for each in members], inputs.cost, fmt, gauge)
    columns = scale[gauge.channels(len(inputs.order)).to(scale.device)]
    plain, scaled = (
        sum(kl * float(each.shares([fmt], factors)) for each, kl in zip(members, nearest, strict=True))
        for factors in (None, columns)
    )
    if scaled < plain:
        for each in members:
            each.columns = columns
