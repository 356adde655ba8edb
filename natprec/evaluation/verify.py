"""T6: a checkpoint on disk is judged against the original model and its plan's promise."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from natprec.checkpoints.dense_reader import load_quantized, open_quantized
from natprec.checkpoints.pipeline_reader import load_part
from natprec.config import CONFIDENCE, QuantizeConfig
from natprec.data.seen import NO_PIECES, Pieces, same_text
from natprec.errors import InputError
from natprec.evaluation.conclude import Expected, Judging, conclude, promised
from natprec.evaluation.judging import GivenText
from natprec.evaluation.running import inputs_that_run
from natprec.evaluation.verdict import HeldOutText
from natprec.evaluation.verification import Comparison, Verification, compare, of_all
from natprec.formats import Format
from natprec.measurement import Measurement
from natprec.measurement.component import carried_files
from natprec.measurement.subject import Subject
from natprec.models.hidden_states import passed, state_key
from natprec.models.pipelines import PipelineFolder
from natprec.models.segments import SegmentedModel
from natprec.models.shares import Share
from natprec.solver import Plan
from natprec.tasks import Samples
from natprec.tasks.diffusion import PipelinePart
from natprec.utils.atomic_files import folder_bytes
from natprec.utils.digests import checkpoint_digests
from natprec.utils.progress import Advance, Stages
from natprec.utils.provenance import Provenance

MEASUREMENT = Path("natprec") / "measurement.safetensors"
"""Where a checkpoint keeps what it was solved from."""

REPORTS = ("plan.json", "verification.json", "README.md")
"""What natprec writes beside a checkpoint."""

CORRECTION = 0.85
"""Of what a correction asks for: where text is unlike that measured on, KL falls less than the tolerance (LOG.md)."""


def verify(
    folder: Path,
    subject: Subject,
    texts: Samples | Sequence[HeldOutText],
    plan: Plan,
    *,
    rounding: str,
    stages: Stages,
    data: str = "",
    eval_tokens: int | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    part: int = 0,
    provenance: Provenance | None = None,
    resume_folder: Path | None = None,
    tried: bool = True,
    gpu: str | None = None,
) -> Verification:
    """Judge the checkpoint on disk against the original model (T6).

    Args:
        texts: that judge, or samples, which all judge and are called `data`.
        eval_tokens: that judge; None: as many as the verdict needs, see `natprec.evaluation.verdict`.
        part: of the held-out text, which the file is to say.
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
    if isinstance(texts, Samples):
        eval_tokens, texts = max(1, texts.tokens), [GivenText(data, texts)]
    device = next(subject.model.parameters()).device
    with stages.stage("load checkpoint"):
        judged = checkpoint_digests(folder)  # first: what is changed from now on is not what was judged
        on = gpu or plan.gpu
        running = inputs_that_run(folder, plan.engine, on)
        if running:
            stages.note(
                f"inputs of {len(running)} modules are rounded on {on} as vLLM does, not as config.json says: "
                f"natprec check {folder} --gpu {on}"
            )
        quantized = opened(folder, subject, device, plan.engine, tried, stages.note, running)

    def portion(samples: Samples, number: int) -> Comparison:
        own = subject.segmented.workers.share(len(samples.batches()))
        steps = len(own) * (2 * len(subject.segmented.blocks) + 1)
        with stages.stage("verify", steps) as advance:
            return compared(
                subject, quantized, folder, samples.to(device), resume_folder, advance, number, on if running else None
            )

    how = Judging(eval_tokens, seed, confidence, part, provenance)
    expected = Expected.of(plan, checkpoint_bytes(folder), rounding, on)
    return replace(conclude(portion, texts, expected, how, str(folder)), files=judged)


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
    if isinstance(subject.task, PipelinePart):
        network = load_part(folder, subject.task.component).to(device)
        return SegmentedModel(network, subject.probe, subject.distortion, convolutions=True)
    if not subject.segmented.weights.whole:
        return open_quantized(folder, subject.segmented, device, engine, subject.trusted, running)
    model = load_quantized(folder, engine, subject.trusted, tried, note, running)
    model.to(device)
    return SegmentedModel(model, subject.probe, subject.distortion)


@torch.no_grad()
def compared(
    subject: Subject,
    quantized: SegmentedModel,
    folder: Path,
    samples: Samples,
    resume_folder: Path | None,
    advance: Advance,
    number: int = 0,
    gpu: str | None = None,
) -> Comparison:
    """A checkpoint's model against the original: all of the text goes through each, a block at a time.

    Several processes each take some batches, and all of them have what all have found.

    Args:
        folder: of the checkpoint.
        samples: the held-out text.
        resume_folder: see `verify`; `number`: of this portion, in the names of the files there.
        gpu: whose arithmetic the checkpoint's model has, where that is not what it says.
    """
    files = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in sorted(folder.glob("*.*"))]
    states = [
        None if resume_folder is None else resume_folder / f"{name}{number or ''}.safetensors"
        for name in ("original", "quantized")
    ]
    keys = [state_key(subject.digest, samples.digest), state_key(*files, *filter(None, [gpu]), samples.digest)]
    share = Share.of(samples, subject.segmented.workers)
    share.workers.stage = "verify"
    own = share.take(samples)
    with contextlib.ExitStack() as held:
        reference = held.enter_context(passed(subject.segmented, samples, advance, states[0], keys[0], share))
        other = held.enter_context(passed(quantized, samples, advance, states[1], keys[1], share))
        found = compare(reference, other, own, advance, subject.distortion) if len(own) else None
    return of_all(share.workers, found, subject.distortion)


def tightened(plan: Plan, kl_mean: float) -> float:
    """The tolerance to solve for next, when a plan for its `eps_solved` measured too much (T6).

    What tokens add that go to other experts falls like the error itself, not like its square (docs/experts.md): of what
    was predicted, p, and measured, p + b √p, that gives b, and then the p at which the sum is the promise.
    """
    promise, predicted = promised(plan), plan.kl_predicted
    assert promise is not None
    assert plan.eps_solved is not None
    if all(choice.tokens is None for choice in plan.sites.values()) or kl_mean <= predicted:
        return CORRECTION * plan.eps_solved * promise / kl_mean
    rerouted = (kl_mean - predicted) / math.sqrt(predicted)
    root = (math.sqrt(rerouted**2 + 4 * CORRECTION * promise) - rerouted) / 2
    return plan.eps_solved * root**2 / predicted


def checkpoint_bytes(folder: Path) -> int:
    """The checkpoint as on disk, without natprec's own reports beside it; of a pipeline all of its parts."""
    pipeline = PipelineFolder.found(folder)
    if pipeline is not None:
        return sum(file.stat().st_size for file in carried_files(pipeline) if file.name not in REPORTS)
    reports = [folder / name for name in REPORTS]
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
    """The pieces of the text that a checkpoint was measured on, as far as that is known."""
    file = folder / MEASUREMENT
    return Measurement.load(file).pieces if file.is_file() else NO_PIECES


def recorded(folder: Path) -> Verification | None:
    """The verification that a checkpoint has; None where there is none that can be read."""
    try:
        return Verification.load(folder / "verification.json")
    except InputError:
        return None


def as_recorded(
    config: QuantizeConfig, known: Verification | None, length: int | None, seed: int | None
) -> QuantizeConfig:
    """Judge as the last verification did in whatever the user leaves open, so that the same windows judge again."""
    return replace(
        config,
        length=length or (known.length if known is not None and known.length else config.length),
        seed=seed if seed is not None else known.provenance.seed if known and known.provenance else config.seed,
        eval_tokens=config.eval_tokens or (known.eval_tokens if known is not None else None),
    )


def with_history(verification: Verification, known: Verification | None) -> Verification:
    """A later verification of one checkpoint: what was corrected, and what the first plan measured, stay on record."""
    if known is None:
        return verification
    first = known.first_verdict if known.corrections else verification.first_verdict
    return replace(verification, corrections=known.corrections, first_verdict=first)
