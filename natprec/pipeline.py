"""The whole flow: read this first.

    model + text → sites → measurement → solve → plan → rounding → checkpoint → verification

`quantize` is the main job. Each step is also a function of its own, and a command of the CLI.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from natprec.data import data_digest, load_tokens
from natprec.errors import BudgetError, InputError, ModelError, unknown
from natprec.evaluation.reload import load_quantized
from natprec.evaluation.verify import Verification, compare
from natprec.export import write_checkpoint
from natprec.files import clear_stale, folder_bytes, new_folder, refuse_existing
from natprec.formats import engine_profile
from natprec.measurement import Curve, Measurement
from natprec.measurement.measure import ESTIMATORS, measure
from natprec.measurement.sweep import batches
from natprec.measurement.table import Header
from natprec.models import load_model
from natprec.progress import Stages
from natprec.quantizers import QuantizedTensor
from natprec.rounding import apply_batches, apply_plan, refuse_unknown_rounding, restore, snapshot
from natprec.solver import Plan, solve
from natprec.solver.solve import Scope, check_eps, check_positive
from natprec.subject import Subject


@dataclass(frozen=True)
class Request:
    """What the user asked for; the command line's options, one to one."""

    model: str
    eps: float | None = None
    bits: float | None = None
    max_size: float | None = None
    eps_scope: Scope = "model"
    data: str | None = None
    eval_data: str | None = None
    text_column: str | None = None
    tokens: int = 8192
    eval_tokens: int = 4096
    length: int = 256
    group_size: int | None = 64
    engine: str = "vllm"
    estimator: str = "fisher"
    rounding: str = "gptq"
    seed: int = 0
    device: str = "cpu"
    trust_remote_code: bool = False

    def check(self, judged: bool = True) -> None:
        """Refuse what cannot work before a model is loaded.

        Args:
            judged: whether held-out tokens are wanted.
        Raises:
            InputError: an unknown name or a number out of range.
        """
        check_eps(self.eps)
        for name in ("bits", "max_size", "tokens", "eval_tokens", "length"):
            check_positive(name.replace("_", "-"), getattr(self, name))
        if self.length < 2:
            raise InputError(f"sequence-length {self.length}: a sequence needs at least 2 tokens; 256 is usual")
        for name in ("tokens", "eval_tokens") if judged else ("tokens",):
            if getattr(self, name) < self.length:
                raise InputError(
                    f"{name.replace('_', '-')} {getattr(self, name)} is less than one sequence of {self.length}; "
                    f"raise --{name.replace('_', '-')} or lower --sequence-length"
                )
        engine_profile(self.engine)
        if self.estimator not in ESTIMATORS:
            raise unknown("estimator", self.estimator, ESTIMATORS)
        refuse_unknown_rounding(self.rounding)
        if self.eps is None and self.bits is None and self.max_size is None:
            raise InputError("nothing to solve for: give --eps (nats per token), --bits or --max-size")


def open_subject(request: Request, stages: Stages) -> Subject:
    """Load the model and find its sites.

    Raises:
        ModelError, InputError: it cannot be used, or not with these options.
    """
    with stages.stage("load model"):
        loaded = load_model(request.model, trust_remote_code=request.trust_remote_code, device=request.device)
        subject = Subject.of(loaded)
    refuse_long(subject, request.length)
    return subject


def refuse_long(subject: Subject, length: int) -> None:
    """A model has no use, and some no numbers, for positions that it was not made for.

    Raises:
        InputError: says the limit.
    """
    config: Any = getattr(subject.model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and length > limit > 0:
        raise InputError(
            f"sequence-length {length} is more than the {limit} positions of model {subject.name!r}; "
            f"use --sequence-length {limit} or less"
        )


def refuse_impossible_size(request: Request, subject: Subject) -> None:
    """Solve a made-up measurement for the size: bytes are known before anything is measured.

    Raises:
        BudgetError: --bits or --max-size is below the cheapest plan.
        InputError: the group size does not divide a layer.
    """
    formats = subject.candidates(engine_profile(request.engine), request.group_size)
    if request.bits is None and request.max_size is None:
        return
    none, one = np.zeros(1), np.ones(1)
    curves = {}
    for site in subject.sites:
        kl = np.array([[4.0**-fmt.bits for fmt in formats[site.name]]])
        curves[site.name] = Curve(site, formats[site.name], kl[None], kl, one, none[None])
    header = Header(
        subject.name, subject.digest, "", "", 1, request.length, 1, 0, "fisher", request.engine,
        str(subject.storage_dtype), subject.other_bytes, subject.carried_bytes,
    )  # fmt: skip
    solve_request(replace(request, eps=None), Measurement(header, curves))


def calibration_tokens(request: Request, subject: Subject, stages: Stages) -> Tensor:
    """(sequences, length) tokens to measure on.

    With `data`, half of them are the model's own text: a site then costs what it costs on the kind of
    text where it costs most, and the promise survives text that `data` did not foresee.
    """
    if request.data is None:
        return _tokens(request, subject, stages, None, request.tokens, "calibration")
    half = max(1, round(request.tokens / request.length / 2)) * request.length
    given = _tokens(request, subject, stages, request.data, half, "calibration")
    return torch.cat([given, _tokens(request, subject, stages, None, half, "calibration")])


def calibration_parts(request: Request) -> int:
    """Kinds of text in `calibration_tokens`."""
    return 1 if request.data is None else 2


def held_out_tokens(request: Request, subject: Subject, stages: Stages) -> Tensor:
    """(sequences, length) tokens to judge on: another part of the text, or another text."""
    return _tokens(request, subject, stages, request.eval_data or request.data, request.eval_tokens, "held-out")


def _tokens(request: Request, subject: Subject, stages: Stages, source: str | None, tokens: int, split: str) -> Tensor:
    steps = None if source else tokens
    with stages.stage(f"{split} text" if source else f"{split} text, written by the model", steps) as advance:
        done = 0

        def progress(now: int, total: int) -> None:
            nonlocal done
            for _ in range(done, now):
                advance("")
            done = now

        device = next(subject.model.parameters()).device
        return load_tokens(
            subject.tokenizer,
            source,
            sequences=max(1, round(tokens / request.length)),
            length=request.length,
            split=split,  # type: ignore[arg-type]
            shared=request.eval_data in (None, request.data),
            model=subject.model,
            seed=request.seed,
            text_column=request.text_column,
            progress=progress,
        ).to(device)


def round_to_plan(
    subject: Subject, plan: Plan, ids: Tensor | None, rounding: str, stages: Stages
) -> dict[str, QuantizedTensor]:
    """Codes and scales of every site; the subject's model is the quantized one afterwards."""
    steps = apply_batches(subject.staged, *ids.shape) if ids is not None and rounding != "rtn" else None
    with stages.stage(f"round ({rounding})", steps) as advance:
        return apply_plan(subject.staged, subject.sites, plan, ids, rounding, subject.storage_dtype, advance)


def write(subject: Subject, plan: Plan, quantized: dict[str, QuantizedTensor], folder: Path, stages: Stages) -> None:
    """Checkpoint and plan.json into an existing folder."""
    with stages.stage("write"):
        profile = engine_profile(plan.engine)
        write_checkpoint(
            folder, subject.model, subject.tokenizer, subject.sites, quantized, profile, subject.storage_dtype
        )
        plan.save(folder / "plan.json")


def verify(
    folder: Path, subject: Subject, ids: Tensor, plan: Plan, *, rounding: str, data: str, stages: Stages, seed: int = 0
) -> Verification:
    """Judge the checkpoint on disk against the original model (T6)."""
    with stages.stage("load checkpoint"):
        model = load_quantized(folder)
        model.to(ids.device)
    with stages.stage("verify", len(batches(*ids.shape))) as advance:
        compared = compare(
            subject.staged.logits, lambda rows: model(input_ids=rows, use_cache=False).logits, ids, advance
        )
    summary = compared.summary(seed)
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
        data_digest=data_digest(ids),
        rounding=rounding,
        **summary,
    )


def promised(plan: Plan) -> float | None:
    """The KL of the whole model that a plan promises; with eps per site, the sum over sites."""
    return plan.eps if plan.eps is None or plan.eps_scope == "model" else plan.eps * len(plan.sites)


def checkpoint_bytes(folder: Path) -> int:
    """The checkpoint as on disk, without natprec's own reports beside it."""
    reports = [folder / "plan.json", folder / "verification.json"]
    return folder_bytes(folder) - sum(file.stat().st_size for file in reports if file.exists())


def may_be_measured_on(folder: Path, source: str) -> bool:
    """Whether a checkpoint may have been measured on this text, so that only its held-out part may judge."""
    file = folder / "natprec" / "measurement.safetensors"
    return not file.is_file() or Measurement.load(file).header.data == source


def recorded_rounding(folder: Path) -> str:
    """The rounding that an earlier verification recorded, else 'unknown'."""
    file = folder / "verification.json"
    return Verification.load(file).rounding if file.exists() else "unknown"


def quantize(
    request: Request, out: Path, *, overwrite: bool = False, resume: bool = False, stages: Stages | None = None
) -> tuple[Measurement, Plan, Verification]:
    """Measure, solve, round, write and verify; one correction if the promise fails.

    `out` appears when everything is done. Beside it `out.partial` keeps the measurement, or its
    progress, until then: see `measured`.

    Raises:
        NatprecError: any input that cannot be used; nothing is left half-written.
    """
    request.check()
    clear_stale(out)
    refuse_existing(out, overwrite)
    stages = stages or Stages(quiet=True)
    subject = open_subject(request, stages)
    refuse_impossible_size(request, subject)
    ids = calibration_tokens(request, subject, stages)
    held_out = held_out_tokens(request, subject, stages)
    partial = out.with_name(out.name + ".partial")
    measurement = measured(request, subject, ids, partial / "measurement.safetensors", resume, stages)
    try:
        with stages.stage("solve"):
            plan = solve_request(request, measurement)
    except BudgetError as error:
        kept = partial / "measurement.safetensors"
        raise BudgetError(f"{error}; kept for natprec solve, or --resume with another target: {kept}") from error
    with new_folder(out, overwrite) as folder:
        plan, verification = _round_and_prove(request, subject, measurement, plan, ids, held_out, folder, stages)
        (folder / "natprec").mkdir()
        measurement.save(folder / "natprec" / "measurement.safetensors")
    _forget(partial)
    return measurement, plan, verification


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
        _forget(file.parent)
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
        seed=request.seed,
        parts=calibration_parts(request),
        data=request.data or "written by the model",
        stages=stages,
        state_file=state_file,
        resume=resume,
    )


def _refuse_other_measurement(found: Measurement, request: Request, subject: Subject, ids: Tensor, file: Path) -> None:
    formats = subject.candidates(engine_profile(request.engine), request.group_size)
    header = found.header
    pairs = {
        "model": (header.model_digest, subject.digest),
        "seed": (header.seed, request.seed),
        "estimator": (header.estimator, request.estimator),
        "data": (header.data_digest, data_digest(ids)),
        "format list": tuple(
            ", ".join(sorted({fmt.name for several in lists for fmt in several}))
            for lists in ([curve.formats for curve in found.curves.values()], list(formats.values()))
        ),
    }
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise InputError(
                f"cannot resume from {str(file)!r}: its {name} is {theirs!r}, now {ours!r}; "
                "give the same options as before, or leave --resume out to start again"
            )


def _forget(partial: Path) -> None:
    """Remove what a run keeps for `--resume`, and nothing that is not ours."""
    if partial.is_dir():
        for file in ("measurement.safetensors", "sweep.safetensors"):
            clear_stale(partial / file)
            (partial / file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else is in it
            partial.rmdir()


def solve_request(request: Request, measurement: Measurement, eps_solved: float | None = None) -> Plan:
    """The plan that a request asks for."""
    return solve(
        measurement,
        request.eps,
        bits=request.bits,
        max_size=request.max_size,
        engine=request.engine,
        eps_scope=request.eps_scope,
        eps_solved=eps_solved,
    )


def _round_and_prove(
    request: Request,
    subject: Subject,
    measurement: Measurement,
    plan: Plan,
    ids: Tensor,
    held_out: Tensor,
    folder: Path,
    stages: Stages,
) -> tuple[Plan, Verification]:
    """Round, write and verify; if the promise fails, tighten once by promised / measured and repeat."""
    original = snapshot(subject.model)
    judged = request.eval_data or request.data or "written by the model"
    verification: Verification | None = None
    for corrections in (0, 1):
        quantized = round_to_plan(subject, plan, ids, request.rounding, stages)
        write(subject, plan, quantized, folder, stages)
        restore(subject.model, original)
        verification = verify(
            folder, subject, held_out, plan, rounding=request.rounding, data=judged, stages=stages, seed=request.seed
        )
        verification = replace(verification, corrections=corrections)
        promise = promised(plan)
        if verification.passed is not False or corrections or promise is None or plan.eps_solved is None:
            break
        if request.bits is not None or request.max_size is not None:
            break  # the size decides the plan; a tighter tolerance would give the same one
        tightened = plan.eps_solved * promise / verification.kl_mean
        try:
            plan = solve_request(request, measurement, tightened)
        except BudgetError:
            stages.note(f"measured KL {verification.kl_mean:.4g} > {promise:g}, and no wider formats are left")
            break
        stages.note(f"measured KL {verification.kl_mean:.4g} > {promise:g}: solving once more, for {tightened:.4g}")
        _empty(folder)
    assert verification is not None
    verification.save(folder / "verification.json")
    return plan, verification


def _empty(folder: Path) -> None:
    """A correction may write fewer files (shards) than the first try did."""
    for file in folder.iterdir():
        file.unlink()
