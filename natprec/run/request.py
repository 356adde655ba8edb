"""What the user asked for, and what can be refused before anything is measured."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from natprec.arithmetic import refuse_unknown_arithmetic
from natprec.distortions import named
from natprec.errors import InputError, ModelError, unknown
from natprec.export import as_gguf
from natprec.export.trial import refuse_unloadable
from natprec.formats import EngineProfile, Format, engine_profile
from natprec.measurement import Curve, Header, Measurement
from natprec.measurement.measure import ESTIMATORS, SITES
from natprec.memory import available_bytes
from natprec.models.checkpoints import local_path
from natprec.models.disk_names import DiskNames
from natprec.models.loading import load_model, stored_elements
from natprec.progress import Stages
from natprec.roundings import rounding_named
from natprec.seeds import check_seed
from natprec.sites import Site, activation_formats
from natprec.solver import Plan, solve
from natprec.solver.assemble import cache_format
from natprec.solver.solve import Scope, check_eps, check_positive
from natprec.solver.units import NOT_ROUNDED, check_flows
from natprec.subject import Subject
from natprec.transforms import TRANSFORMS

WEIGHTS = ("auto", "memory", "disk")
"""Where a model's weights are while it is worked on."""

COPIES = 3
"""Of the weights, that verification needs beside each other in memory: the original, the quantized, its unpacking."""


@dataclass(frozen=True)
class Request:
    """What the user asked for; the command line's options, one to one. A Path serves as a name, too."""

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
    distortion: str | None = None
    transforms: str = "auto"
    refine: int = 0
    sites: str = "weights"
    weights: str = "auto"
    activations: str = NOT_ROUNDED
    kv: str = NOT_ROUNDED
    eps_bwd: float | None = None
    arithmetic: str = "auto"

    def __post_init__(self) -> None:
        for name in ("model", "data", "eval_data"):
            if isinstance(getattr(self, name), Path):
                object.__setattr__(self, name, str(getattr(self, name)))

    def check(self, judged: bool = True) -> None:
        """Refuse what cannot work before a model is loaded.

        Args:
            judged: whether held-out tokens are wanted.
        Raises:
            InputError: an unknown name or a number out of range.
        """
        check_eps(self.eps)
        for name in ("bits", "max_size", "eps_bwd", "tokens", "eval_tokens", "length"):
            check_positive(name.replace("_", "-"), getattr(self, name))
        if self.length < 2:
            raise InputError(f"sequence-length {self.length}: a sequence needs at least 2 tokens; 256 is usual")
        for name in ("tokens", "eval_tokens") if judged else ("tokens",):
            if getattr(self, name) < self.length:
                raise InputError(
                    f"{name.replace('_', '-')} {getattr(self, name)} is less than one sequence of {self.length}; "
                    f"raise --{name.replace('_', '-')} or lower --sequence-length"
                )
        check_flows(engine_profile(self.engine), self.activations, self.kv)
        if self.estimator not in ESTIMATORS:
            raise unknown("estimator", self.estimator, ESTIMATORS)
        check_seed(self.seed)
        rounding_named(self.rounding)
        refuse_unknown_arithmetic(self.arithmetic)
        if self.refine < 0:
            raise InputError(f"refine {self.refine}: give a number of steps, or 0 for none")
        if self.transforms not in TRANSFORMS:
            raise unknown("transforms", self.transforms, TRANSFORMS)
        if self.sites not in SITES:
            raise unknown("sites", self.sites, SITES)
        if self.weights not in WEIGHTS:
            raise unknown("weights", self.weights, WEIGHTS)
        if self.distortion is not None:
            named(self.distortion)
        if self.eps is None and self.bits is None and self.max_size is None:
            raise InputError("nothing to solve for: give --eps (nats per token), --bits or --max-size")

    def inputs(self) -> dict[str, Path | None]:
        """Option → the file or folder on this machine that it names.

        Raises:
            ModelError: the model is a path, and there is nothing.
        """
        texts = {"--data": self.data, "--eval-data": self.eval_data}
        return {"--model": local_path(self.model), **{name: _on_disk(text) for name, text in texts.items()}}

    def solve(self, measurement: Measurement, eps_solved: float | None = None) -> Plan:
        """The plan that the request asks for; `eps_solved` is a tightened tolerance."""
        return solve(
            measurement,
            self.eps,
            bits=self.bits,
            max_size=self.max_size,
            engine=self.engine,
            eps_scope=self.eps_scope,
            eps_solved=eps_solved,
            rounding=self.rounding,
            activations=self.activations,
            kv=self.kv,
            eps_bwd=self.eps_bwd,
        )


def _on_disk(text: str | None) -> Path | None:
    path = None if text is None else Path(os.path.expanduser(text))
    return path if path is not None and path.exists() else None


def open_subject(request: Request, stages: Stages, rotation: int | None = None) -> Subject:
    """Load the model, find its sites, and rotate it if that is asked for.

    Args:
        rotation: the seed by which the model of a plan was rotated; else the request's, if it rotates.
    Raises:
        ModelError, InputError: it cannot be used, or not with these options.
    """
    on_disk = request.weights == "disk" or (request.weights == "auto" and too_large(request.model))
    with stages.stage("load model"):
        loaded = load_model(
            request.model, trust_remote_code=request.trust_remote_code, device=request.device, on_disk=on_disk
        )
        distortion = named(request.distortion) if request.distortion else None
        subject = Subject.of(loaded, distortion, request.arithmetic)
        if rotation is None and request.transforms == "rotate":
            rotation = request.seed
        if rotation is not None:
            subject = subject.rotated(rotation, stages.note)
        subject = for_engine(subject, request.engine)
        subject.refuse_rounded_otherwise(request.engine, request.activations != NOT_ROUNDED, request.kv != NOT_ROUNDED)
    if on_disk and subject.staged.blocks:
        stages.note("weights stay on disk: one block is in memory at a time")
    refuse_long(subject, request.length)
    return subject


def too_large(model: str) -> bool:
    """Whether a model's float32 weights would take more memory than may be used for them."""
    return 4 * COPIES * (stored_elements(model) or 0) > available_bytes()


def refuse_on_disk(subject: Subject, engine: str, refine: int) -> None:
    """Refuse what needs the whole model, before hours are spent.

    Raises:
        InputError: its weights are on disk.
    """
    if subject.staged.weights.whole:
        return
    if refine:
        raise InputError(
            f"refine {refine}: that needs the whole model in memory; leave it out, or use --weights memory"
        )
    if engine_profile(engine).container == "gguf":
        raise InputError(
            f"engine {engine!r}: a GGUF file is written from memory; use --weights memory, or another engine"
        )


def tell_leftovers(subject: Subject, engine: str, stages: Stages) -> None:
    """Say what else the model's checkpoint holds, and what becomes of it."""
    for sentence in subject.leftovers.sentences(gguf=engine_profile(engine).container == "gguf"):
        stages.note(sentence)


def for_engine(subject: Subject, engine: str) -> Subject:
    """The subject as an engine's kind of checkpoint counts it.

    Raises:
        ModelError: the engine loads no checkpoint of such a model.
    """
    if engine_profile(engine).experts == "model" and not DiskNames(subject.model).merged:
        raise ModelError(
            f"transformers keeps the experts of {type(subject.model).__name__} as one tensor also on disk, and has no "
            "rule to put it together from quantized ones; use --engine vllm, or natprec for natprec's own loader"
        )
    refuse_unloadable(subject, engine)
    if engine_profile(engine).container == "gguf":
        return as_gguf(subject)
    return replace(subject, other_bytes=subject.other_bytes + _wider_than_16_bits(subject, engine_profile(engine)))


def _wider_than_16_bits(subject: Subject, profile: EngineProfile) -> int:
    """Bytes beyond 2 for each weight of the sites that the engine keeps, where their checkpoint has float32."""
    kept = [site for site in subject.sites if site.role not in profile.formats]
    dtypes = subject.staged.weights.dtypes
    wide = [(site, dtypes.get(site.name + ".weight", torch.bfloat16)) for site in kept]
    return sum((dtype.itemsize - 2) * site.elements for site, dtype in wide)


def refuse_long(subject: Subject, length: int) -> None:
    """A model has no use, and some no numbers, for positions that it was not made for.

    Raises:
        InputError: says the limit.
    """
    config: Any = getattr(subject.model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(config, "max_position_embeddings", None)
    if subject.kind == "encoder" and limit:  # some (RoBERTa's) have positions that no token gets
        limit = min(limit, getattr(subject.tokenizer, "model_max_length", limit))
    if isinstance(limit, int) and length > limit > 0:
        raise InputError(
            f"sequence-length {length} is more than the {limit} positions of model {subject.name!r}; "
            f"use --sequence-length {limit} or less"
        )


def refuse_impossible_size(request: Request, subject: Subject) -> None:
    """Solve a made-up measurement for the size: bytes are known before anything is measured.

    Raises:
        BudgetError: --bits or --max-size is below the cheapest plan.
        InputError: the group size does not divide a layer, or keys and values cannot have the width that is asked for.
    """
    profile = engine_profile(request.engine)
    formats = subject.candidates(profile, request.group_size, request.sites)
    if request.kv != NOT_ROUNDED:
        cache_format(subject.activations, profile, request.kv)
    if request.bits is None and request.max_size is None:
        return
    unreached = subject.unreached
    candidates: dict[Site, tuple[Format, ...]] = {
        site: () if site.name in unreached else formats[site.name] for site in subject.sites
    }
    if request.sites == "all":
        candidates |= {
            site: activation_formats(site, request.group_size, profile.full_range) for site in subject.activations
        }
    none, one = np.zeros(1), np.ones(1)
    curves = {}
    for site, several in candidates.items():
        kl = np.array([[4.0**-fmt.bits for fmt in several]])
        flat = np.ones(kl.shape[1])
        curves[site.name] = Curve(site, several, kl[None], kl, one, flat, none[None], flat)
    header = Header(
        subject.name, subject.digest, "", "", 1, request.length, 1, 0, "fisher", request.rounding, request.engine,
        str(subject.storage_dtype), subject.other_bytes, subject.carried_bytes, distortion=subject.distortion.name,
    )  # fmt: skip
    replace(request, eps=None).solve(Measurement(header, curves))
