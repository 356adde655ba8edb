"""The bootstrap interval covers the mean about as often as it says."""

from __future__ import annotations

import numpy as np

from natprec.utils.statistics import bootstrap_interval


def test_interval_covers_the_mean() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(draw.gamma(4.0, size=32))
        covered += low <= 4.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_interval_holds_the_sample_mean_and_narrows() -> None:
    values = np.random.default_rng(1).normal(size=400)
    few, many = bootstrap_interval(values[:25]), bootstrap_interval(values)
    assert few[0] < values[:25].mean() < few[1]
    assert (many[1] - many[0]) < 0.5 * (few[1] - few[0])
    half = bootstrap_interval(values, level=0.5)
    assert many[0] < half[0] < half[1] < many[1]


def test_same_seed_same_interval_and_one_value_is_a_point() -> None:
    values = np.random.default_rng(2).normal(size=30)
    assert bootstrap_interval(values, 3) == bootstrap_interval(values, 3)
    assert bootstrap_interval(values, 3) != bootstrap_interval(values, 4)
    assert bootstrap_interval(np.array([2.5])) == (2.5, 2.5)
