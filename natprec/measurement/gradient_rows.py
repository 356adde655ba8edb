"""A few rows of each sequence's gradient: what the backward (Gibbs) flow is measured on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from natprec.utils.seeds import derived

ROWS = 8
"""Of each sequence's gradient, and of each use of a weight."""


def drawn_rows(seed: int, sequence: int, count: int) -> Tensor:
    """Which of `count` rows of a sequence's gradient are kept: (rows,), int64."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived(seed, sequence)))[:ROWS]


@dataclass
class RowSamples:
    """Sequence → its rows, (rows, columns), and for how many rows each of them stands, float64, on the CPU."""

    rows: dict[int, Tensor] = field(default_factory=dict)
    standing: dict[int, Tensor] = field(default_factory=dict)

    def add(self, seed: int, sequence: int, gradient: Tensor, among: Tensor) -> None:
        """Keep a few rows of a gradient on the CPU, drawn from those named by `among`, for which they stand."""
        chosen = among[drawn_rows(seed, sequence, len(among)).to(among.device)]
        standing = torch.full((len(chosen),), len(among) / max(1, len(chosen)), dtype=torch.float64)
        rows = gradient[chosen].cpu()
        if sequence in self.rows:
            rows = torch.cat([self.rows[sequence], rows])
            standing = torch.cat([self.standing[sequence], standing])
        self.rows[sequence], self.standing[sequence] = rows, standing

    def put(self, sequence: int, rows: Tensor, among: int) -> None:
        """Keep rows of a gradient that were drawn from so many, on the device where they are."""
        self.rows[sequence] = rows
        self.standing[sequence] = torch.full((len(rows),), among / max(1, len(rows)), dtype=torch.float64)

    def together(self) -> Tensor:
        """(rows of all sequences, columns), in the order of the sequences."""
        return torch.cat([self.rows[sequence] for sequence in sorted(self.rows)])

    def owners(self) -> tuple[Tensor, Tensor]:
        """Of each of these rows its sequence, and for how many rows it stands."""
        order = sorted(self.rows)
        owner = torch.cat([torch.full((len(self.rows[sequence]),), sequence) for sequence in order])
        return owner, torch.cat([self.standing[sequence] for sequence in order])
