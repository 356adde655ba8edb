"""natprec in a notebook: the pipeline's steps on a model that is already in memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from natprec.config import CONFIDENCE, QuantizeConfig
from natprec.distortions import Distortion, named
from natprec.errors import InputError, NatprecError
from natprec.evaluation import verify as judge
from natprec.evaluation.verdict import HeldOutText
from natprec.evaluation.verification import Verification
from natprec.measurement import Measurement
from natprec.measurement.measure import measure as measure_subject
from natprec.measurement.module import ENGINE, subject_of_module
from natprec.measurement.subject import Subject
from natprec.models.model_files import task_of_class
from natprec.models.processors import SpeechProcessor, read_feature_extractor, read_image_processor
from natprec.models.trust import tokenizer_of
from natprec.pipeline import rounded
from natprec.pipeline.held_out import held_out
from natprec.pipeline.learning import learning_asked
from natprec.pipeline.pictures import of_text, seeing, tower_loaded
from natprec.pipeline.provenance import again
from natprec.pipeline.request import for_engine, refuse_long
from natprec.pipeline.samples import calibration_parts, calibration_samples, calibration_text
from natprec.quantizers import QuantizedTensor
from natprec.rounding.flows import round_flows
from natprec.roundings import rounding_named
from natprec.solver import Plan
from natprec.tasks import IMAGE_TASKS, SPEECH, Samples, Task
from natprec.transforms import rotated_digest
from natprec.utils.atomic_files import new_folder
from natprec.utils.progress import Stages
from natprec.utils.records import OWN_TEXT, public_name

GIVEN = Tensor, Samples
Data = str | Path | Tensor | Samples | None
"""A text file, table or hub dataset, a folder of images or recordings; (sequences, time) token ids, or samples; None:
the model writes it."""


@dataclass(frozen=True)
class Quantized:
    """A model rounded to a plan, in memory; call it like the original.

    Attributes:
        model: with the weights that an engine will reconstruct, float32; activations are rounded as it runs.
        codes: site name → codes, scales, zero points.
    """

    model: nn.Module
    subject: Subject
    plan: Plan
    codes: dict[str, QuantizedTensor]
    rounding: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The quantized model's forward."""
        return self.model(*args, **kwargs)


def measure(
    model: Any,
    tokenizer: Any = None,
    data: Data = None,
    *,
    samples: Samples | Mapping[str, Tensor] | None = None,
    distortion: str | Distortion | None = None,
    **options: Any,
) -> Measurement:
    """Measure a model in memory; it is set to eval and float32, its weights stay as they are.

    With `samples` the model is any module of torch, which is called with them, and its convolutions are measured too,
    by their matrix (output channels, inputs × kernel). No checkpoint format is known for such a module, so it is
    measured for the formats of engine 'natprec', and rounded to nearest unless `rounding` says otherwise.

    Args:
        tokenizer: or, of a vision-language model, its processor: `images` are pictures for that; of a model of images,
            what makes these ready.
        data: text file, table, hub dataset, (sequences, time) token ids, or samples; None: ordinary text that natprec
            ships. Half of the tokens are the model's own text, unless tokens or samples are given. The last fifth of a
            text is left for `verify`.
        samples: inputs of a module, by the names of its arguments; the first dimension of each counts samples.
        distortion: what every tolerance is about: a name or one of your own; default: KL, of encoders the
            distance of mean embeddings, of other modules the mean squared difference of outputs.
        options: of `natprec measure`, by their names in `natprec.QuantizeConfig`: engine, group_size, tokens, length …
    Raises:
        InputError: an unknown option, or a value that cannot be used; samples beside text.
    """
    if samples is not None:
        if tokenizer is not None or data is not None:
            raise InputError("samples and text were given; a module is measured on samples, a text model on text")
        return _measure_module(model, samples, _distortion(distortion), options)
    config = QuantizeConfig.of("measure", "", options)
    rotates = config.transforms == "rotate"
    model = copy.deepcopy(model) if rotates else model
    subject = Subject.in_memory(
        model, of_text(tokenizer), distortion=_distortion(distortion), products=config.arithmetic
    )
    subject = seeing(subject, tokenizer, config)
    subject = subject.rotated(config.seed) if rotates else subject
    subject = for_engine(tower_loaded(subject, config.engine, Stages(quiet=True)), config.engine)
    subject = subject.with_head(subject.gains_apart(config.profile))
    samples, parts = _calibration(subject, data, config)
    name, digest = _label(data), None
    if not isinstance(data, GIVEN):
        name, digest = calibration_text(_with_text(config, data), subject)
    try:
        return measure_subject(subject, samples, config, parts=parts, data=name, text_digest=digest)
    finally:
        subject.with_head(False)


def _measure_module(
    module: nn.Module, samples: Samples | Mapping[str, Tensor], distortion: Distortion | None, options: dict[str, Any]
) -> Measurement:
    config = QuantizeConfig.of("measure", "", {"engine": ENGINE, "rounding": "rtn", **options})
    if config.transforms == "rotate":
        raise InputError("transforms 'rotate' is for language models, whose residual stream is known; leave it out")
    samples = samples if isinstance(samples, Samples) else Samples.of(samples)
    samples = samples.to(next((each.device for each in module.parameters()), "cpu"))
    subject = subject_of_module(module, samples, distortion, products=config.arithmetic)
    return measure_subject(subject, samples, config, data="given samples")


def apply(
    plan: Plan,
    model: Any,
    tokenizer: Any = None,
    data: Data = None,
    *,
    rounding: str | None = None,
    other: Tensor | Samples | None = None,
    **options: Any,
) -> Quantized:
    """Round a copy of the model to a plan; round-to-nearest needs neither tokenizer nor data.

    Args:
        rounding: 'gptq', 'yaqa', 'learned' or 'rtn'; default: the one that the plan supposes.
        other: tokens or samples to learn from, beside those of `data`.
        options: of `natprec apply`, by their names in `natprec.QuantizeConfig`: tokens, length, seed, and
            `learn_tokens` or `time`, for learning against the model's output afterwards, which needs data: see
            `natprec.rounding.to_end`. Where `data` is tokens or samples and there are no others, it learns from them
            and from the model's own text.

    Raises:
        InputError: the plan is of another model, or an option is unknown.
    """
    config = QuantizeConfig.of("apply", "", options)
    config = replace(config, rounding=plan.rounding if rounding is None else rounding)
    config.check_each()
    subject = seeing(Subject.in_memory(copy.deepcopy(model), of_text(tokenizer)), tokenizer, config)
    subject = subject.with_head(plan.untied)
    plan.refuse_other_model(rotated_digest(subject.digest, plan.rotation), subject.name)
    subject.refuse_unseen(plan.quantized)
    plan.refuse_other_sites(subject)
    subject = subject if plan.rotation is None else subject.rotated(plan.rotation)
    subject.refuse_rounded_otherwise(plan.engine, bool(plan.rounded_inputs), plan.cache is not None)
    needs_text = rounding_named(config.rounding).needs != "nothing" or config.learns
    samples, quiet = _calibration(subject, data, config)[0] if needs_text else None, Stages(quiet=True)
    read = not isinstance(data, GIVEN)
    more = read if other is None else _given(subject, other, config.length)
    learning = learning_asked(_with_text(config, data) if read else config, subject, samples, quiet, more=more)
    codes = rounded.round_to_plan(subject, plan, samples, config.rounding, quiet, learning, config.seed)
    if plan.inputs or plan.cache:
        round_flows(subject.model, subject.activations, plan)
    return Quantized(subject.model, subject, plan, codes, config.rounding)


def save(quantized: Quantized, out: str | Path, *, overwrite: bool = False) -> None:
    """Write the checkpoint, with plan.json beside it.

    Raises:
        OutputError: `out` exists or cannot be written.
    """
    with new_folder(Path(out), overwrite) as folder:
        rounded.write(quantized.subject, quantized.plan, quantized.codes, folder, Stages(quiet=True))


def verify(
    folder: str | Path,
    model: Any,
    data: Data = None,
    tokenizer: Any = None,
    *,
    eps: float | None = None,
    tokens: int | None = None,
    length: int = 256,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    distortion: Distortion | None = None,
    trust_remote_code: bool = False,
    images: str | Path | None = None,
) -> Verification:
    """Judge a checkpoint on disk against the original model; writes verification.json into it.

    Args:
        data: held-out text, (sequences, time) token ids, or samples. Of a text that may be the one measured
            on, the last fifth is taken, which measuring leaves out.
        tokenizer: needed for text; the checkpoint's own by default.
        eps: tolerance to judge by; default: the plan's.
        tokens: that judge; default: as many as a clear verdict needs, 32,768 at most.
        confidence: of the interval that the verdict uses.
        distortion: needed only where it was one of your own.
        trust_remote_code: run Python that comes with the checkpoint.
        images: folder of pictures that judge besides text; then `tokenizer` is the model's processor.
    """
    config = QuantizeConfig.of(
        "verify", "",
        {"eval_tokens": tokens, "length": length, "seed": seed, "confidence": confidence, "images": images},
    )  # fmt: skip
    path = Path(folder)
    plan, known = Plan.load(path / "plan.json"), judge.recorded(path)
    plan = plan if eps is None else replace(plan, eps=eps, eps_scope="model")
    if tokenizer is None and not isinstance(data, GIVEN):
        tokenizer = _own_tokenizer(path, task_of_class(model.config, type(model).__name__), trust_remote_code)
    given = distortion or _distortion(plan.distortion)
    subject = seeing(Subject.in_memory(model, of_text(tokenizer), distortion=given), tokenizer, config)
    subject = replace(subject, trusted=trust_remote_code)
    plan.refuse_other_model(rotated_digest(subject.digest, plan.rotation), subject.name)
    texts: Samples | list[HeldOutText] | None = _given(subject, data, length)
    part = 0
    if texts is None:
        source = None if data is None else str(data)
        shared = source if source is not None and judge.may_be_measured_on(path, source) else None
        config = replace(config, eval_data=source, data=shared)
        judging = held_out(config, subject, Stages(quiet=True), judge.measured_on(path))
        part = known.part if known is not None and judging.part(known.part) else 0
        texts = judging.part(part)
    command = f"natprec.verify(..., data={_label(data)!r})"
    result = judge.verify(
        path, subject, texts, plan, rounding="unknown" if known is None else known.rounding, data=_label(data),
        stages=Stages(quiet=True), eval_tokens=tokens, seed=seed, confidence=confidence, part=part,
        provenance=again(plan.provenance, subject, command, config),
    )  # fmt: skip
    result = judge.with_history(result, known)
    result.save(path / "verification.json")
    return result


def _distortion(given: str | Distortion | None) -> Distortion | None:
    return named(given) if isinstance(given, str) else given


def _own_tokenizer(folder: Path, task: Task, trust: bool) -> Any:
    if task in IMAGE_TASKS:
        return read_image_processor(str(folder), trust)
    try:
        if task == SPEECH:
            return SpeechProcessor(read_feature_extractor(str(folder), trust), tokenizer_of(folder, trust))
        return tokenizer_of(folder, trust)
    except NatprecError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"checkpoint {str(folder)!r} has no tokenizer; give one with tokenizer=") from error


def _label(data: Data) -> str:
    """What the text is called."""
    return "given tokens" if isinstance(data, GIVEN) else OWN_TEXT if data is None else public_name(data)


def _given(subject: Subject, data: Data, length: int) -> Samples | None:
    """Samples that were given as such, on the model's device; the model must have positions for them."""
    samples = Samples.text(data) if isinstance(data, Tensor) else data
    refuse_long(subject, samples.length if isinstance(samples, Samples) else length)
    return samples.to(next(subject.model.parameters()).device) if isinstance(samples, Samples) else None


def _with_text(config: QuantizeConfig, data: Data) -> QuantizeConfig:
    return replace(config, data=None if data is None else str(data))


def _calibration(subject: Subject, data: Data, config: QuantizeConfig) -> tuple[Samples, int]:
    """Samples to measure on and how many kinds of text they are; text is handled as the command line does."""
    samples = _given(subject, data, config.length)
    if samples is not None:
        return samples, 1
    config = _with_text(config, data)
    return calibration_samples(config, subject, Stages(quiet=True)), calibration_parts(config, subject)
