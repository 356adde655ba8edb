"""From a plan to a checkpoint: round the weights of a subject, learn from there if asked for, and write the folder."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from torch import Tensor

from natprec.checkpoints import checkpoint_writer
from natprec.checkpoints.writer import CheckpointWriter
from natprec.formats import engine_profile
from natprec.measurement.subject import Subject
from natprec.models.weights import present_values
from natprec.pipeline.learning import Learning, learn, rounded_before
from natprec.quantizers import QuantizedTensor
from natprec.rounding import apply_batches, lookups_in, rounded_segments
from natprec.solver import Plan
from natprec.tasks import Samples
from natprec.utils.progress import Advance, Stages


def round_and_write(
    subject: Subject,
    plan: Plan,
    samples: Samples | None,
    rounding: str,
    folder: Path,
    resume_folder: Path | None,
    stages: Stages,
    learning: Learning | None = None,
    seed: int = 0,
) -> None:
    """A checkpoint in an existing folder; the subject's model is as it was afterwards.

    Several processes share the rounding; process 0 alone writes, and the others wait for it.

    Args:
        resume_folder: of the finished segments, on which a later call goes on; None: they stay in memory.
    """
    subject.refuse_rounded_otherwise(plan.engine, bool(plan.rounded_inputs), plan.cache is not None)
    experts = {choice.format for choice in plan.sites.values() if choice.tokens is not None}
    if len(experts) > 1:
        stages.note(
            f"experts have {len(experts)} formats: plain transformers would read all by one of them and compute "
            f"nonsense; {plan.engine} and natprec.load read each by its own"
        )
    workers = subject.segmented.workers
    if learning is not None:
        with subject.segmented.weights.hold(subject.model.parameters()):
            codes = round_to_plan(subject, plan, samples, rounding, stages, learning, seed)
            if workers.first:
                write(subject, plan, codes, folder, stages)
        workers.wait()
        return
    writer = checkpoint_writer(folder, subject, plan, resume_folder) if workers.first else None
    with _rounding_stage(subject, plan, samples, rounding, stages) as advance:
        for segment, codes in rounded_segments(subject, plan, samples, rounding, resume_folder, advance, seed):
            if writer is not None:
                writer.put(segment, codes)
    if writer is not None:
        _finish(writer, stages)
    workers.wait()


def round_to_plan(
    subject: Subject,
    plan: Plan,
    samples: Samples | None,
    rounding: str,
    stages: Stages,
    learning: Learning | None = None,
    seed: int = 0,
) -> dict[str, QuantizedTensor]:
    """Codes and scales of every site; the subject's model, which is in memory, is the quantized one afterwards.

    Who holds its parameters meanwhile has the original back when they are released.

    Args:
        learning: against the end, after the rounding; None: there is none.
    """
    if learning is None:
        return _rounded(subject, plan, samples, rounding, stages, seed, {})
    original = present_values(subject.model)
    kept, unrounded = learning.kept(subject, plan, rounding, samples), dict[str, Tensor]()
    found = kept.found()
    if found is None:
        codes = _rounded(subject, plan, samples, rounding, stages, seed, unrounded)
    else:
        codes = rounded_before(subject, plan, found)
    return learn(learning, subject, codes, unrounded, original, kept, found, stages)


def _rounded(
    subject: Subject,
    plan: Plan,
    samples: Samples | None,
    rounding: str,
    stages: Stages,
    seed: int,
    unrounded: dict[str, Tensor],
) -> dict[str, QuantizedTensor]:
    """The rounding alone; `unrounded` gets what was rounded where that is not the original weight."""
    model, found = subject.model, dict[str, QuantizedTensor]()
    with subject.segmented.weights.hold(model.parameters()):
        with _rounding_stage(subject, plan, samples, rounding, stages) as advance:
            for _, codes in rounded_segments(subject, plan, samples, rounding, None, advance, seed, unrounded):
                found |= codes
        rounded = present_values(model)
    for name, parameter in model.named_parameters():
        parameter.data = rounded[name]
    return {site.name: found[site.name] for site in subject.sites if site.name in found}


def _rounding_stage(
    subject: Subject, plan: Plan, samples: Samples | None, rounding: str, stages: Stages
) -> contextlib.AbstractContextManager[Advance]:
    lookups = bool(lookups_in(subject.sites, plan))
    steps = None if samples is None else apply_batches(subject.segmented, rounding, samples, lookups) or None
    return stages.stage(f"round ({rounding})", steps)


def write(subject: Subject, plan: Plan, quantized: dict[str, QuantizedTensor], folder: Path, stages: Stages) -> None:
    """Checkpoint and plan.json of a model that is the quantized one, into an existing folder."""
    writer = checkpoint_writer(folder, subject, plan)
    for segment in subject.segmented.segments:
        own = [site.name for site in subject.sites if site.segment == segment]
        writer.put(segment, {name: quantized[name] for name in own if name in quantized})
    _finish(writer, stages)


def _finish(writer: CheckpointWriter, stages: Stages) -> None:
    """Put a checkpoint together, with plan.json and what else belongs beside it."""
    with stages.stage("write"):
        writer.close()
        _write_beside(writer.subject, writer.plan, writer.folder)


def _write_beside(subject: Subject, plan: Plan, folder: Path) -> None:
    for name, content in subject.companions.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    for file in subject.leftovers.files_for(gguf=engine_profile(plan.engine).container == "gguf"):
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    plan.save(folder / "plan.json")
