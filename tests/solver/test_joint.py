"""Arithmetic of the joint: the shrinkage, the link, and what both make of a plan's sum."""

from __future__ import annotations

import math

import numpy as np
import pytest

from natprec.solver.joint import STANDS, Joint, alignment_of

SITES, SAMPLES = 200, 16


def joint(**changes: object) -> Joint:
    """Of a plan whose sites sum up to 0.1, as it is measured."""
    found = {
        "kl_sum": 0.1,
        "sums": np.full(4, 0.1),
        "along": np.random.default_rng(0).standard_normal((SITES, SAMPLES)) * math.sqrt(0.1 / SITES),
        "measured": np.full(8, 0.1),
        "halved": np.full(8, 0.025),
    }
    return Joint(**(found | changes))  # type: ignore[arg-type]


def linked(sum_: float, ratio: float, k: float) -> float:
    """The link, written out."""
    return (1 - math.exp(-k * ratio * sum_)) / k


@pytest.mark.parametrize("seed", range(20))
def test_independent_sites_keep_their_sum_although_few_samples_scatter(seed: int) -> None:
    along = np.random.default_rng(seed).standard_normal((SITES, SAMPLES))
    assert alignment_of(along) == pytest.approx(1, abs=0.1)


def test_what_is_drawn_towards_the_sum_does_scatter() -> None:
    draws = [np.random.default_rng(seed).standard_normal((SITES, SAMPLES)) for seed in range(50)]
    ratios = [np.square(each.sum(0)).sum() / np.square(each).sum() for each in draws]
    assert np.std(ratios) == pytest.approx(math.sqrt(2 / SAMPLES), rel=0.3)


@pytest.mark.parametrize(("signs", "factor"), [("alike", SITES), ("half", 0.0)])
def test_sites_that_move_the_output_the_same_way_are_not_drawn_to_the_sum(signs: str, factor: float) -> None:
    common = np.random.default_rng(1).standard_normal(SAMPLES)
    sign = np.ones(SITES) if signs == "alike" else np.where(np.arange(SITES) % 2, 1.0, -1.0)
    found = alignment_of(sign[:, None] * common)
    assert found > SITES / 4 if factor else found < 0.1


@pytest.mark.parametrize("sites", [5, 10, 30])
def test_a_few_independent_sites_are_known_to_be_independent(sites: int) -> None:
    """What each site has in common with itself is no direction that sites share."""
    draws = [np.random.default_rng(seed).standard_normal((sites, SAMPLES)) for seed in range(60)]
    assert np.std([alignment_of(along) for along in draws]) < 0.1


@pytest.mark.parametrize("directions", [2, 4, 8, 32])
def test_the_shrunk_ratio_is_as_good_as_the_better_of_the_sum_and_what_was_found(directions: int) -> None:
    """Over many networks whose sites have so many directions in common, in factors of the true joint."""
    found = []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        mixed = draw.standard_normal((SITES, directions))
        along = mixed @ draw.standard_normal((directions, SAMPLES))
        true = np.square(mixed.sum(0)).sum() / np.square(mixed).sum()
        ratio = np.square(along.sum(0)).sum() / np.square(along).sum()
        found.append(np.log(np.array([alignment_of(along), ratio, 1.0]) / true))
    shrunk, raw, stays = np.sqrt(np.square(found).mean(0))
    assert shrunk < 1.3 * min(raw, stays)
    assert shrunk < 0.35


def test_one_sample_or_no_effect_says_nothing() -> None:
    assert alignment_of(np.ones((3, 1))) == 1.0
    assert alignment_of(np.zeros((3, 8))) == 1.0


def test_the_joint_is_the_sum_times_the_ratio_of_squares_with_an_interval_around_it() -> None:
    found = joint(along=np.ones((4, SAMPLES)))
    assert found.kl_joint == pytest.approx(0.4)
    assert found.joint_ci95 == pytest.approx((0.4, 0.4))
    scattered = joint()
    low, high = scattered.joint_ci95
    assert low < scattered.kl_joint < high


@pytest.mark.parametrize("k", [-3.0, -0.5, 0.5, 3.0])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_two_measured_points_give_the_link_back(k: float, ratio: float) -> None:
    found = joint(measured=np.full(8, linked(0.1, ratio, k)), halved=np.full(8, linked(0.025, ratio, k)))
    assert found.link == pytest.approx((ratio, k), rel=1e-6)


@pytest.mark.parametrize("k", [-3.0, 0.0, 3.0])
def test_a_tolerance_becomes_the_sum_that_is_predicted_to_keep_it(k: float) -> None:
    one, half = (linked(each, 2.0, k) if k else 2.0 * each for each in (0.1, 0.025))
    found = joint(measured=np.full(8, one), halved=np.full(8, half))
    assert found.predicted(0.1) == pytest.approx(one)
    for sum_ in (0.05, 0.1, 0.2):
        assert found.sum_for(found.predicted(sum_)) == pytest.approx(sum_)


def test_the_link_is_not_used_far_from_where_it_was_found() -> None:
    found = joint(measured=np.full(8, linked(0.1, 4.0, 8.0)), halved=np.full(8, linked(0.025, 4.0, 8.0)))
    assert found.apart
    assert found.sum_for(1e9) == pytest.approx(0.4)
    assert found.sum_for(1e-9) == pytest.approx(0.025)
    assert math.isfinite(found.predicted(1e6))


@pytest.mark.parametrize("factor", [1 - STANDS / 2, 1.0, 1 + STANDS / 2])
def test_the_sum_stands_where_the_joint_is_as_near_as_texts_are(factor: float) -> None:
    found = joint(measured=np.full(8, 0.1 * factor), halved=np.full(8, 0.025 * factor))
    assert not found.apart
    assert found.predicted(0.1) == 0.1
    assert found.sum_for(0.07) == 0.07


def test_the_samples_of_both_are_compared_and_not_those_of_the_plans_worst_texts() -> None:
    """A site costs what it costs on the kind of text where that is most; the joint keeps this."""
    found = joint(sums=np.full(4, 0.05), measured=np.full(8, 0.1), halved=np.full(8, 0.025))
    assert found.predicted(0.1) == pytest.approx(0.2)


def test_errors_that_are_not_the_rounding_s_own_tell_nothing_of_it() -> None:
    along = np.tile(np.random.default_rng(1).standard_normal(SAMPLES), (SITES, 1))
    found = joint(along=along, measured=np.zeros(0), halved=np.zeros(0), own=False)
    assert not found.anchored
    assert not found.apart
    assert found.link == (1.0, 0.0)
    assert found.predicted(0.1) == found.sum_for(0.1) == 0.1
    assert found.kl_joint > 2 * found.kl_sum, "and yet it is shown"


@pytest.mark.parametrize("measured", [(0.1, -0.01), (-0.1, 0.02), (math.nan, 0.1), (0.1, 0.2)])
def test_without_two_usable_points_the_backward_set_alone_tells(measured: tuple[float, float]) -> None:
    along = np.tile(np.random.default_rng(1).standard_normal(SAMPLES), (SITES, 1))
    one, half = measured
    found = joint(along=along, measured=np.full(8, one), halved=np.full(8, half))
    assert not found.anchored
    assert found.link == (alignment_of(along), 0.0)
