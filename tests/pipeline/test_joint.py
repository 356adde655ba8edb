"""What becomes of a plan whose joint is known: predicted, solved once more, refused, or left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from natprec.config import MARGIN, QuantizeConfig
from natprec.errors import BudgetError
from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.pipeline.joint import PlanLook, predicted_by, solved_again, with_joint
from natprec.pipeline.ladder import quantize_ladder
from natprec.pipeline.quantize import quantize
from natprec.pipeline.request import solve_for
from natprec.solver.joint import Joint
from natprec.solver.plan import Plan
from natprec.tasks import Samples
from natprec.utils.own_files import CHECKSUM
from natprec.utils.progress import Stages
from tests.conftest import tiny_model

CONFIG = QuantizeConfig("tiny", eps=1e-4, engine="natprec", rounding="rtn", group_size=32)
QUIET = Stages(quiet=True)


@pytest.fixture(scope="module")
def made() -> tuple[Subject, Samples, Measurement]:
    torch.manual_seed(0)
    subject = Subject.in_memory(tiny_model(), None)
    samples = Samples.text(torch.randint(512, (8, 32)))
    return subject, samples, measure(subject, samples, engine="natprec", rounding="rtn", group_size=32)


@pytest.fixture
def measurement(made: tuple[Subject, Samples, Measurement]) -> Measurement:
    return made[2]


def solved(config: QuantizeConfig, measurement: Measurement, first: Plan, found: Joint, stages: Stages = QUIET) -> Plan:
    return found.shown(solved_again(config, measurement, first, found, stages))


def joint(plan: Plan, factor: float) -> Joint:
    """The errors together cost so many times the sum."""
    flat = np.full(4, plan.kl_sum)
    return Joint(plan.kl_sum, flat, np.ones((2, 4)), factor * flat, factor * flat / 4)


@pytest.mark.parametrize("factor", [0.5, 2.0, 3.0])
def test_a_plan_for_a_tolerance_is_solved_once_more(measurement: Measurement, factor: float) -> None:
    first = solve_for(CONFIG, measurement)
    again = solved(CONFIG, measurement, first, joint(first, factor))
    wanted = (1 - MARGIN) * 1e-4
    assert again.eps_solved == pytest.approx(wanted / factor)
    assert again.kl_predicted == pytest.approx(factor * again.kl_sum)
    assert 0.8 * wanted <= again.kl_predicted <= wanted
    assert (again.stored_bytes > first.stored_bytes) == (factor > 1)
    assert again.kl_joint is not None


def test_a_joint_as_near_as_texts_are_changes_nothing(measurement: Measurement) -> None:
    first = solve_for(CONFIG, measurement)
    again = solved(CONFIG, measurement, first, joint(first, 1.04))
    assert (again.sites, again.kl_predicted, again.eps_solved) == (first.sites, first.kl_sum, first.eps_solved)


def test_a_plan_for_a_size_keeps_its_formats_and_a_site_s_tolerance_its_meaning(measurement: Measurement) -> None:
    for config in (replace(CONFIG, eps=None, bits=4.0), replace(CONFIG, eps_scope="site")):
        first = solve_for(config, measurement)
        again = solved(config, measurement, first, joint(first, 3.0))
        assert again.sites == first.sites
        assert again.kl_predicted == pytest.approx(3 * first.kl_sum)
        assert again.kl_sum == first.kl_sum


def test_a_size_whose_errors_together_break_the_tolerance_is_refused(measurement: Measurement) -> None:
    config = replace(CONFIG, eps=None, bits=4.0)
    cost = solve_for(config, measurement).kl_sum
    both = replace(config, eps=2 * cost)
    first = solve_for(both, measurement)
    assert solved(both, measurement, first, joint(first, 1.9)).kl_predicted < 2 * cost
    with pytest.raises(
        BudgetError, match=r"errors of the size's plan are predicted to cost .* together; give a larger"
    ):
        solved(both, measurement, first, joint(first, 3.0))


def test_where_nothing_is_wide_enough_the_plan_stays_and_says_what_it_will_cost(
    measurement: Measurement, capsys: pytest.CaptureFixture[str]
) -> None:
    least = sum(float(curve.kl().min()) for curve in measurement.weights.values())
    config = replace(CONFIG, eps=1.05 * least)
    first = solve_for(config, measurement)
    again = solved(config, measurement, first, joint(first, 10.0), Stages())
    assert again.sites == first.sites
    assert again.kl_predicted > 5 * 1.05 * least
    assert "there are no wider formats: the plan stays" in capsys.readouterr().err


def test_a_later_plan_is_predicted_by_the_same_link(measurement: Measurement) -> None:
    first, tighter = solve_for(CONFIG, measurement), solve_for(replace(CONFIG, eps=5e-5), measurement)
    assert predicted_by(joint(first, 2.0), tighter).kl_predicted == pytest.approx(2 * tighter.kl_sum)
    assert predicted_by(None, tighter) is tighter


@pytest.mark.parametrize("second", [1.2, 9.0])
def test_a_plan_that_was_solved_once_more_is_measured_in_its_turn(
    made: tuple[Subject, Samples, Measurement], second: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors of another plan point other ways; the way back is gone once, for the plan that is rounded."""
    subject, samples, measurement = made
    first = solve_for(CONFIG, measurement)
    looked: list[str] = []

    class Pretended(PlanLook):
        def points(self, plan: Plan) -> Joint:
            looked.append("points")
            factor = 3.0 if plan == first else second
            return replace(joint(plan, factor), along=np.zeros((0, 4)))

        def completed(self, plan: Plan, found: Joint) -> Joint:
            looked.append("along")
            assert plan != first
            return replace(found, along=np.ones((2, 4)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("natprec.pipeline.joint.PlanLook", Pretended)
        plan, found = with_joint(CONFIG, subject, measurement, first, samples, Stages())
    assert looked == ["points", "points", "along"]
    assert found is not None
    assert plan.kl_predicted == pytest.approx(second * plan.kl_sum)
    assert plan.kl_joint == pytest.approx(2 * plan.kl_sum)
    assert ("verification will correct it" in capsys.readouterr().err) == (second > 3)


def test_outputs_that_are_no_numbers_leave_the_sum(
    made: tuple[Subject, Samples, Measurement], capsys: pytest.CaptureFixture[str]
) -> None:
    subject, samples, measurement = made
    first = solve_for(CONFIG, measurement)
    with pytest.MonkeyPatch.context() as patch:
        broken = replace(joint(first, 1.0), measured=np.array([0.1, np.nan]))
        patch.setattr(PlanLook, "points", lambda self, plan: broken)
        assert with_joint(CONFIG, subject, measurement, first, samples, Stages()) == (first, None)
    assert "NaN or Inf on calibration text" in capsys.readouterr().err


def test_without_it_the_plan_is_the_solver_s(made: tuple[Subject, Samples, Measurement]) -> None:
    subject, samples, measurement = made
    first = solve_for(CONFIG, measurement)
    assert with_joint(replace(CONFIG, joint=False), subject, measurement, first, samples, QUIET) == (first, None)
    assert first.kl_predicted == first.kl_sum
    assert first.kl_joint is first.joint_ci95 is None


@pytest.fixture
def config(tiny_folder: Path, text_file: Path) -> QuantizeConfig:
    return QuantizeConfig(
        str(tiny_folder), eps=1e-4, data=str(text_file), tokens=512, eval_tokens=256, length=64, group_size=32
    )


def test_quantize_looks_at_its_plan_and_says_so(config: QuantizeConfig, tmp_path: Path) -> None:
    stages = Stages(quiet=True)
    _, plan, verification = quantize(config, tmp_path / "out", stages=stages)
    assert "joint" in stages.seconds
    read = Plan.load(tmp_path / "out" / "plan.json")
    assert (read.kl_sum, read.kl_joint, read.joint_ci95) == (plan.kl_sum, plan.kl_joint, plan.joint_ci95)
    assert read.kl_joint is not None
    assert read.joint_ci95 is not None
    assert read.joint_ci95[0] <= read.kl_joint <= read.joint_ci95[1]
    assert verification.kl_predicted == plan.kl_predicted
    assert not (tmp_path / "out.partial").exists()
    plain = Stages(quiet=True)
    _, other, _ = quantize(replace(config, joint=False), tmp_path / "plain", stages=plain)
    assert "joint" not in plain.seconds
    assert other.kl_joint is None
    assert other.kl_predicted == other.kl_sum


def test_each_size_of_a_ladder_is_looked_at(config: QuantizeConfig, tmp_path: Path) -> None:
    rungs = quantize_ladder(replace(config, eps=None), (3.0, 5.0), tmp_path / "out")
    joints = [rung.plan.kl_joint for rung in rungs]
    assert None not in joints
    assert joints[0] != joints[1]


def test_versions_before_had_no_joint_and_what_contradicts_itself_is_refused(
    measurement: Measurement, tmp_path: Path
) -> None:
    import json

    from natprec.errors import InputError

    first = solve_for(CONFIG, measurement)
    file = tmp_path / "plan.json"
    joint(first, 2.0).shown(first).save(file)
    content: dict[str, Any] = json.loads(file.read_text())
    assert content["version"] == 2
    assert list(content)[:2] == ["version", CHECKSUM]
    del content[CHECKSUM]

    def changed(**changes: Any) -> Plan:
        file.write_text(json.dumps({name: each for name, each in (content | changes).items() if each != "left out"}))
        return Plan.load(file)

    assert changed().kl_predicted == pytest.approx(2 * first.kl_sum)
    old = changed(version=1, kl_predicted=first.kl_sum, kl_sum="left out", kl_joint="left out", joint_ci95="left out")
    assert old.kl_sum == old.kl_predicted
    assert old.kl_joint is None
    with pytest.raises(InputError, match=r"kl_predicted is .*, and without a kl_joint it is kl_sum"):
        changed(kl_joint=None, joint_ci95=None)
    with pytest.raises(InputError, match="joint_ci95 goes with kl_joint"):
        changed(joint_ci95=None)
    with pytest.raises(InputError, match=r"kl_sum is .*, and its sites make"):
        changed(kl_sum=3 * first.kl_sum)
    with pytest.raises(InputError, match="kl_joint is -1"):
        changed(kl_joint=-1.0)


def test_a_plan_that_rounds_activations_is_looked_at() -> None:
    subject = Subject.in_memory(tiny_model(), None)
    samples = Samples.text(torch.randint(512, (8, 32)))
    measurement = measure(subject, samples, engine="natprec", rounding="rtn", group_size=32, sites="all")
    config = replace(CONFIG, eps=1.0, activations="8")
    first = solve_for(config, measurement)
    assert first.rounded_inputs
    plan, found = with_joint(config, subject, measurement, first, samples, QUIET)
    assert found is not None
    assert len(found.along) == sum(each.format is not None for each in first.sites.values()) + len(first.rounded_inputs)
    assert plan.kl_joint is not None
