"""Verdicts on made-up curves: what was claimed, too much, too little, and what changes with the tolerance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from natprec.inspection.landscape.bits import MOST, fewest, larger, middle, of_layers
from natprec.inspection.landscape.claims import (
    DEPENDS,
    FEWER,
    HOLDS,
    MORE,
    REFUTED,
    SUPPORTED,
    Claim,
    along,
    judged,
)
from natprec.solver.allocation import natural_precision

TOLERANCES = 1e-3, 1e-4, 1e-5
WIDTHS = tuple(range(2, 11))


def curve(one: float, images: int = 6) -> np.ndarray:
    """(images, widths): D = one · 4^-b, a little different from image to image."""
    share = np.linspace(0.95, 1.05, images)[:, None]
    return one * share * 4.0 ** -np.array(WIDTHS, dtype=float)


def found(claim: Claim, *curves: np.ndarray) -> tuple[list[str], str]:
    several = of_layers(curves, WIDTHS, TOLERANCES, seed=0)
    at, word = judged(claim, {each: bits.interval for each, bits in zip(TOLERANCES, several, strict=True)})
    return list(at.values()), word


def test_bits_grow_by_five_thirds_for_ten_decibels() -> None:
    """D = 0.9 · 4^-b meets 1e-3, 1e-4 and 1e-5 first at 5, 7 and 9 bits."""
    assert [bits.mean for bits in of_layers([curve(0.9)], WIDTHS, TOLERANCES, seed=0)] == [5, 7, 9]


def test_a_claim_that_holds_at_every_tolerance_is_supported() -> None:
    assert found(Claim(5, 9), curve(0.9)) == ([HOLDS] * 3, SUPPORTED)


def test_a_claim_of_more_bits_than_any_tolerance_asks_for_is_refuted() -> None:
    assert found(Claim(16, 16), curve(0.9)) == ([FEWER] * 3, REFUTED)


def test_a_claim_of_fewer_bits_than_any_tolerance_asks_for_is_refuted() -> None:
    assert found(Claim(3, 4), curve(57.6)) == ([MORE] * 3, REFUTED)


def test_a_claim_may_depend_on_the_tolerance() -> None:
    assert found(Claim(3, 5), curve(0.9)) == ([HOLDS, MORE, MORE], DEPENDS)


def test_between_too_little_and_too_much_the_claim_holds() -> None:
    """5 bits at 30 dB, 7 at 40, 9 at 50: six bits are what 35 dB ask for."""
    assert found(Claim(6, 6), curve(0.9)) == ([FEWER, MORE, MORE], DEPENDS)


def test_an_interval_that_reaches_the_claim_does_not_refute_it() -> None:
    assert Claim(8, 8).at(3.0, 7.5) == HOLDS
    assert Claim(8, 8).at(3.0, 7.4) == FEWER
    assert Claim(3, 4).at(4.6, 9.0) == MORE


def test_intervals_are_wide_where_images_differ() -> None:
    images = np.concatenate([curve(1.0, 4), curve(256.0, 4)])
    low, high = of_layers([images], WIDTHS, TOLERANCES[:1], seed=0)[0].interval
    assert low < high
    alike = of_layers([curve(0.5)], WIDTHS, TOLERANCES[:1], seed=0)[0]
    assert alike.interval == (alike.mean, alike.mean)


def test_a_place_needs_the_larger_of_weights_and_activations() -> None:
    weights, activations = (of_layers([curve(one)], WIDTHS, TOLERANCES[:1], seed=0)[0] for one in (0.9, 57.6))
    assert larger(weights, activations).mean == activations.mean == weights.mean + 3
    assert larger(None, activations) is activations


def test_the_fewest_bits_are_those_of_the_solver() -> None:
    """Many curves at once, some of which rise again, against `natural_precision` of one."""
    values = np.random.default_rng(0).random((200, len(WIDTHS))) ** 3
    together = fewest(WIDTHS, values, 0.1)
    for curve_of, found_bits in zip(values, together, strict=True):
        at = natural_precision(np.array(WIDTHS), curve_of, 0.1)
        assert found_bits == (WIDTHS[at] if at is not None else min(MOST, 11 + int(curve_of[-1] > 0.4)))


def test_beyond_the_widest_each_bit_divides_by_four() -> None:
    values = 4.0 ** -np.array(WIDTHS, dtype=float)
    assert fewest(WIDTHS, values, 4.0**-13) == 13
    assert fewest(WIDTHS, values, 1e-300) == MOST


def test_intervals_of_few_images_are_wider_than_percentiles() -> None:
    draws = np.linspace(0.0, 1.0, 1001)
    few, many = middle(draws, 3), middle(draws, 1000)
    assert few == (0.0, 1.0)
    assert many == pytest.approx((0.025, 0.975), abs=0.001)
    assert middle(draws, 1) == (0.5, 0.5)


@pytest.mark.parametrize("stages", [2, 4, 6])
def test_claims_along_the_depth_begin_and_end_as_claimed(stages: int) -> None:
    claims = along((16, 8), stages)
    assert len(claims) == stages
    assert (claims[0], claims[-1]) == (Claim(16, 16), Claim(8, 8))
    assert all(one.high >= other.high and one.low >= other.low for one, other in itertools.pairwise(claims))
