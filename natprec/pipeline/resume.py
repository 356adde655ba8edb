"""The measurement of a run as a file that outlives it: finished, or half done and resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from natprec.config import QuantizeConfig
from natprec.measurement import Measurement
from natprec.measurement.measure import header_of, measure
from natprec.measurement.resume import refuse_other
from natprec.measurement.subject import Subject
from natprec.pipeline.components import settled
from natprec.pipeline.early import inputs
from natprec.pipeline.request import open_subject, tell_given
from natprec.pipeline.samples import calibration_parts, calibration_samples, calibration_text
from natprec.pipeline.together import claimed_together, made_by_first, refuse_unseen, weights_alike
from natprec.tasks import Samples
from natprec.utils.atomic_files import clear_stale, refuse_existing_file
from natprec.utils.claims import beside
from natprec.utils.marks import discard, is_ours, refuse_inputs
from natprec.utils.progress import Stages
from natprec.utils.provenance import versions
from natprec.utils.workers import Workers

JOINTS = "joint-*.safetensors"
"""Files in that folder, one for each plan that was looked at: see `natprec.pipeline.joint`."""

LEARNING = "learning-*.safetensors"
"""Files in that folder, one for each plan that was learned from: see `natprec.pipeline.learning`."""

SEGMENTS = "segments"
"""Folder in that of a run where a model whose weights are on disk is rounded and judged a segment at a time."""


def resume_folder_of(partial: Path, subject: Subject) -> Path | None:
    """The folder for rounded and judged segments; None for a model in memory, which is soon done again."""
    return None if subject.segmented.weights.whole else partial / SEGMENTS


def measured(
    config: QuantizeConfig, subject: Subject, samples: Samples, file: Path, resume: bool, stages: Stages
) -> Measurement:
    """The measurement, kept in `file`; with `resume` an earlier one, finished or not, is used.

    Raises:
        InputError: what is there to resume is of another model, text, seed, estimator or format list.
    """
    workers = subject.segmented.workers
    known = bool(workers.from_first(b"known" if resume and file.is_file() else b""))
    if not known:
        if not resume and workers.first:
            forget(file.parent)
        state_file = file.parent / "sweep.safetensors"
        measurement = run_measurement(config, subject, samples, state_file, resume, stages)
        if workers.first:
            measurement.save(file)
            state_file.unlink(missing_ok=True)
        if workers.size == 1:
            return measurement
        refuse_unseen(file, workers, file)
    found = Measurement.load(file)  # of one measurement all make the same plan
    if known:
        _refuse_other_measurement(found, config, subject, samples, file)
        stages.note(f"measured before: {file}")
    return found


def measured_together(
    config: QuantizeConfig, out: Path, overwrite: bool, resume: bool, stages: Stages, workers: Workers
) -> Measurement:
    """Measure with other processes that call this too; process 0 alone writes `out`, and the progress beside it.

    Raises:
        NatprecError: any input that cannot be used, at every process.
    """
    refuse_inputs(out, inputs(config))
    config = settled(config)
    state_file = beside(out, ".partial")
    if workers.first:
        clear_stale(out)
        refuse_existing_file(out, overwrite, is_ours, "measurement")
    with claimed_together(out, workers):
        if workers.first and not resume:
            discard(state_file)
        subject = opened_together(config, stages, workers)
        tell_given(subject, stages)
        samples = made_by_first(lambda: calibration_samples(config, subject, stages), subject)
        measurement = run_measurement(config, subject, samples, state_file, resume, stages)
        if workers.first:
            measurement.save(out)
            state_file.unlink(missing_ok=True)
    return measurement


def opened_together(
    config: QuantizeConfig,
    stages: Stages,
    workers: Workers,
    rotation: int | None = None,
    apart: bool | None = None,
) -> Subject:
    """The model of a run, whose work these processes share: see `open_subject`.

    Raises:
        InputError: processes have other versions, or another model.
    """
    workers.refuse_difference("versions of natprec, torch or others", str(sorted(versions().items())).encode())
    subject = open_subject(weights_alike(config, workers), stages, rotation, apart)
    workers.refuse_difference("model", subject.digest.encode())
    subject.segmented.workers = workers
    return subject


def run_measurement(
    config: QuantizeConfig,
    subject: Subject,
    samples: Samples,
    state_file: Path,
    resume: bool,
    stages: Stages,
) -> Measurement:
    """Measure; `state_file` holds the progress, for `resume`, and stays until the caller removes it."""
    if subject.segmented.workers.first:
        clear_stale(state_file)
    name, digest = calibration_text(config, subject)
    return measure(
        subject,
        samples,
        config,
        parts=calibration_parts(config, subject),
        data=name,
        text_digest=digest,
        stages=stages,
        state_file=state_file,
        resume=resume,
    )


def _refuse_other_measurement(
    found: Measurement, config: QuantizeConfig, subject: Subject, samples: Samples, file: Path
) -> None:
    formats = subject.candidates(config.profile, config.group_size, config.sites)
    ours = header_of(subject, samples, config, calibration_parts(config, subject), "")
    refuse_other(
        file,
        found.header.identity(fmt for curve in found.weights.values() for fmt in curve.formats),
        ours.identity(fmt for several in formats.values() for fmt in several),
    )
    found.refuse_other_sites(subject.sites, file)


def forget(partial: Path) -> None:
    """Remove what a run keeps for `--resume`, and nothing that is not ours."""
    segments = partial / SEGMENTS
    _remove(segments, [file.name for file in segments.glob("*.safetensors")])
    looks = [file.name for files in (JOINTS, LEARNING) for file in partial.glob(files)]
    _remove(partial, ["measurement.safetensors", "sweep.safetensors", *looks])


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Files, with what killed runs left beside them, and then the folder unless something else is in it."""
    if folder.is_dir():
        for name in names:
            clear_stale(folder / name)
            discard(folder / name)
        with contextlib.suppress(OSError):
            folder.rmdir()
