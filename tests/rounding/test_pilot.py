"""What learned rounding leaves, tried on a few blocks, and what plans make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.config import QuantizeConfig
from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.pipeline import pilot as glue
from natprec.rounding.pilot import left_by_learning, pilot_batches, pilot_blocks
from natprec.solver import Plan
from natprec.utils.progress import Stages
from natprec.utils.workers import Workers
from tests.arrange import encoder, snapshot, subject, tokens
from tests.measurement.test_sharding import shared, together

TEXT = tokens(24, 32)
QUIET = Stages(quiet=True)


def planned(made: Subject, **target: Any) -> tuple[Measurement, Plan]:
    measurement = measure(made, TEXT, group_size=32)
    return measurement, measurement.solve(**{"bits": 3.2, "rounding": "learned", **target})


@pytest.mark.parametrize("make", [subject, encoder])
def test_learning_leaves_less(make: Any) -> None:
    made = make()
    _, plan = planned(made)
    before, steps = snapshot(made.model), list[str]()
    found = left_by_learning(made, plan, TEXT, 0, steps.append)
    assert found is not None
    share, low, high = found
    assert 0 < low <= share <= high
    assert share < 1
    assert 0 < len(steps) <= pilot_batches(made, TEXT)
    assert all(torch.equal(before[name], value) for name, value in snapshot(made.model).items()), "as it was"


def test_blocks_of_the_pilot() -> None:
    for count in range(1, 40):
        chosen = pilot_blocks(count)
        assert 1 <= len(chosen) <= max(1, (count + 1) // 2)
        assert chosen.start >= 0
        assert chosen.stop <= count


def test_nothing_to_try() -> None:
    """No block with codes, or no sample that judges."""
    made = subject()
    _, plan = planned(made)
    assert left_by_learning(made, plan, TEXT[:3], 0) is None
    kept = replace(plan, sites={name: replace(choice, format=None) for name, choice in plan.sites.items()})
    assert left_by_learning(made, kept, TEXT, 0) is None


def test_several_processes_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natprec.tasks.samples.BATCH_TOKENS", 4 * TEXT.length)
    _, plan = planned(shared(Workers()))

    def work(workers: Workers) -> tuple[float, float, float] | None:
        return left_by_learning(shared(workers), plan, TEXT, 0)

    alone, found = together(1, work)[0], together(2, work)
    assert found[0] == found[1]
    assert alone is not None
    assert found[0] is not None
    assert found[0][0] == pytest.approx(alone[0], rel=0.2)


def test_plans_for_learned_rounding_have_fewer_bits(tmp_path: Path) -> None:
    """What is known is kept in the file, counts for learned rounding alone, and for weights of blocks alone."""
    measurement, _ = planned(subject())
    measurement.with_learned((0.5, 0.4, 0.6)).save(tmp_path / "m")
    known = Measurement.load(tmp_path / "m")
    assert known.header.learned == (0.5, 0.4, 0.6)
    for name, curve in known.curves.items():
        part = 0.5 if curve.site.learns else 1.0
        assert curve.kl("learned") == pytest.approx(part * measurement.curves[name].kl("learned"))
        assert curve.kl("gptq") == pytest.approx(measurement.curves[name].kl("gptq"))
    assert {curve.site.role for curve in known.curves.values() if not curve.site.learns} == {"embedding"}
    eps = measurement.solve(bits=4.0, rounding="learned").kl_predicted
    before, after = (each.solve(eps=eps, rounding="learned") for each in (measurement, known))
    assert after.bits_per_weight < before.bits_per_weight
    assert after.kl_predicted <= eps
    assert known.solve(eps=eps, rounding="gptq").sites == measurement.solve(eps=eps, rounding="gptq").sites


def test_only_plans_for_learned_rounding_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject()
    measurement, plan = planned(made)
    monkeypatch.setattr(glue, "left_by_learning", lambda *_: (0.7, 0.6, 0.8))
    config = QuantizeConfig("m", rounding="learned", bits=3.2)
    known = glue.with_pilot(config, made, measurement, plan, TEXT, QUIET)
    assert known.header.learned == (0.7, 0.6, 0.8)
    assert glue.with_pilot(config, made, known, plan, TEXT, QUIET) is known, "once is enough"
    other = replace(config, rounding="gptq")
    assert glue.with_pilot(other, made, measurement, plan, TEXT, QUIET) is measurement
    monkeypatch.setattr(glue, "left_by_learning", lambda *_: None)
    assert glue.with_pilot(config, made, measurement, plan, TEXT, QUIET) is measurement
