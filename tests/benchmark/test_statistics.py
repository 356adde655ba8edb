"""Paired comparison: exact where it can be, and honest about what cannot be seen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from natprec.benchmark.statistics import mcnemar, paired


def test_equal_answers_have_no_difference_no_flips_and_p_one() -> None:
    found = paired([1, 0, 1, 1], [1, 0, 1, 1])
    assert (found.difference, found.ci95, found.flips_to_wrong, found.flips_to_right) == (0, (0, 0), 0, 0)
    assert found.p_mcnemar == 1
    assert not found.seen
    assert found.detectable == pytest.approx(1.96 * math.sqrt(0.25 / 4))  # one flip in so many documents is the least


def test_flips_in_both_directions_are_seen_where_means_are_equal() -> None:
    found = paired([1, 0] * 50, [0, 1] * 50)
    assert (found.base, found.quantized, found.difference) == (0.5, 0.5, 0.0)
    assert (found.flips_to_wrong, found.flips_to_right) == (50, 50)


@pytest.mark.parametrize(("wrong", "right"), [(0, 5), (1, 8), (10, 3), (7, 7)])
def test_mcnemar_is_the_binomial_tail(wrong: int, right: int) -> None:
    coins = np.array([bin(each).count("1") for each in range(2 ** (wrong + right))])
    extreme = abs(coins - (wrong + right) / 2) >= abs(wrong - right) / 2
    assert mcnemar(wrong, right) == pytest.approx(extreme.mean())


def test_the_interval_holds_the_difference_as_often_as_it_says() -> None:
    draw, held = np.random.default_rng(0), 0
    for trial in range(200):
        before = draw.random(300) < 0.6
        after = np.where(draw.random(300) < 0.1, ~before, before)  # expected difference: 0.1 · (0.4 - 0.6)
        low, high = paired(before.tolist(), after.tolist(), seed=trial).ci95
        held += low <= -0.02 <= high
    assert 0.90 <= held / 200 <= 0.99


def test_scores_that_are_no_right_and_wrong_have_no_flips() -> None:
    found = paired([0.2, 0.9, 0.4], [0.3, 0.8, 0.1])
    assert found.flips_to_wrong is None
    assert found.p_mcnemar is None
    assert found.difference == pytest.approx(-0.1)


def test_other_documents_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 documents"):
        paired([1, 0, 1], [1, 0])
