"""The measurement of a run as a file that outlives it: finished, or half done and resumed."""

from __future__ import annotations

import contextlib
from pathlib import Path

from torch import Tensor

from natprec.data import data_digest
from natprec.errors import InputError
from natprec.files import clear_stale
from natprec.formats import engine_profile
from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.progress import Stages
from natprec.request import Request
from natprec.subject import Subject
from natprec.texts import calibration_parts


def measured(request: Request, subject: Subject, ids: Tensor, file: Path, resume: bool, stages: Stages) -> Measurement:
    """The measurement, kept in `file`; with `resume` an earlier one, finished or not, is used.

    Raises:
        InputError: what is there to resume is of another model, text, seed, estimator or format list.
    """
    if resume and file.is_file():
        found = Measurement.load(file)
        _refuse_other_measurement(found, request, subject, ids, file)
        stages.note(f"measured before: {file}")
        return found
    if not resume:
        forget(file.parent)
    state_file = file.parent / "sweep.safetensors"
    measurement = run_measurement(request, subject, ids, state_file, resume, stages)
    measurement.save(file)
    state_file.unlink(missing_ok=True)
    return measurement


def run_measurement(
    request: Request, subject: Subject, ids: Tensor, state_file: Path, resume: bool, stages: Stages
) -> Measurement:
    """Measure; `state_file` holds the progress, for `resume`, and stays until the caller removes it."""
    clear_stale(state_file)
    return measure(
        subject,
        ids,
        engine=request.engine,
        group_size=request.group_size,
        estimator=request.estimator,
        rounding=request.rounding,
        transforms=request.transforms,
        sites=request.sites,
        seed=request.seed,
        parts=calibration_parts(request, subject),
        data=request.data or "written by the model",
        stages=stages,
        state_file=state_file,
        resume=resume,
    )


def _refuse_other_measurement(found: Measurement, request: Request, subject: Subject, ids: Tensor, file: Path) -> None:
    formats = subject.candidates(engine_profile(request.engine), request.group_size, request.sites)
    header = found.header
    pairs = {
        "model": (header.model_digest, subject.digest),
        "seed": (header.seed, request.seed),
        "estimator": (header.estimator, request.estimator),
        "rounding": (header.rounding, request.rounding),
        "transforms": (header.transforms, request.transforms),
        "sites": (header.sites, request.sites),
        "distortion": (header.distortion, subject.distortion.name),
        "data": (header.data_digest, data_digest(ids)),
        "format list": tuple(
            ", ".join(sorted({fmt.name for several in lists for fmt in several}))
            for lists in ([curve.formats for curve in found.weights.values()], list(formats.values()))
        ),
    }
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise InputError(
                f"cannot resume from {str(file)!r}: its {name} is {theirs!r}, now {ours!r}; "
                "give the same options as before, or leave --resume out to start again"
            )


def forget(partial: Path) -> None:
    """Remove what a run keeps for `--resume`, and nothing that is not ours."""
    if partial.is_dir():
        for file in ("measurement.safetensors", "sweep.safetensors"):
            clear_stale(partial / file)
            (partial / file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else is in it
            partial.rmdir()
