"""The rungs of a measurement: each is the plan of its tolerance, from the coarsest to the finest."""

from __future__ import annotations

import itertools
import math

import pytest

from natprec.errors import BudgetError
from natprec.formats import integer
from natprec.measurement import Measurement
from natprec.solver import solve
from natprec.solver.ladder import EPSILONS, ladder
from tests.arrange import curve, measurement

FORMATS = tuple(integer(bits, 64) for bits in range(2, 9))


def made(scale: float = 1.0) -> Measurement:
    return measurement([curve(f"s{number}", [scale * (1 + number) * 4.0**-b for b in range(2, 9)], FORMATS)
                        for number in range(6)])  # fmt: skip


def test_each_rung_is_the_plan_of_its_tolerance() -> None:
    rungs = ladder(made(), margin=0.1)
    assert len(rungs) > 4
    for rung in rungs:
        plan = solve(made(), rung.eps, margin=0.1)
        assert (rung.bits, rung.stored_bytes) == (plan.bits_per_weight, plan.stored_bytes)
        assert rung.kl_predicted == plan.kl_predicted <= rung.eps
        assert rung.perplexity_increase == pytest.approx(math.exp(rung.kl_predicted) - 1)
    for coarse, fine in itertools.pairwise(rungs):
        assert coarse.eps > fine.eps
        assert coarse.stored_bytes < fine.stored_bytes, "no two of one plan"
        assert coarse.kl_predicted > fine.kl_predicted


def test_a_rung_names_the_uniform_format_that_costs_about_as_much() -> None:
    found = made()
    for rung in ladder(found, margin=0.0):
        if rung.like is None:
            continue
        at = next(number for number, fmt in enumerate(FORMATS) if fmt.name == rung.like)
        assert rung.like_kl == pytest.approx(sum(each.kl()[at] for each in found.curves.values()))
        assert 0.5 <= rung.like_kl / rung.kl_predicted <= 2
        assert rung.like_bytes == solve(found, bits=8 * FORMATS[at].stored_bytes(64, 128) / (64 * 128)).stored_bytes


def test_tolerances_out_of_reach_are_left_out_and_none_in_reach_is_refused() -> None:
    rungs = ladder(made(scale=100.0))
    assert rungs
    assert rungs[-1].eps > EPSILONS[-1]
    with pytest.raises(BudgetError, match="smallest reachable"):
        ladder(made(scale=1e6))
