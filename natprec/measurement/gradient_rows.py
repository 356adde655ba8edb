"""A few rows of each sequence's gradient: what the backward (Gibbs) flow is measured on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from natprec.utils.seeds import derived

ROWS = 8
"""Of each sequence's gradient, and of each use of a weight."""


@dataclass
class RowSamples:
    """Sequence → its rows, (rows, columns), on the CPU, and for how many rows each of them stands, float64."""

    rows: dict[int, Tensor] = field(default_factory=dict)
    standing: dict[int, Tensor] = field(default_factory=dict)

    def add(self, seed: int, sequence: int, gradient: Tensor, among: Tensor) -> None:
        """Keep a few rows of a gradient, drawn from those named by `among`, for which they stand."""
        generator = torch.Generator().manual_seed(derived(seed, sequence))
        chosen = among[torch.randperm(len(among), generator=generator)[:ROWS].to(among.device)]
        standing = torch.full((len(chosen),), len(among) / max(1, len(chosen)), dtype=torch.float64)
        rows = gradient[chosen].cpu()
        if sequence in self.rows:
            rows = torch.cat([self.rows[sequence], rows])
            standing = torch.cat([self.standing[sequence], standing])
        self.rows[sequence], self.standing[sequence] = rows, standing
