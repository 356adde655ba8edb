"""Intervals from sequences: the only independent samples that a text offers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

BOOTSTRAP_DRAWS = 2000


def bootstrap_interval(values: np.ndarray, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), resampling the values.

    Args:
        values: (samples,), one mean per sequence or per pool of sequences; equal weights.
        level: coverage, 0 to 1.
    Returns:
        Low and high end; both equal the mean when there is a single value.
    """
    draws = np.random.default_rng(seed).integers(0, len(values), (BOOTSTRAP_DRAWS, len(values)))
    means = values[draws].mean(axis=1)
    return _percentiles(means, level)


def bootstrap_ratio(above: np.ndarray, below: np.ndarray, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the ratio of two means, resampling pairs.

    Args:
        above, below: (samples,) each, of the same samples.
    """
    draws = np.random.default_rng(seed).integers(0, len(above), (BOOTSTRAP_DRAWS, len(above)))
    return _percentiles(above[draws].mean(axis=1) / below[draws].mean(axis=1), level)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t, from independent values, two at least: see `t_quantile`.

    >>> low, high = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> f"{low:.2f} {high:.2f}"
    '1.04 4.96'
    """
    mean = statistics.fmean(values)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def t_quantile(free: int) -> float:
    """The 97.5 % quantile of Student's t with so many degrees of freedom.

    By Cornish and Fisher (Abramowitz and Stegun 26.7.5), within 0.3 % from 4 degrees of freedom.
    """
    z = 1.959964
    return (
        z
        + (z**3 + z) / (4 * free)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    )


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation; ties share their mean rank. 0 where one of them is constant.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 1000.0, 20.0]))
    0.5
    """
    ranks = np.stack([_ranks(one), _ranks(other)])
    ranks -= ranks.mean(1, keepdims=True)
    size = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum() / size) if size else 0.0


def bootstrap_correlation(
    one: np.ndarray, other: np.ndarray, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of `rank_correlation`, resampling pairs; draws of one pair only are left out."""
    draws = np.random.default_rng(seed).integers(0, len(one), (BOOTSTRAP_DRAWS, len(one)))
    found = [rank_correlation(one[draw], other[draw]) for draw in draws if len(set(draw)) > 1]
    return _percentiles(found, level)


def _percentiles(draws: np.ndarray | list[float], level: float) -> tuple[float, float]:
    """The middle `level` of what was drawn."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]
