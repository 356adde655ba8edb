"""Intervals from sequences: the only independent units that a text offers."""

from __future__ import annotations

import numpy as np

BOOTSTRAP_DRAWS = 2000


def bootstrap_interval(values: np.ndarray, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), resampling the units.

    Args:
        values: (units,), one mean per sequence or per pool of sequences; equal weights.
        level: coverage, 0 to 1.
    Returns:
        Low and high end; both equal the mean when there is a single unit.
    """
    draws = np.random.default_rng(seed).integers(0, len(values), (BOOTSTRAP_DRAWS, len(values)))
    means = values[draws].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
