"""T6: a checkpoint on disk is judged against the original model and its plan's promise."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from natprec.checkpoints.dense_reader import load_quantized, open_quantized
from natprec.data.seen import NO_PIECES, Pieces, same_text
from natprec.errors import InputError, ModelError
from natprec.evaluation.running import inputs_that_run
from natprec.evaluation.verification import Comparison, Verification, compare
from natprec.formats import Format
from natprec.measurement import Measurement
from natprec.measurement.subject import Subject
from natprec.models.hidden_states import passed, state_key
from natprec.models.segments import SegmentedModel
from natprec.solver import Plan
from natprec.tasks import Samples
from natprec.utils.atomic_files import folder_bytes
from natprec.utils.progress import Advance, Stages

MEASUREMENT = Path("natprec") / "measurement.safetensors"
"""Where a checkpoint keeps what it was solved from."""

MARGIN = 0.85
"""Of what the correction asks for: where text is unlike that measured on, KL falls less than the tolerance (LOG.md)."""


def verify(
    folder: Path,
    subject: Subject,
    samples: Samples,
    plan: Plan,
    *,
    rounding: str,
    data: str,
    stages: Stages,
    seed: int = 0,
    resume_folder: Path | None = None,
    tried: bool = True,
    gpu: str | None = None,
) -> Verification:
    """Judge the checkpoint on disk against the original model (T6).

    Args:
        resume_folder: holds how far both models have come; a later call goes on there. None: nothing is kept.
        tried: whether transformers is asked to load it: see `load_quantized`.
        gpu: a generation, whose arithmetic is judged; default: the plan's.
    Raises:
        InputError: the plan keeps another distortion small than the subject's.
        ModelError: NaN or Inf.
    """
    if plan.distortion != subject.distortion.name:
        raise InputError(
            f"the plan's tolerance is of distortion {plan.distortion!r}, this judges by {subject.distortion.name!r}; "
            "judge by the one that was measured"
        )
    with stages.stage("load checkpoint"):
        on = gpu or plan.gpu
        running = inputs_that_run(folder, plan.engine, on)
        if running:
            stages.note(
                f"inputs of {len(running)} modules are rounded on {on} as vLLM does, not as config.json says: "
                f"natprec check {folder} --gpu {on}"
            )
        quantized = opened(folder, subject, samples.device, plan.engine, tried, stages.note, running)
    with stages.stage("verify", len(samples.batches()) * (2 * len(subject.segmented.blocks) + 1)) as advance:
        summary = compared(
            subject, quantized, folder, samples, resume_folder, advance, on if running else None
        ).summary(seed)
    if not np.isfinite(summary["kl_mean"]):
        raise ModelError(
            f"checkpoint {str(folder)!r}: its predictions or the original's on {data!r} are NaN or Inf; "
            "raise --eps or --bits, or check the original model"
        )
    promise = promised(plan)
    return Verification(
        eps=plan.eps,
        passed=None if promise is None else summary["kl_mean"] <= promise,
        kl_predicted=plan.kl_predicted,
        stored_bytes=checkpoint_bytes(folder),
        stored_bytes_reference=plan.stored_bytes_reference,
        bits_per_weight=plan.bits_per_weight,
        bits_per_weight_total=plan.bits_per_weight_total,
        data=data,
        data_digest=samples.digest,
        rounding=rounding,
        distortion=plan.distortion,
        gpu=on,
        **summary,
    )


def opened(
    folder: Path,
    subject: Subject,
    device: torch.device,
    engine: str,
    tried: bool = True,
    note: Callable[[str], None] = lambda line: None,
    running: Mapping[str, Format | None] | None = None,
) -> SegmentedModel:
    """A checkpoint's model, its weights where the original's are: see `load_quantized` and `open_quantized`."""
    if not subject.segmented.weights.whole:
        return open_quantized(folder, subject.segmented, device, engine, subject.trusted, running)
    model = load_quantized(folder, engine, subject.trusted, tried, note, running)
    model.to(device)
    return SegmentedModel(model, subject.task.probe(model), subject.distortion)


@torch.no_grad()
def compared(
    subject: Subject,
    quantized: SegmentedModel,
    folder: Path,
    samples: Samples,
    resume_folder: Path | None,
    advance: Advance,
    gpu: str | None = None,
) -> Comparison:
    """A checkpoint's model against the original: all of the text goes through each, a block at a time.

    Args:
        folder: of the checkpoint.
        samples: the held-out text.
        resume_folder: see `verify`.
        gpu: whose arithmetic the checkpoint's model has, where that is not what it says.
    """
    files = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in sorted(folder.glob("*.*"))]
    states = [
        None if resume_folder is None else resume_folder / f"{name}.safetensors" for name in ("original", "quantized")
    ]
    keys = [state_key(subject.digest, samples.digest), state_key(*files, *filter(None, [gpu]), samples.digest)]
    with contextlib.ExitStack() as held:
        reference = held.enter_context(passed(subject.segmented, samples, advance, states[0], keys[0]))
        other = held.enter_context(passed(quantized, samples, advance, states[1], keys[1]))
        return compare(reference, other, samples, advance, subject.distortion)


def promised(plan: Plan) -> float | None:
    """The distortion of the whole model that a plan promises; with eps per site, the sum over sites."""
    return plan.eps if plan.eps is None or plan.eps_scope == "model" else plan.eps * len(plan.sites)


def tightened(plan: Plan, kl_mean: float) -> float:
    """The tolerance to solve for next, when a plan for its `eps_solved` measured too much (T6).

    What tokens add that go to other experts falls like the error itself, not like its square (docs/experts.md): of what
    was predicted, p, and measured, p + b √p, that gives b, and then the p at which the sum is the promise.
    """
    promise, predicted = promised(plan), plan.kl_predicted
    assert promise is not None
    assert plan.eps_solved is not None
    if all(choice.tokens is None for choice in plan.sites.values()) or kl_mean <= predicted:
        return MARGIN * plan.eps_solved * promise / kl_mean
    rerouted = (kl_mean - predicted) / math.sqrt(predicted)
    root = (math.sqrt(rerouted**2 + 4 * MARGIN * promise) - rerouted) / 2
    return plan.eps_solved * root**2 / predicted


def checkpoint_bytes(folder: Path) -> int:
    """The checkpoint as on disk, without natprec's own reports beside it."""
    reports = [folder / "plan.json", folder / "verification.json"]
    return folder_bytes(folder) - sum(file.stat().st_size for file in reports if file.exists())


def may_be_measured_on(folder: Path, source: str) -> bool:
    """Whether a checkpoint may have been measured on this text, so that only what measuring leaves out may judge.

    It may where the measurement is not there, or does not tell: see `natprec.data.seen` for what one text is.
    """
    file = folder / MEASUREMENT
    if not file.is_file():
        return True
    found = Measurement.load(file)
    return not len(found.pieces) or same_text(found.header.data, found.header.text_digest, source)


def measured_on(folder: Path) -> Pieces:
    """Of the text that a checkpoint was measured on, as far as that is known."""
    file = folder / MEASUREMENT
    return Measurement.load(file).pieces if file.is_file() else NO_PIECES


def recorded_rounding(folder: Path) -> str:
    """The rounding that an earlier verification recorded; 'unknown' where there is none that can be read."""
    try:
        return Verification.load(folder / "verification.json").rounding
    except InputError:
        return "unknown"
