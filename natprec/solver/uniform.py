"""One format for every Linear weight: what a mixed plan must beat, and gives way to where it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from natprec.solver.allocation import Unit
from natprec.solver.units import Pair


def best_uniform(
    units: Sequence[Unit], formats: Sequence[Sequence[Pair]], chosen: Sequence[int]
) -> tuple[Pair, list[int]] | None:
    """The uniform plan with the least KL among those that store no more than a given plan.

    Units for which an engine has other formats than for most weights (embeddings, heads) keep theirs.

    Args:
        formats: of each unit, in the order of its `kl` and `stored`.
        chosen: format index of each unit in the given plan.
    Returns:
        The format and each unit's index, or None when no single format is as small.
    """
    weights: Counter[tuple[Pair, ...]] = Counter()
    for unit, own in zip(units, formats, strict=True):
        weights[tuple(own)] += unit.elements
    common = max(weights, key=lambda own: weights[own])
    same = [tuple(own) == common for own in formats]
    allowed = total(units, chosen, "stored")
    sums = {}
    for what in ("stored", "kl"):
        others = [getattr(u, what)[index] for u, index, shared in zip(units, chosen, same, strict=True) if not shared]
        sums[what] = sum(getattr(u, what) for u, shared in zip(units, same, strict=True) if shared) + sum(others)
    fits = sums["stored"] <= allowed
    if not fits.any():
        return None
    best = int(np.where(fits, sums["kl"], np.inf).argmin())
    return common[best], [best if shared else index for shared, index in zip(same, chosen, strict=True)]


def total(units: Sequence[Unit], chosen: Sequence[int], what: str) -> float:
    """Sum of the units' `kl` or `stored` under a plan."""
    return float(np.sum([getattr(unit, what)[index] for unit, index in zip(units, chosen, strict=True)]))
