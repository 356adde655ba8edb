"""A plan that knows its joint distortion: solved, looked at, and where joint and sum differ solved once more.

The look costs about what going back cost in the sweep, once. It is kept beside the measurement, so that a resumed run
does not repeat it. `natprec solve` has no model to look at: its plans are predicted by the sum.
"""

from __future__ import annotations

import json
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
from natprec.rounding.joint import look, look_batches
from natprec.solver import Plan
from natprec.solver.joint import Joint, shares_of, sums_of
from natprec.tasks import Samples
from natprec.utils.atomic_files import write_bytes
from natprec.utils.marks import KEY
from natprec.utils.progress import Stages

STAGE = "joint"
SCALARS = ("kl_sum", "seed", "own")
ARRAYS = ("sums", "along", "measured", "halved")


def looked_at(
    subject: Subject,
    measurement: Measurement,
    plan: Plan,
    samples: Samples,
    stages: Stages,
    folder: Path | None = None,
) -> Joint:
    """Look at a plan, or find what an earlier run found.

    Args:
        samples: that the measurement was made on.
        folder: where what is found is kept; None: nowhere.
    """
    header = measurement.header
    own, _ = shared_out(samples, header.parts, subject.segmented.routed, header.rounding)
    formats = json.dumps([plan.to_json()[name] for name in ("sites", "inputs", "cache", "rounding")], sort_keys=True)
    key = state_key(subject.digest, formats, samples.digest, str(subject.segmented.products), str(header.seed))
    file = None if folder is None else folder / JOINTS.replace("*", key)
    known = None if file is None else _read(file)
    if known is not None:
        return known
    subject = subject.with_head(plan.untied)
    try:
        with stages.stage(STAGE, look_batches(subject, own)) as advance:
            found = look(
                subject, plan, own, sums_of(measurement, plan), shares_of(measurement, plan), header.seed, advance,
                folder,
            )  # fmt: skip
    finally:
        subject.with_head(bool(header.untied))
    if file is not None:
        _write(file, found)
    return found


def solved_again(config: QuantizeConfig, measurement: Measurement, plan: Plan, found: Joint, stages: Stages) -> Plan:
    """The plan with its prediction; another one, where a tolerance of the whole model is not that of the sum.

    Raises:
        BudgetError: a size was given beside a tolerance, and its plan is predicted to break that.
    """
    shown = found.shown(plan)
    if config.eps is None or config.eps_scope == "site" or not found.apart:
        return shown
    wanted = (1 - config.margin) * config.eps
    if config.bits is not None or config.max_size is not None:
        if shown.kl_predicted > config.eps:
            raise BudgetError(
                f"eps {config.eps:.3g} and that size do not go together: the errors of the size's plan are predicted "
                f"to cost {shown.kl_predicted:.3g} together; give a larger size, "
                f"--eps {shown.kl_predicted / (1 - config.margin):.3g}, or one of the two alone"
            )
        return shown
    said = f"the errors of this plan together cost {found.predicted(plan.kl_sum):.4g}, not {plan.kl_sum:.4g}"
    for target in (wanted, config.eps):
        try:
            again = solve_for(config, measurement, found.sum_for(target))
        except BudgetError:
            continue
        stages.note(f"{said}: solved once more")
        return found.shown(again)
    stages.note(f"{said}, and there are no wider formats: the plan stays")
    return shown


def with_joint(
    config: QuantizeConfig,
    subject: Subject,
    measurement: Measurement,
    plan: Plan,
    samples: Samples,
    stages: Stages,
    folder: Path | None = None,
) -> tuple[Plan, Joint | None]:
    """The plan to round, and what a later plan of the same measurement is predicted by; arguments as above."""
    if not config.joint:
        return plan, None
    found = looked_at(subject, measurement, plan, samples, stages, folder)
    return solved_again(config, measurement, plan, found, stages), found


def predicted_by(found: Joint | None, plan: Plan) -> Plan:
    """A plan of the same measurement, for another tolerance."""
    return plan if found is None else found.shown(plan)


def _read(file: Path) -> Joint | None:
    """What an earlier run found; None where it found nothing, or its file cannot be read."""
    if not file.is_file():
        return None
    try:
        arrays = load(file.read_bytes())
        found = {name: arrays[name] for name in ARRAYS}
        kl_sum, seed, own = (arrays[name].item() for name in SCALARS)
        return Joint(kl_sum=kl_sum, seed=seed, own=own, **found)
    except (OSError, SafetensorError, KeyError):
        return None


def _write(file: Path, found: Joint) -> None:
    arrays = {name: np.ascontiguousarray(getattr(found, name)) for name in ARRAYS}
    scalars = {name: np.array([getattr(found, name)]) for name in SCALARS}
    write_bytes(file, save(arrays | scalars, {KEY: "joint"}))
