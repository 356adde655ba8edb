"""natprec in a notebook: the pipeline's steps on a model that is already in memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from natprec import pipeline
from natprec.distortions import Distortion, named
from natprec.errors import InputError, NatprecError
from natprec.evaluation import judge
from natprec.evaluation.verify import Verification
from natprec.files import new_folder
from natprec.measurement import Measurement
from natprec.measurement.measure import measure as measure_subject
from natprec.models.trust import tokenizer_of
from natprec.progress import Stages
from natprec.quantizers import QuantizedTensor
from natprec.records import OWN_TEXT, public_name
from natprec.rounding.flows import round_flows
from natprec.roundings import rounding_named
from natprec.run.request import Request, for_engine, refuse_long
from natprec.run.tokens import calibration_parts, calibration_tokens
from natprec.seeds import check_seed
from natprec.solver import Plan
from natprec.subject import Subject
from natprec.texts.seen import source_digest
from natprec.texts.windows import load_tokens
from natprec.transforms import rotated_digest


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
    tokenizer: Any,
    data: str | Path | Tensor | None = None,
    *,
    tokens: int = 8192,
    length: int = 256,
    distortion: str | Distortion | None = None,
    arithmetic: str = "auto",
    **options: Any,
) -> Measurement:
    """Measure a model in memory; it is set to eval and float32, its weights stay as they are.

    Args:
        data: text file, table, hub dataset, or (sequences, time) token ids; None: the model writes it.
            The last fifth of a text is left for `verify`.
        distortion: what every tolerance is about: a name or one of your own; default: KL, of encoders the
            distance of mean embeddings.
        arithmetic: of products, where they serve averages: 'bfloat16', 'float32', or 'auto': what is faster here.
        options: of `natprec.measurement.measure.measure`: engine, group_size, estimator, seed.
    """
    check_seed(options.get("seed", 0))
    rotates = options.get("transforms") == "rotate"
    model = copy.deepcopy(model) if rotates else model
    subject = Subject.in_memory(model, tokenizer, distortion=_distortion(distortion), products=arithmetic)
    subject = subject.rotated(options.get("seed", 0)) if rotates else subject
    subject = for_engine(subject, options.get("engine", "vllm"))
    ids, parts = _calibration(subject, data, tokens, length, options.get("seed", 0))
    digest = None if data is None or isinstance(data, Tensor) else source_digest(str(data))
    return measure_subject(subject, ids, parts=parts, data=_label(data), text_digest=digest, **options)


def apply(
    plan: Plan,
    model: Any,
    tokenizer: Any = None,
    data: str | Path | Tensor | None = None,
    *,
    rounding: str | None = None,
    refine: int = 0,
    tokens: int = 8192,
    length: int = 256,
    seed: int = 0,
) -> Quantized:
    """Round a copy of the model to a plan; round-to-nearest needs neither tokenizer nor data.

    Args:
        rounding: 'gptq', 'yaqa', 'learned' or 'rtn'; default: the one that the plan supposes.
        refine: steps of gradient descent on the scales afterwards, which needs data: see `natprec.rounding.refine`.

    Raises:
        InputError: the plan is of another model.
    """
    check_seed(seed)
    subject = Subject.in_memory(copy.deepcopy(model), tokenizer)
    plan.refuse_other_model(rotated_digest(subject.digest, plan.rotation), subject.name)
    subject = subject if plan.rotation is None else subject.rotated(plan.rotation)
    subject.refuse_rounded_otherwise(plan.engine, bool(plan.rounded_inputs), plan.cache is not None)
    rounding = rounding or plan.rounding
    ids = (
        None
        if rounding_named(rounding).needs == "nothing" and not refine
        else _calibration(subject, data, tokens, length, seed)[0]
    )
    codes = pipeline.round_to_plan(subject, plan, ids, rounding, Stages(quiet=True), refine, seed)
    if plan.inputs or plan.cache:
        round_flows(subject.model, subject.activations, plan)
    return Quantized(subject.model, subject, plan, codes, rounding)


def save(quantized: Quantized, out: str | Path, *, overwrite: bool = False) -> None:
    """Write the checkpoint, with plan.json beside it.

    Raises:
        OutputError: `out` exists or cannot be written.
    """
    with new_folder(Path(out), overwrite) as folder:
        pipeline.write(quantized.subject, quantized.plan, quantized.codes, folder, Stages(quiet=True))


def verify(
    folder: str | Path,
    model: Any,
    data: str | Path | Tensor | None = None,
    tokenizer: Any = None,
    *,
    tokens: int = 4096,
    length: int = 256,
    seed: int = 0,
    distortion: Distortion | None = None,
    trust_remote_code: bool = False,
) -> Verification:
    """Judge a checkpoint on disk against the original model; writes verification.json into it.

    Args:
        data: held-out text, or (sequences, time) token ids. Of a text that may be the one measured
            on, the last fifth is taken, which measuring leaves out.
        tokenizer: needed for text; the checkpoint's own by default.
        distortion: needed only where it was one of your own.
        trust_remote_code: run Python that comes with the checkpoint.
    """
    check_seed(seed)
    path = Path(folder)
    plan = Plan.load(path / "plan.json")
    if tokenizer is None and not isinstance(data, Tensor):
        tokenizer = _own_tokenizer(path, trust_remote_code)
    subject = Subject.in_memory(model, tokenizer, distortion=distortion or _distortion(plan.distortion))
    subject = replace(subject, trusted=trust_remote_code)
    plan.refuse_other_model(rotated_digest(subject.digest, plan.rotation), subject.name)
    ids = _held_out(subject, path, data, tokens, length, seed)
    result = judge.verify(
        path,
        subject,
        ids,
        plan,
        rounding=judge.recorded_rounding(path),
        data=_label(data),
        stages=Stages(quiet=True),
        seed=seed,
    )
    result.save(path / "verification.json")
    return result


def _distortion(given: str | Distortion | None) -> Distortion | None:
    return named(given) if isinstance(given, str) else given


def _own_tokenizer(folder: Path, trust: bool) -> Any:
    try:
        return tokenizer_of(folder, trust)
    except NatprecError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"checkpoint {str(folder)!r} has no tokenizer; give one with tokenizer=") from error


def _label(data: str | Path | Tensor | None) -> str:
    """What the text is called."""
    return "given tokens" if isinstance(data, Tensor) else OWN_TEXT if data is None else public_name(data)


def _calibration(
    subject: Subject, data: str | Path | Tensor | None, tokens: int, length: int, seed: int
) -> tuple[Tensor, int]:
    """Tokens to measure on and how many kinds of text they are; text is handled as the command line does."""
    refuse_long(subject, data.shape[1] if isinstance(data, Tensor) else length)
    if isinstance(data, Tensor):
        return data.to(next(subject.model.parameters()).device), 1
    source = None if data is None else str(data)
    request = Request(subject.name, eps=1.0, data=source, tokens=tokens, length=length, seed=seed)
    ids = calibration_tokens(request, subject, Stages(quiet=True))
    return ids, calibration_parts(request, subject)


def _held_out(
    subject: Subject, folder: Path, data: str | Path | Tensor | None, tokens: int, length: int, seed: int
) -> Tensor:
    """Tokens to judge a checkpoint on, without what it was measured on; those that are given as they are."""
    refuse_long(subject, data.shape[1] if isinstance(data, Tensor) else length)
    if not isinstance(data, Tensor):
        source = None if data is None else str(data)
        data = load_tokens(
            subject.tokenizer,
            source,
            sequences=max(1, round(tokens / length)),
            length=length,
            split="held-out",
            shared=source is not None and judge.may_be_measured_on(folder, source),
            seen=judge.measured_on(folder),
            model=subject.model,
            writes=subject.kind == "causal",
            seed=seed,
        )
    return data.to(next(subject.model.parameters()).device)
