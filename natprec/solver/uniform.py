"""One format for every Linear weight: what a mixed plan must beat, and gives way to where it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from natprec.solver.allocation import Decision
from natprec.solver.fused_groups import Pair


def best_uniform(
    decisions: Sequence[Decision], formats: Sequence[Sequence[Pair]], chosen: Sequence[int]
) -> tuple[Pair, list[int]] | None:
    """The uniform plan with the least KL among those that store no more than a given plan.

    Decisions for which an engine has other formats than for most weights (embeddings, heads) keep theirs.

    Args:
        formats: of each decision, in the order of its `kl` and `stored`.
        chosen: format index of each decision in the given plan.
    Returns:
        The format and each decision's index, or None when no single format is as small.
    """
    common, same, sums = _sums(decisions, formats, chosen)
    allowed = total(decisions, chosen, "stored")
    fits = sums["stored"] <= allowed
    if not fits.any():
        return None
    best = int(np.where(fits, sums["kl"], np.inf).argmin())
    return common[best], [best if shared else index for shared, index in zip(same, chosen, strict=True)]


def uniform_sums(
    decisions: Sequence[Decision], formats: Sequence[Sequence[Pair]], others: Sequence[int]
) -> dict[Pair, tuple[float, float]]:
    """Format → KL and stored bytes of the plan that has it throughout; see `best_uniform`.

    Args:
        others: format index of the decisions for which an engine has other formats.
    """
    common, _, sums = _sums(decisions, formats, others)
    return {pair: (float(sums["kl"][at]), float(sums["stored"][at])) for at, pair in enumerate(common)}


def common_formats(decisions: Sequence[Decision], formats: Sequence[Sequence[Pair]]) -> tuple[Pair, ...]:
    """The formats that an engine has for most weights."""
    weights: Counter[tuple[Pair, ...]] = Counter()
    for decision, own in zip(decisions, formats, strict=True):
        weights[tuple(own)] += decision.elements
    return max(weights, key=lambda own: weights[own])


def _sums(
    decisions: Sequence[Decision], formats: Sequence[Sequence[Pair]], chosen: Sequence[int]
) -> tuple[tuple[Pair, ...], list[bool], dict[str, np.ndarray]]:
    """The formats of most weights, which decisions have them, and KL and bytes of all decisions under each."""
    common = common_formats(decisions, formats)
    same = [tuple(own) == common for own in formats]
    sums = {}
    for what in ("stored", "kl"):
        others = [
            getattr(u, what)[index] for u, index, shared in zip(decisions, chosen, same, strict=True) if not shared
        ]
        sums[what] = sum(getattr(u, what) for u, shared in zip(decisions, same, strict=True) if shared) + sum(others)
    return common, same, sums


def total(decisions: Sequence[Decision], chosen: Sequence[int], what: str) -> float:
    """Sum of the decisions' `kl` or `stored` under a plan."""
    return float(np.sum([getattr(decision, what)[index] for decision, index in zip(decisions, chosen, strict=True)]))
