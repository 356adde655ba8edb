"""The measurement of a run as a file that outlives it: finished, or half done and resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from natprec.claims import beside, claimed
from natprec.errors import InputError
from natprec.files import clear_stale, refuse_existing_file
from natprec.formats import engine_profile
from natprec.marks import discard, is_ours, refuse_inputs
from natprec.measurement import Measurement
from natprec.measurement.measure import measure, products_of
from natprec.parallel.workers import Workers
from natprec.progress import Stages
from natprec.records import OWN_TEXT, public_name
from natprec.run.request import Request, open_subject, too_large
from natprec.run.tokens import calibration_parts, calibration_tokens
from natprec.subject import Subject
from natprec.texts.seen import source_digest
from natprec.texts.windows import data_digest

STAGES = "stages"
"""Folder in that of a run where a model whose weights are on disk is rounded and judged a stage at a time."""


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


def measured_together(
    request: Request, out: Path, overwrite: bool, resume: bool, stages: Stages, workers: Workers
) -> Measurement:
    """Measure with other processes that call this too; process 0 alone writes `out`, and the progress beside it.

    Raises:
        NatprecError: any input that cannot be used, at every process.
    """
    refuse_inputs(out, request.inputs())
    state_file = beside(out, ".partial")
    with contextlib.ExitStack() as held:
        if workers.first:
            clear_stale(out)
            refuse_existing_file(out, overwrite, is_ours, "measurement")
            held.enter_context(claimed(out))
            if not resume:
                discard(state_file)
        request = _weights_alike(request, workers)
        subject = open_subject(request, stages)
        ids = workers.from_first(calibration_tokens(request, subject, stages) if workers.first else None)
        ids = ids.to(next(subject.model.parameters()).device)
        measurement = run_measurement(request, subject, ids, state_file, resume, stages, workers)
        if workers.first:
            measurement.save(out)
            state_file.unlink(missing_ok=True)
    return measurement


def _weights_alike(request: Request, workers: Workers) -> Request:
    """On disk in all processes if one of them has too little memory: a model on disk writes no text."""
    if request.weights != "auto":
        return request
    (short,) = workers.all_sum(torch.tensor([too_large(request.model)], dtype=torch.int64))
    return replace(request, weights="disk" if short else "memory")


def run_measurement(
    request: Request,
    subject: Subject,
    ids: Tensor,
    state_file: Path,
    resume: bool,
    stages: Stages,
    workers: Workers | None = None,
) -> Measurement:
    """Measure; `state_file` holds the progress, for `resume`, and stays until the caller removes it."""
    if workers is None or workers.first:
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
        data=public_name(request.data) if request.data else OWN_TEXT,
        text_digest=source_digest(request.data) if request.data else None,
        stages=stages,
        state_file=state_file,
        resume=resume,
        workers=workers,
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
        "arithmetic": (header.products, products_of(subject, request.sites)),
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
    stages = partial / STAGES
    _remove(stages, [file.name for file in stages.glob("*.safetensors")])
    _remove(partial, ["measurement.safetensors", "sweep.safetensors"])


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Files, with what killed runs left beside them, and then the folder unless something else is in it."""
    if folder.is_dir():
        for name in names:
            clear_stale(folder / name)
            discard(folder / name)
        with contextlib.suppress(OSError):
            folder.rmdir()
