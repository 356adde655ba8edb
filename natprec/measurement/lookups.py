"""GPTQ of an embedding: what its rows put out, and the gradients that come back to it.

A row is looked up as it is, so there are no inputs whose moments say what its errors cost. But an error d of a row
costs dᵀ G d, with G = Σ g gᵀ over the gradients at what is looked up, as an error of a Linear's row costs dᵀ H d with
H = Σ x xᵀ over its inputs. So GPTQ rounds an embedding with G in place of H. G has few large directions, and few
positions have most of it: it is damped more than H is, and no position counts for more than some typical ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from natprec.measurement.gptq_ratio import Compensation
from natprec.quantizers.gptq import SHARE_ROWS, Judged, evenly
from natprec.quantizers.gram import add_named
from natprec.utils.hooks import differentiable

TYPICAL = 4.0
"""Times the median of a sequence's squared gradients: more than that no position counts."""

JUDGED_LOOKUPS = 8 * SHARE_ROWS
"""Rows with the gradient of one sequence, at most about so many, in which is seen how much GPTQ leaves."""


def own_lookups(ids: Tensor, output: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ids (sequences, …) and what they put out (sequences, …, columns), of each of so many sequences its own.

    Args:
        ids: as a module is given them; positions may be those of all sequences.
        output: of the module; what is returned in its place has a gradient, and the module's has none.
    """
    if ids.dim() == 1 and len(ids) != count:  # positions without a dimension of sequences
        ids, output = ids.unsqueeze(0), output.unsqueeze(0)
    if len(ids) == 1 < count:  # positions: one lookup that all sequences of the batch share
        ids, output = ids.expand(count, *ids.shape[1:]), output.expand(count, *output.shape[1:])
    return ids, differentiable(output)


def add_gradients(sums: dict[str, Tensor], name: str, gradient: Tensor) -> None:
    """Add one sequence's part of G, on and above the diagonal, in float64.

    Args:
        gradient: (positions, columns), at what the sequence looked up.
    """
    gradient = gradient.float()
    power = gradient.square().sum(1)
    typical = torch.where(power > 0, power, torch.nan).nanmedian()  # padding has none
    factor = (TYPICAL * typical / power).clamp_max(1.0).sqrt().nan_to_num(0.0)
    add_named(sums, name, gradient * factor.unsqueeze(1), torch.float64)


@dataclass
class LookupCompensation(Compensation):
    """Gathers at an embedding what its gradients say of GPTQ.

    Attributes:
        rows_each: rows of each sequence that judges, at most.
    """

    rows_each: int = SHARE_ROWS

    @property
    def judging_shape(self) -> tuple[int, int]:
        """Of each element of `judging`: a row of the weight, and one sequence's gradient of it."""
        return 2, self.site.shape[1]

    def look(self, gradient: Tensor, rows: Tensor, sums: Tensor, sequence: int) -> None:
        """Account for one sequence.

        Args:
            gradient: (positions, columns), at what was looked up.
            rows: numbers of the rows that were; `sums`: (rows, columns), the gradient of each.
        """
        if not self._judges(sequence):
            add_gradients(self.fitted, self.site.fused_group, gradient)
            return
        chosen = evenly(len(rows), self.rows_each).to(rows.device)
        self.judging.extend(torch.stack([self.weight[rows[chosen]].float(), sums[chosen]], 1))

    def judged(self) -> Judged:
        """Rows of the weight, each with what its errors count in one sequence."""
        weight, gradients = torch.stack(self.judging).unbind(1)
        return Judged(weight.contiguous(), gradients.unsqueeze(0))
