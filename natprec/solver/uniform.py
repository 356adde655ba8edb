"""One format for every Linear weight: what a mixed plan must beat, and gives way to where it does not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from natprec.formats import NumberFormat
from natprec.solver.allocation import Unit


def best_uniform(
    units: Sequence[Unit], formats: Sequence[Sequence[NumberFormat]], chosen: Sequence[int]
) -> tuple[NumberFormat, list[int]] | None:
    """The uniform plan with the least KL among those that store no more than a given plan.

    Units for which an engine has other formats than for most weights (embeddings, heads) keep theirs.

    Args:
        formats: of each unit, in the order of its `kl` and `stored`.
        chosen: format index of each unit in the given plan.
    Returns:
        The format and each unit's index, or None when no single format is as small.
    """
    common = max(
        formats, key=lambda own: sum(unit.elements for unit, f in zip(units, formats, strict=True) if f == own)
    )
    allowed = total(units, chosen, "stored")
    found = []
    for fmt in common:
        plan = [own.index(fmt) if own == common else index for own, index in zip(formats, chosen, strict=True)]
        if total(units, plan, "stored") <= allowed:
            found.append((total(units, plan, "kl"), fmt, plan))
    return min(found)[1:] if found else None


def total(units: Sequence[Unit], chosen: Sequence[int], what: str) -> float:
    """Sum of the units' `kl` or `stored` under a plan."""
    return float(np.sum([getattr(unit, what)[index] for unit, index in zip(units, chosen, strict=True)]))
