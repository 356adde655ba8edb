"""Two models on the same documents: what differs, how sure that is, and what so many documents could have shown.

Averages hide answers that flip in both directions (Dutta et al. 2024, arXiv:2407.09141), so flips are counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
NORMAL = 1.96
"""Of a 95 % interval, in standard deviations."""


@dataclass(frozen=True)
class Paired:
    """The scores of two models on the same documents.

    Attributes:
        base, quantized: means; `difference`: of `quantized` from `base`, with its 95 % interval.
        p_mcnemar: that as unequal a division of the flips comes from two equal models; None where scores are no
            right and wrong.
        flips_to_wrong, flips_to_right: documents; None where scores are no right and wrong.
        detectable: half-width of the interval of no difference at this many documents: a smaller one cannot be seen.
    """

    n: int
    base: float
    quantized: float
    difference: float
    ci95: tuple[float, float]
    p_mcnemar: float | None
    flips_to_wrong: int | None
    flips_to_right: int | None
    detectable: float

    @property
    def seen(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.ci95[0] > 0 or self.ci95[1] < 0


def paired(base: Sequence[float], quantized: Sequence[float], seed: int = 0) -> Paired:
    """Compare two lists of scores, document by document.

    Raises:
        ValueError: they differ in length, or there are none.
    """
    before, after = np.asarray(base, dtype=np.float64), np.asarray(quantized, dtype=np.float64)
    if before.shape != after.shape or before.size == 0:
        raise ValueError(f"scores of {before.size} and {after.size} documents: give those of the same documents")
    change = after - before
    right_or_wrong = bool(np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all())
    wrong, right = int((change < 0).sum()), int((change > 0).sum())
    spread = max(float(np.square(change).mean()), 1 / change.size) if right_or_wrong else float(change.var())
    return Paired(
        n=change.size,
        base=float(before.mean()),
        quantized=float(after.mean()),
        difference=float(change.mean()),
        ci95=_bootstrap(change, seed),
        p_mcnemar=mcnemar(wrong, right) if right_or_wrong else None,
        flips_to_wrong=wrong if right_or_wrong else None,
        flips_to_right=right if right_or_wrong else None,
        detectable=NORMAL * math.sqrt(spread / change.size),
    )


def mcnemar(wrong: int, right: int) -> float:
    """Exact two-sided p of McNemar's test (1947): flips in both directions, as likely as heads and tails.

    >>> mcnemar(0, 0), round(mcnemar(1, 8), 4)
    (1.0, 0.0391)
    """
    count = wrong + right
    tail = sum(math.comb(count, k) for k in range(min(wrong, right) + 1))
    return min(1.0, 2 * tail / 2**count)


def _bootstrap(change: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean (Efron 1979), documents resampled by the values that they have."""
    values, counts = np.unique(change, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(change.size, counts / change.size, RESAMPLES)
    low, high = np.quantile(draws @ values / change.size, (0.025, 0.975))
    return float(low), float(high)
