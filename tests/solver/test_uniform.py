"""A mixed plan is never worse than one format for all."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from natprec.formats import integer
from natprec.solver import solve
from natprec.solver.allocation import Decision
from natprec.solver.uniform import best_uniform, total
from tests.arrange import curve, measurement

FORMATS = [integer(bits, 64) for bits in (2, 3, 4)]


def decision(name: str, kl: list[float], elements: int = 64) -> Decision:
    stored = np.array([fmt.bits * elements / 8 for fmt in FORMATS[: len(kl)]])
    return Decision(name, elements, np.array(kl), np.array(kl), stored)


def test_the_best_single_format_of_no_more_bytes() -> None:
    decisions = [decision("a", [9, 3, 1]), decision("b", [8, 2, 1]), decision("embedding", [0.5], elements=8)]
    formats = [FORMATS, FORMATS, [integer(8, 64)]]
    found = best_uniform(decisions, formats, [2, 0, 0])
    assert found == (FORMATS[1], [1, 1, 0])
    assert total(decisions, found[1], "kl") == 5.5
    assert best_uniform(decisions, formats, [0, 0, 0]) == (FORMATS[0], [0, 0, 0])


def test_no_single_format_is_as_small() -> None:
    """The plan's bytes are all below the smallest uniform plan's: decisions of other formats hold the rest."""
    decisions = [decision("a", [9, 3, 1]), decision("head", [0.1, 0.2], elements=8)]
    assert best_uniform([decisions[0]], [FORMATS[1:]], [0]) == (FORMATS[1], [0])
    assert best_uniform(decisions, [FORMATS, FORMATS[:2]], [0, 0]) == (FORMATS[0], [0, 0])


def test_a_plan_reports_it_and_gives_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = measurement([curve("a", [9.0, 3.0, 1.0], FORMATS), curve("b", [8.0, 2.0, 1.0], FORMATS)])
    assert (plan := solve(made, bits=3.25)).uniform == "int3-g64"
    assert plan.kl_uniform == 5.0
    assert plan.kl_predicted <= 5.0
    monkeypatch.setattr(sys.modules["natprec.solver.solve"], "within_bytes", lambda *args: [2, 0])
    plan = solve(made, bits=3.25)
    assert {choice.format for choice in plan.sites.values()} == {FORMATS[1]}
    assert plan.kl_predicted == plan.kl_uniform == 5.0
