"""Refusals before anything is measured, and opening the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from natprec.checkpoints import as_gguf
from natprec.checkpoints.trial import refuse_unloadable
from natprec.config import NOT_ROUNDED, QuantizeConfig
from natprec.costs import costs_for
from natprec.costs.choose import BYTES
from natprec.distortions import named
from natprec.errors import InputError, ModelError
from natprec.formats import EngineProfile, Format, engine_profile
from natprec.formats.engines import PROFILES
from natprec.measurement import Curve, Header, Measurement
from natprec.measurement.subject import Subject
from natprec.models.activation_sites import activation_formats
from natprec.models.devices import free_bytes, limit_gpu_memory
from natprec.models.disk_names import DiskNames
from natprec.models.loading import load_model, stored_elements
from natprec.models.weight_sites import Site, site_layer
from natprec.pipeline.components import open_component, pipeline_of
from natprec.pipeline.pictures import pictured, tower_loaded
from natprec.pipeline.provenance import command_of
from natprec.solver import Plan, solve
from natprec.solver.cache import cache_format
from natprec.solver.check_flows import check_flows
from natprec.utils.human import human_bytes
from natprec.utils.progress import Stages

ANY_EPS = 1e9
"""A tolerance that all formats keep, to see whether each has a cost."""

COPIES = 3
"""Of the weights, that verification needs beside each other in memory: the original, the quantized, its unpacking."""


def check(config: QuantizeConfig, judged: bool = True, solved: bool = True) -> None:
    """Refuse what cannot work before a model is loaded: see `QuantizeConfig.check`; and what the engine cannot do.

    Raises:
        InputError: an unknown name, a number out of range, or options that contradict each other.
    """
    config.check(judged, solved)
    check_flows(config.profile, config.activations, config.kv)
    if solved:
        costs_for(config.minimize, config.engine, config.gpu, Path(config.costs) if config.costs else None)


def solve_for(config: QuantizeConfig, measurement: Measurement, eps_solved: float | None = None) -> Plan:
    """The plan that is asked for; `eps_solved` is a tightened tolerance."""
    plan = solve(
        measurement,
        engine=config.engine,
        rounding=config.rounding,
        eps_solved=eps_solved,
        **config.given("solve"),
    )
    return replace(plan, provenance=measurement.header.provenance(command_of("quantize", config)))


def open_subject(
    config: QuantizeConfig, stages: Stages, rotation: int | None = None, apart: bool | None = None
) -> Subject:
    """Load the model, find its sites, and rotate it if that is asked for.

    Args:
        rotation: the seed by which the model of a plan was rotated; else the configuration's, if it rotates.
        apart: whether a tied output head becomes a site of its own; None: where the engine reads both packed.
    Raises:
        ModelError, InputError: it cannot be used, or not with these options.
    """
    limit_gpu_memory(config.device, config.gpu_memory)
    if pipeline_of(config) is not None:
        with stages.stage("load pipeline"):
            return for_engine(open_component(config), config.engine)
    on_disk = config.weights == "disk" or (config.weights == "auto" and too_large(config))
    with stages.stage("load model"):
        pictures = None if config.images is None else pictured(config, config.images)
        loaded = load_model(
            config.model, trust_remote_code=config.trust_remote_code, device=config.device, on_disk=on_disk
        )
        distortion = named(config.distortion) if config.distortion else None
        subject = Subject.of(loaded, distortion, config.arithmetic)
        if pictures is not None:
            subject = subject.seeing(pictures)
        if rotation is None and config.transforms == "rotate":
            rotation = config.seed
        if rotation is not None:
            subject = subject.rotated(rotation, stages.note)
        subject = for_engine(tower_loaded(subject, config.engine, stages), config.engine)
        subject = subject.with_head(subject.gains_apart(config.profile) if apart is None else apart)
        subject.refuse_rounded_otherwise(config.engine, config.activations != NOT_ROUNDED, config.kv != NOT_ROUNDED)
    if on_disk and subject.segmented.blocks:
        stages.note("weights stay on disk: one block is in memory at a time")
    refuse_long(subject, config.length)
    return subject


def too_large(config: QuantizeConfig) -> bool:
    """Whether a model's float32 weights would take more of the device's memory than may be used for them."""
    return 4 * COPIES * (stored_elements(config.model) or 0) > free_bytes(config.device, config.gpu_memory)


def refuse_without_text(subject: Subject, command: str) -> None:
    """Refuse a model that is given no text.

    Raises:
        InputError: says what takes it.
    """
    if subject.task.material != "text":
        raise InputError(
            f"{subject.name!r} is {subject.task.noun}, and natprec {command} is for models of text; natprec quantize, "
            "measure, apply and verify take it"
        )


def refuse_on_disk(subject: Subject, config: QuantizeConfig) -> None:
    """Refuse what needs the whole model, before hours are spent.

    Raises:
        InputError: its weights are on disk.
    """
    if config.learns and not subject.segmented.weights.whole:
        raise InputError(
            "learning against the model's end (--learn-tokens, --time) needs the whole model in memory; leave it out, "
            "or use --weights memory"
        )


def tell_given(subject: Subject, stages: Stages) -> None:
    """Say whether the model is quantized already, or made of an adapter."""
    if subject.leftovers.adapted:
        stages.note(
            f"the LoRA adapter {subject.name!r} is merged into {subject.leftovers.adapted!r}: the merged model is "
            "measured and written"
        )
    if subject.source_format:
        stages.note(
            f"model {subject.name!r} is quantized already: {subject.source_format}, "
            f"{human_bytes(subject.source_bytes or 0)}; natprec rounds its weights once more, and KL is against them"
        )


def tell_leftovers(subject: Subject, engine: str, stages: Stages) -> None:
    """What `tell_given` says, what else the model's checkpoint holds, and what becomes of that."""
    tell_given(subject, stages)
    _tell_convolutions(subject, engine, stages)
    for sentence in subject.leftovers.sentences(gguf=engine_profile(engine).container == "gguf"):
        stages.note(sentence)


def _tell_convolutions(subject: Subject, engine: str, stages: Stages) -> None:
    """How much of a model stays at 16 bits, as the engine's kind of checkpoint has no codes for convolutions."""
    kept = [site for site in subject.sites if site.role == "convolution"]
    if kept and "convolution" not in engine_profile(engine).formats:
        share = sum(site.elements for site in kept) / sum(site.elements for site in subject.sites)
        stages.note(
            f"{len(kept)} convolutions, {share:.1%} of the weights, stay at 16 bits: what {engine} loads has codes of "
            "Linear layers alone; --engine natprec, for natprec's own loader, quantizes them"
        )


def for_engine(subject: Subject, engine: str) -> Subject:
    """The subject as an engine's kind of checkpoint counts it.

    Raises:
        ModelError: the engine loads no checkpoint of such a model.
    """
    if engine == "diffusers" and subject.task.reader != "steps":
        raise InputError(
            f"engine 'diffusers' is for parts of its pipelines (--component), and {subject.name!r} is "
            f"{subject.task.noun}; use another --engine"
        )
    _refuse_unread_layers(subject, engine_profile(engine))
    if engine_profile(engine).experts == "model" and not DiskNames(subject.model).merged:
        raise ModelError(
            f"transformers keeps the experts of {type(subject.model).__name__} as one tensor also on disk, and has no "
            "rule to put it together from quantized ones; use --engine vllm, or natprec for natprec's own loader"
        )
    refuse_unloadable(subject, engine)
    if engine_profile(engine).container == "gguf":
        return as_gguf(subject)
    return replace(subject, other_bytes=subject.other_bytes + _wider_than_16_bits(subject, engine_profile(engine)))


def _refuse_unread_layers(subject: Subject, profile: EngineProfile) -> None:
    """Refuse a layer whose codes the engine does not read: it would fail, or read them the wrong way round.

    So is a model whose every weight would stay as it is.
    """
    if all(site.role == "convolution" and site.role not in profile.formats for site in subject.sites):
        raise ModelError(
            f"model {subject.name!r} has no weights but those of convolutions, for which what {profile.name} loads has "
            "no codes; use --engine natprec, for natprec's own loader"
        )
    for site in subject.sites:
        kind = site_layer(subject.model, site).kind.name
        if kind not in profile.layers and site.role != "convolution":  # which stays at 16 bits where it has no codes
            able = [name for name, each in PROFILES.items() if kind in each.layers]
            raise ModelError(
                f"{site.name!r} is a {kind}, and {profile.name} is not known to read packed codes of any layers but "
                f"{' and '.join(profile.layers)}; use --engine {' or '.join(able)}"
            )


def _wider_than_16_bits(subject: Subject, profile: EngineProfile) -> int:
    """Bytes beyond 2 for each weight of the sites that the engine keeps, where their checkpoint has float32."""
    unquantized = [site for site in subject.sites if site.role not in profile.formats]
    dtypes = subject.segmented.weights.dtypes
    wide = [(site, dtypes.get(site.name + ".weight", torch.bfloat16)) for site in unquantized]
    return sum((dtype.itemsize - 2) * site.elements for site, dtype in wide)


def refuse_long(subject: Subject, length: int) -> None:
    """A model has no use, and some no numbers, for positions that it was not made for.

    Raises:
        InputError: says the limit.
    """
    config: Any = getattr(subject.model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = subject.task.longest(config, subject.tokenizer)
    if limit is not None and length > limit:
        raise InputError(
            f"sequence-length {length} is more than the {limit} positions of model {subject.name!r}; "
            f"use --sequence-length {limit} or less"
        )


def refuse_impossible_size(config: QuantizeConfig, subject: Subject) -> None:
    """Solve a made-up measurement for the size, or with the costs: both are known before anything is measured.

    Raises:
        BudgetError: --bits or --max-size is below the cheapest plan.
        InputError: the group size does not divide a layer, a format has no cost, or keys and values cannot have the
            width that is asked for.
    """
    profile = config.profile
    formats = subject.candidates(profile, config.group_size, config.sites)
    if config.kv != NOT_ROUNDED:
        cache_format(subject.activations, profile, config.kv)
    if config.bits is None and config.max_size is None and config.minimize == BYTES:
        return
    unreached = subject.unreached
    candidates: dict[Site, tuple[Format, ...]] = {
        site: () if site.name in unreached else formats[site.name] for site in subject.sites
    }
    if config.sites == "all":
        candidates |= {
            site: activation_formats(site, config.group_size, profile.full_range, profile)
            for site in subject.activations
        }
    none, one = np.zeros(1), np.ones(1)
    curves = {}
    for site, several in candidates.items():
        kl = np.array([[4.0**-fmt.bits for fmt in several]])
        flat = np.ones(kl.shape[1])
        curves[site.name] = Curve(site, several, kl[None], kl, one, flat, none[None], flat)
    header = Header(
        model=subject.name, model_digest=subject.digest, data="", data_digest="", sequences=1, length=config.length,
        parts=1, engine=config.engine, storage_dtype=str(subject.storage_dtype), other_bytes=subject.other_bytes,
        carried_bytes=subject.carried_bytes, distortion=subject.distortion.name, rounding=config.rounding,
        gpu=profile.gpu, untested=config.untested, portable=config.portable, untied=subject.untied,
    )  # fmt: skip
    eps = None if config.minimize == BYTES else ANY_EPS
    solve_for(replace(config, eps=eps, eps_scope="model"), Measurement(header, curves))
