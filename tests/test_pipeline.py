"""The job as a whole: the correction (T6), the kept measurement, and clearing up after killed runs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from natprec import errors
from natprec.config import MARGIN, QuantizeConfig
from natprec.evaluation.verdict import FirstVerdict, verdict_of
from natprec.evaluation.verification import Verification
from natprec.evaluation.verify import CORRECTION
from natprec.measurement import Measurement
from natprec.pipeline import quantize as pipeline
from natprec.pipeline import request
from natprec.pipeline import resume as resumable
from natprec.utils import atomic_files as files
from tests.run_command import left_behind

EPS = 2e-4


@pytest.fixture
def request_(tiny_folder: Path, text_file: Path) -> QuantizeConfig:
    return QuantizeConfig(
        str(tiny_folder), eps=EPS, data=str(text_file), tokens=256, eval_tokens=256, length=64, group_size=32,
        rounding="rtn", joint=False,
    )  # fmt: skip


def worsened(monkeypatch: pytest.MonkeyPatch, factors: list[float]) -> None:
    """Each verification's KL is so many times eps."""
    honest, left = pipeline.verify, iter(factors)

    def verify(*args: Any, **options: Any) -> Verification:
        kl = EPS * next(left)
        found = replace(honest(*args, **options), kl_mean=kl, kl_ci95=(kl, kl), passed=kl <= EPS)
        return replace(found, verdict=verdict_of(kl, kl, EPS), first_verdict=FirstVerdict("fail", kl, (kl, kl)))

    monkeypatch.setattr(pipeline, "verify", verify)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The tolerances that the solver was asked for; None: the promised one."""
    asked: list[float | None] = []
    honest = request.solve

    def solve(*args: Any, **options: Any) -> Any:
        asked.append(options["eps_solved"])
        return honest(*args, **options)

    monkeypatch.setattr("natprec.pipeline.request.solve", solve)
    return asked


def test_a_promise_kept_needs_no_correction(
    request_: QuantizeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = watched(monkeypatch)
    _, plan, verification = pipeline.quantize(request_, tmp_path / "out")
    assert asked == [None]
    assert verification.passed
    assert verification.corrections == 0
    assert plan.eps_solved == (1 - MARGIN) * EPS


@pytest.mark.parametrize("second", [0.9, 1.1])
def test_a_broken_promise_is_solved_once_more_by_the_measured_ratio(
    request_: QuantizeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: float
) -> None:
    asked = watched(monkeypatch)
    worsened(monkeypatch, [1.6, second])
    _, plan, verification = pipeline.quantize(request_, tmp_path / "out")
    assert asked == [None, pytest.approx(CORRECTION * (1 - MARGIN) * EPS / 1.6)]
    assert verification.corrections == 1
    assert verification.passed is (second < 1), "one correction, not a search"
    assert (plan.eps, plan.eps_solved) == (EPS, pytest.approx(CORRECTION * (1 - MARGIN) * EPS / 1.6))
    assert plan.kl_predicted <= EPS / 1.6
    assert Verification.load(tmp_path / "out" / "verification.json") == verification
    assert pipeline.Plan.load(tmp_path / "out" / "plan.json").eps_solved == plan.eps_solved
    assert left_behind(tmp_path) == ["out"]


def test_a_correction_that_no_format_reaches_leaves_the_first_plan(
    request_: QuantizeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worsened(monkeypatch, [1e9])
    _, plan, verification = pipeline.quantize(request_, tmp_path / "out")
    assert verification.passed is False
    assert verification.corrections == 0
    assert plan.eps_solved == (1 - MARGIN) * EPS


def test_eps_per_site_promises_the_sum(request_: QuantizeConfig, tmp_path: Path) -> None:
    _, plan, verification = pipeline.quantize(replace(request_, eps_scope="site"), tmp_path / "out")
    assert pipeline.promised(plan) == EPS * len(plan.sites)
    assert all(choice.kl <= EPS for choice in plan.sites.values())
    assert verification.passed is (verification.kl_mean <= EPS * len(plan.sites))


def test_an_eps_out_of_reach_keeps_the_measurement_and_resume_uses_it(
    request_: QuantizeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, kept = tmp_path / "out", tmp_path / "out.partial" / "measurement.safetensors"
    with pytest.raises(errors.BudgetError, match="smallest reachable") as refused:
        pipeline.quantize(replace(request_, eps=1e-12), out)
    assert str(kept) in str(refused.value)
    assert left_behind(tmp_path) == ["out.partial"]
    assert left_behind(kept.parent) == ["measurement.safetensors"]
    curves = Measurement.load(kept).curves

    def no_sweep(*args: Any, **options: Any) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(resumable, "measure", no_sweep)
        for change in ({"seed": 1}, {"tokens": 128}, {"engine": "sglang"}, {"estimator": "exact"}):
            with pytest.raises(errors.InputError, match="cannot resume from"):
                pipeline.quantize(replace(request_, **change), out, resume=True)
        assert kept.exists()
        measurement, _, verification = pipeline.quantize(request_, out, resume=True)
    assert verification.passed
    assert all((measurement.curves[name].forward == curve.forward).all() for name, curve in curves.items())
    assert left_behind(tmp_path) == ["out"]


def test_without_resume_it_is_measured_again(
    request_: QuantizeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.BudgetError):
        pipeline.quantize(replace(request_, eps=1e-12), tmp_path / "out")
    (tmp_path / "out.partial" / "mine.txt").write_text("not natprec's")
    calls = []
    honest = resumable.measure
    monkeypatch.setattr(resumable, "measure", lambda *args, **options: (calls.append(1), honest(*args, **options))[1])
    pipeline.quantize(request_, tmp_path / "out")
    assert calls == [1]
    assert left_behind(tmp_path / "out.partial") == ["mine.txt"], "what is not ours stays"


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_killed_runs_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    dead, out = dead_process(), tmp_path / "out"
    gone = [f".natprec-out-{dead}-abc_1234", f".natprec-out-{dead}-old-abc12345"]
    stay = [
        f".natprec-out-{os.getpid()}-abc12345",  # a living process
        f".natprec-out-b-{dead}-abc12345",  # of the output out-b
        f".natprec-other-{dead}-abc12345",
        ".natprec-out-mine",
        "out-1",
    ]
    for name in [*gone, *stay]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    (tmp_path / f".natprec-out-{dead}-filefile").write_text("half a file")
    files.clear_stale(out)
    assert left_behind(tmp_path) == sorted(stay)


def test_an_output_moved_aside_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / f".natprec-out-{dead_process()}-old-abc12345" / "out"
    aside.mkdir(parents=True)
    (aside / "plan.json").write_text("{}")
    files.clear_stale(tmp_path / "out")
    assert left_behind(tmp_path) == ["out"]
    assert left_behind(tmp_path / "out") == ["plan.json"]


def test_a_failed_replacement_keeps_the_old_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with files.new_folder(out) as folder:
        (folder / "plan.json").write_text("old")

    def interrupted() -> None:
        with files.new_folder(out, overwrite=True) as folder:
            (folder / "plan.json").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (out / "plan.json").read_text() == "old"
    with files.new_folder(out, overwrite=True) as folder:
        (folder / "plan.json").write_text("new")
    assert (out / "plan.json").read_text() == "new"
    assert left_behind(tmp_path) == ["out"]
