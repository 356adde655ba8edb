"""What is learned of a rounded weight: where each value lies among the codes, and by what its scales are multiplied.

The code of a value is the one nearest to its position. A gradient by the rounded value moves the position as if nothing
had been rounded (the straight-through estimator: Bengio et al. 2013, arXiv:1308.3432).
"""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.quantizers import QuantizedTensor
from natprec.quantizers.ranks import rank_range

WITHIN = 0.49
"""How far outside of its range, in codes, a position may go."""


class Positions:
    """Of one weight.

    Attributes:
        at: (rows, columns), float32: ranks that need not be whole.
        moves: (rows, groups), float32: each scale is multiplied by 1 more than this.
    """

    def __init__(self, weight: Tensor, start: QuantizedTensor, dtype: torch.dtype, within: float = WITHIN) -> None:
        """Where a weight (rows, columns) lies on a grid, but within the codes that were chosen.

        Args:
            dtype: of stored scales.
            within: how far from its code a position begins at most, in codes.
        """
        self._start, self._dtype = start, dtype
        ranks = start.ranks
        self.at = torch.maximum(torch.minimum(start.located(weight), ranks + within), ranks - within)
        self.moves = torch.zeros_like(start.scale)
        self._range = rank_range(start.format.codebook)
        falls = bool((start.scale < 0).any())
        self._uphill = start.spread(start.scale.sign()) if falls else None  # where values grow with codes

    def slopes(self, gradient: Tensor, now: QuantizedTensor) -> tuple[Tensor, Tensor]:
        """A gradient (rows, columns) by the values, of which this is `now`: by positions, and by relative scales.

        That by positions is exact up to a positive factor of each.
        """
        return gradient if self._uphill is None else gradient * self._uphill, now.scale_slope(gradient)

    def clamp_(self) -> None:
        """Positions that have left the range of codes come back to its ends."""
        low, high = self._range
        self.at.clamp_(low - WITHIN, high + WITHIN)

    def rounded(self) -> QuantizedTensor:
        """The codes and scales that the positions stand for now."""
        return self._start.at_ranks(self.at).scaled(1 + self.moves, self._dtype)
