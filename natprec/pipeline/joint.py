"""A plan that knows its joint distortion: solved, looked at, and where joint and sum differ solved once more.

The look costs about what going back cost in the sweep, once; it goes back for the last plan alone. What was found is
kept beside the measurement, so that a resumed run does not repeat it. `natprec solve` has no model to look at: it
predicts by the sum.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from natprec.config import QuantizeConfig
from natprec.errors import BudgetError
from natprec.measurement import Measurement
from natprec.measurement.measure import shared_out
from natprec.measurement.subject import Subject
from natprec.models.hidden_states import state_key
from natprec.pipeline.request import solve_for
from natprec.pipeline.resume import JOINTS
from natprec.rounding.joint import Look
from natprec.roundings import rounding_named
from natprec.solver import Plan
from natprec.solver.joint import Joint, shares_of, sums_of
from natprec.tasks import Samples
from natprec.utils.atomic_files import write_bytes
from natprec.utils.marks import KEY
from natprec.utils.progress import Stages

STAGE = "joint"
SCALARS = ("kl_sum", "seed", "own")
ARRAYS = ("sums", "along", "measured", "halved")


class PlanLook:
    """The look at a measurement's plans, and what an earlier run found."""

    def __init__(
        self, subject: Subject, measurement: Measurement, samples: Samples, stages: Stages, folder: Path | None = None
    ) -> None:
        """Nothing runs yet.

        Args:
            subject: with its output head as the plans have it.
            samples: that the measurement was made on.
            folder: where what is found is kept; None: nowhere.
        """
        header = measurement.header
        own, _ = shared_out(samples, header.parts, subject.segmented.routed, header.rounding)
        self._look = Look(subject, own, header.seed, folder)
        self._measurement, self._samples, self._stages, self._folder = measurement, samples, stages, folder

    def points(self, plan: Plan) -> Joint:
        """The distortion of the plan's errors and of half of them, if they can be had before rounding; no `along`."""
        known = self._found(plan)
        if known is not None:
            return known
        own, seed = not rounding_named(plan.rounding).compensates, self._measurement.header.seed
        one = half = np.zeros(0)
        if own:
            with self._stages.stage(STAGE, self._look.steps(2)) as advance:
                one, half = self._look.points(plan, shares_of(self._measurement, plan), (1.0, 0.5), advance)
        found = Joint(plan.kl_sum, sums_of(self._measurement, plan), np.zeros((0, len(one))), one, half, seed, own)
        self._keep(plan, found)
        return found

    def completed(self, plan: Plan, found: Joint) -> Joint:
        """What was found, with the backward set of a plan; of one plan only."""
        known = self._found(plan)
        if known is not None and len(known.along):
            return known
        with self._stages.stage(STAGE, self._look.steps()) as advance:
            found = replace(found, along=self._look.along(plan, shares_of(self._measurement, plan), advance))
        self._keep(plan, found)
        return found

    def _file(self, plan: Plan) -> Path | None:
        if self._folder is None:
            return None
        header, segmented = self._measurement.header, self._look.subject.segmented
        said = plan.to_json()
        formats = json.dumps([said[name] for name in ("sites", "inputs", "cache", "rounding")], sort_keys=True)
        parts = self._look.subject.digest, formats, self._samples.digest, str(segmented.products), str(header.seed)
        return self._folder / JOINTS.replace("*", state_key(*parts))

    def _found(self, plan: Plan) -> Joint | None:
        file, workers = self._file(plan), self._look.subject.segmented.workers
        if file is None:
            return None
        return _read(workers.from_first(file.read_bytes() if workers.first and file.is_file() else b""))

    def _keep(self, plan: Plan, found: Joint) -> None:
        file = self._file(plan)
        if file is not None and self._look.subject.segmented.workers.first:
            _write(file, found)


def with_joint(
    config: QuantizeConfig,
    subject: Subject,
    measurement: Measurement,
    plan: Plan,
    samples: Samples,
    stages: Stages,
    folder: Path | None = None,
) -> tuple[Plan, Joint | None]:
    """The plan to round, and what a later plan of the same measurement is predicted by.

    Where the plan is solved once more and its errors can be had before it is rounded, these are measured in their turn.

    Args:
        samples: that the measurement was made on.
        folder: where what is found is kept; None: nowhere.
    Raises:
        BudgetError: a size was given beside a tolerance, and its plan is predicted to break that.
    """
    if not config.joint:
        return plan, None
    own = subject.with_head(plan.untied)
    own.segmented.workers.stage = STAGE
    look = PlanLook(own, measurement, samples, stages, folder)
    try:
        found = look.points(plan)
        if not np.isfinite(found.measured).all():
            stages.note(
                "the errors of this plan make outputs NaN or Inf on calibration text: it is predicted by the sum"
            )
            return plan, None
        if not found.anchored:
            found = look.completed(plan, found)
        again = solved_again(config, measurement, plan, found, stages)
        if again is not plan and found.anchored and again.untied == plan.untied:
            found = look.points(again)
        if again.untied == plan.untied and not len(found.along):
            found = look.completed(again, found)
        elif not len(found.along):
            found = look.completed(plan, found)
    finally:
        own.with_head(bool(measurement.header.untied))
    shown = found.shown(again)
    if again is not plan and config.eps is not None and shown.kl_predicted > config.eps:
        stages.note(
            f"the plan solved once more is predicted to cost {shown.kl_predicted:.4g}: verification will correct it"
        )
    return shown, found


def solved_again(config: QuantizeConfig, measurement: Measurement, plan: Plan, found: Joint, stages: Stages) -> Plan:
    """The plan; or another one, where a tolerance of the whole model is not that of the sum.

    Raises:
        BudgetError: a size was given beside a tolerance, and its plan is predicted to break that.
    """
    if config.eps is None or config.eps_scope == "site" or not found.apart:
        return plan
    predicted = found.predicted(plan.kl_sum)
    assert plan.margin is not None
    kept = 1 - plan.margin
    if config.bits is not None or config.max_size is not None:
        if predicted > config.eps:
            raise BudgetError(
                f"eps {config.eps:.3g} and that size do not go together: the errors of the size's plan are predicted "
                f"to cost {predicted:.3g} together; give a larger size, --eps {predicted / kept:.3g}, "
                "or one of the two alone"
            )
        return plan
    said = f"the errors of this plan together cost {predicted:.4g}, not {plan.kl_sum:.4g}"
    for target in (kept * config.eps, config.eps):
        try:
            again = solve_for(config, measurement, found.sum_for(target))
        except BudgetError:
            continue
        stages.note(f"{said}: solved once more")
        return again
    stages.note(f"{said}, and there are no wider formats: the plan stays")
    return plan


def predicted_by(found: Joint | None, plan: Plan) -> Plan:
    """A plan of the same measurement, for another tolerance."""
    return plan if found is None else found.shown(plan)


def _read(content: bytes) -> Joint | None:
    """What an earlier run found; None where it found nothing, or its file cannot be read."""
    try:
        arrays = load(content)
        found = {name: arrays[name] for name in ARRAYS}
        kl_sum, seed, own = (arrays[name].item() for name in SCALARS)
        return Joint(kl_sum=kl_sum, seed=seed, own=own, **found)
    except (SafetensorError, KeyError):
        return None


def _write(file: Path, found: Joint) -> None:
    arrays = {name: np.ascontiguousarray(getattr(found, name)) for name in ARRAYS}
    scalars = {name: np.array([getattr(found, name)]) for name in SCALARS}
    write_bytes(file, save(arrays | scalars, {KEY: "joint"}))
