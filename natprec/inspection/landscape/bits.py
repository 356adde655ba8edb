"""b* of a place: the fewest bits at which each of its tensors, alone, keeps the tolerance (T1), and its interval.

Of a place with several layers it is the mean over them, with the largest beside it. Intervals come from resampling
images, all layers of a place together, so that what images have in common is in them. Percentiles of a few images'
resamplings lie too close together; they are moved outwards as Hesterberg does (2015, arXiv:1411.5279, section 5.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from natprec.utils.statistics import t_quantile

DRAWS = 1000
"""Resamplings."""

LEVEL = 0.95
"""Of the intervals, as `t_quantile` has it."""

MOST = 24
"""Bits that are told apart from more."""


@dataclass(frozen=True)
class Bits:
    """At one tolerance.

    Attributes:
        mean: over layers, of whole bits; `largest`: of one layer.
        draws: (`DRAWS`,) means of resampled images; `images`: how many there are.
    """

    mean: float
    largest: int
    draws: np.ndarray
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        """Of the mean: see `middle`."""
        return middle(self.draws, self.images)


def middle(draws: np.ndarray, images: int) -> tuple[float, float]:
    """The 95 % interval from resamplings of so many images; of one image the mean itself."""
    tail = NormalDist().cdf(-math.sqrt(images / (images - 1)) * t_quantile(images - 1)) if images > 1 else 0.5
    low, high = np.quantile(draws, [tail, 1 - tail], method="nearest")
    return float(low), float(high)


def fewest(widths: Sequence[int], values: np.ndarray, tolerance: float) -> np.ndarray:
    """The fewest bits from which on every width keeps the tolerance, of each of many curves.

    Beyond the widest that was measured each bit divides the distortion by 4, as it does on every grid that is fine
    enough.

    >>> fewest([2, 4, 6], np.array([0.1, 0.01, 0.001]), 0.02), fewest([2, 4, 6], np.array([0.1, 0.01, 0.001]), 0.0001)
    (array(4), array(8))

    Args:
        values: (…, widths) distortion, widths ascending.
    Returns:
        (…).
    """
    kept = np.logical_and.accumulate(values[..., ::-1] <= tolerance, axis=-1).sum(-1)
    beyond = widths[-1] + np.ceil(np.log2(np.maximum(values[..., -1] / tolerance, 1.0)) / 2)
    return np.where(kept > 0, np.asarray(widths)[-kept], np.minimum(beyond, MOST)).astype(int)


def of_layers(
    curves: Sequence[np.ndarray], widths: Sequence[int], tolerances: Sequence[float], seed: int
) -> list[Bits]:
    """For each tolerance the bits of some layers.

    Args:
        curves: (images, widths) of each layer, the same images in all.
        seed: of resampling; places of the same images that share it draw the same ones.
    """
    images = len(curves[0])
    chosen = np.random.default_rng(seed).integers(0, images, (DRAWS, images))
    shares = np.stack([np.bincount(each, minlength=images) for each in chosen]) / images
    means, drawn = np.stack([curve.mean(0) for curve in curves]), np.stack([shares @ curve for curve in curves])
    found = []
    for tolerance in tolerances:
        whole = fewest(widths, means, tolerance)
        again = fewest(widths, drawn, tolerance).mean(0)
        found.append(Bits(float(whole.mean()), int(whole.max()), again, images))
    return found


def larger(one: Bits | None, other: Bits | None) -> Bits:
    """What a place needs: the larger of weights and activations, in each drawing."""
    if one is None or other is None:
        found = one or other
        assert found is not None
        return found
    return Bits(
        max(one.mean, other.mean), max(one.largest, other.largest), np.maximum(one.draws, other.draws), one.images
    )
