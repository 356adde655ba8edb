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
    common, same, sums = _sums(units, formats, chosen)
    allowed = total(units, chosen, "stored")
    fits = sums["stored"] <= allowed
    if not fits.any():
        return None
    best = int(np.where(fits, sums["kl"], np.inf).argmin())
    return common[best], [best if shared else index for shared, index in zip(same, chosen, strict=True)]


def uniform_sums(
    units: Sequence[Unit], formats: Sequence[Sequence[Pair]], others: Sequence[int]
) -> dict[Pair, tuple[float, float]]:
    """Format → KL and stored bytes of the plan that has it throughout; see `best_uniform`.

    Args:
        others: format index of the units for which an engine has other formats.
    """
    common, _, sums = _sums(units, formats, others)
    return {pair: (float(sums["kl"][at]), float(sums["stored"][at])) for at, pair in enumerate(common)}


def _sums(
    units: Sequence[Unit], formats: Sequence[Sequence[Pair]], chosen: Sequence[int]
) -> tuple[tuple[Pair, ...], list[bool], dict[str, np.ndarray]]:
    """The formats of most weights, which units have them, and KL and bytes of all units under each."""
    weights: Counter[tuple[Pair, ...]] = Counter()
    for unit, own in zip(units, formats, strict=True):
        weights[tuple(own)] += unit.elements
    common = max(weights, key=lambda own: weights[own])
    same = [tuple(own) == common for own in formats]
    sums = {}
    for what in ("stored", "kl"):
        others = [getattr(u, what)[index] for u, index, shared in zip(units, chosen, same, strict=True) if not shared]
        sums[what] = sum(getattr(u, what) for u, shared in zip(units, same, strict=True) if shared) + sum(others)
    return common, same, sums


def total(units: Sequence[Unit], chosen: Sequence[int], what: str) -> float:
    """Sum of the units' `kl` or `stored` under a plan."""
    return float(np.sum([getattr(unit, what)[index] for unit, index in zip(units, chosen, strict=True)]))
