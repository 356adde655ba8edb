"""Rounding to nearest: each weight by itself, without any text."""

from __future__ import annotations

from natprec.quantizers import QuantizedTensor
from natprec.rounding.rounder import Rounder


class Nearest(Rounder):
    """Takes no time worth telling."""

    def round(self, segment: int) -> dict[str, QuantizedTensor]:
        """See `Rounder.round`."""
        return self.run.work.to_nearest(segment, self.run.work.sites)


ROUNDER = Nearest
