"""Measuring a subject: the sweep, the exact estimator beside it, and the file that they fill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from natprec.errors import InputError, unknown
from natprec.formats import Format, engine_profile
from natprec.measurement.curves import Curve
from natprec.measurement.exact import exact_curves
from natprec.measurement.resume import SweepState, load_state, save_state
from natprec.measurement.sharding import Sharding
from natprec.measurement.sweep import sweep
from natprec.measurement.table import VERSION, Header, Measurement
from natprec.memory import keep_freed
from natprec.parallel.workers import Workers
from natprec.progress import Stages
from natprec.sites import Site, activation_formats
from natprec.staged.batches import batch_count, batches
from natprec.staged.routing import MIN_TOKENS
from natprec.subject import Subject
from natprec.texts.windows import data_digest
from natprec.transforms import TRANSFORMS

Estimator = Literal["fisher", "exact"]
ESTIMATORS = ("fisher", "exact")

SITES = ("weights", "all")
"""What is measured: `all` adds the inputs of Linears, the residual stream, keys and values."""

DIFFERENTIATED = 2
"""Of a kind of text one in so many sequences also goes back, if there are `MANY`; GPTQ is fitted to the others."""

MANY = 16

QUICK = ("rtn", "gptq")
"""Roundings that take less time than measuring."""

CHECK_SITES = 4
CHECK_SEQUENCES = 2
CHECK_EPS = 0.05
"""The spot check takes, at each checked site, the width that this tolerance would give it."""


def measure(
    subject: Subject,
    ids: Tensor,
    *,
    engine: str = "vllm",
    group_size: int | None = 64,
    estimator: str = "fisher",
    rounding: str = "gptq",
    transforms: str = "auto",
    sites: str = "weights",
    seed: int = 0,
    parts: int = 1,
    data: str = "given tokens",
    stages: Stages | None = None,
    state_file: Path | None = None,
    resume: bool = False,
    workers: Workers | None = None,
) -> Measurement:
    """Forward distortion and gradient distortion of every site under every candidate format.

    Args:
        ids: (sequences, time) calibration tokens.
        group_size: one size, or None for all that divide a site.
        rounding: unless 'rtn', what GPTQ leaves is measured too, which plans may then suppose; 'rtn': half the time.
        transforms: 'auto': rescale channels before GPTQ where that leaves less distortion; 'none'; 'rotate': as 'auto',
            of a subject that was rotated.
        sites: 'weights', or 'all': activations, keys and values too.
        parts: kinds of text in `ids`, equal and one after the other; a site costs what it costs on
            the kind where it costs most.
        state_file: where progress is kept, so that `resume` can go on from it; removed at the end.
        workers: processes that call this with the same arguments and share the work; process 0 writes the state.
    Raises:
        InputError: unknown engine or estimator, a group size that divides a site not, a state of
            another measurement; fewer batches than processes.
    """
    if estimator not in ESTIMATORS:
        raise unknown("estimator", estimator, ESTIMATORS)
    if transforms not in TRANSFORMS:
        raise unknown("transforms", transforms, TRANSFORMS)
    if transforms == "rotate" and subject.rotation is None:
        raise InputError(f"transforms 'rotate': {subject.name!r} was not rotated; measure subject.rotated(seed)")
    if sites not in SITES:
        raise unknown("sites", sites, SITES)
    if len(ids) % parts:
        raise InputError(f"{len(ids)} sequences cannot be {parts} equal parts; give a multiple of {parts}")
    if subject.staged.weights.whole:  # what is read from disk, block by block, is to go back to the system
        keep_freed()
    workers = workers or Workers()
    own, others = shared_out(ids, parts, subject.staged.routed, rounding)
    sharding = Sharding.of(batches(*own.shape, routed=subject.staged.routed), workers)
    formats = subject.candidates(engine_profile(engine), group_size, sites)
    stages = stages or Stages(quiet=True)
    products = products_of(subject, sites)
    fingerprint = {
        "version": VERSION,
        "model": subject.digest,
        "data": data_digest(ids),
        "seed": seed,
        "parts": parts,
        "differentiated": len(own),
        "estimator": estimator,
        "rounding": rounding,
        "transforms": transforms,
        "sites": sites,
        "products": products,
        "distortion": subject.distortion.name,
        "formats": sorted({fmt.name for several in formats.values() for fmt in several}),
    }
    state = load_state(state_file, fingerprint) if resume and state_file else None

    def save(now: SweepState) -> None:
        if state_file is not None and workers.first:
            save_state(state_file, fingerprint, now)

    state = state or SweepState(len(subject.staged.blocks), None, {}, {})
    begun = json.dumps([fingerprint, state.stage, sorted(state.curves), sorted(state.exact)])
    workers.refuse_difference("model, text, options or state", hashlib.sha256(begun.encode()).digest())
    flows = subject.activations if sites == "all" else []
    if flows and not any(site.kind == "key" for site in flows) and subject.kind == "causal":
        stages.note("keys and values were not found: this model does not call transformers' attention interface")
    fitted = others if rounding != "rtn" else None
    steps = batch_count(subject.staged, len(sharding.own), ids.shape[1], state.stage)
    if fitted is not None:
        fitting = sum(stage <= state.stage for stage in {site.stage for site in subject.sites if site.gptq})
        forward = 1 + state.stage if subject.staged.blocks else 0
        steps += len(workers.share(len(batches(*fitted.shape)))) * (forward + fitting)
    with stages.stage("measure", steps) as advance:
        curves = sweep(
            subject.staged,
            subject.sites,
            formats,
            own,
            scale_dtype=subject.storage_dtype,
            seed=seed,
            rounding=rounding,
            parts=parts,
            gauges=subject.gauges if rounding != "rtn" and transforms != "none" else None,
            activations={site: activation_formats(site, group_size) for site in flows},
            advance=advance,
            state=state,
            save=save,
            scratch=state_file.absolute().parent if state_file else None,
            sharding=sharding,
            fitted=fitted,
        )
    idle = [name for name, curve in curves.items() if not curve.energy.any()]
    if idle:
        stages.note(f"{len(idle)} of {len(curves)} sites have no effect here, so they stay wide: {idle[0]} …")
    few = [curve for curve in curves.values() if curve.few]
    if few:
        experts = sum(curve.tokens is not None for curve in curves.values())
        stages.note(
            f"{len(few)} of {experts} weights of experts saw fewer than {MIN_TOKENS} tokens, so they cost what the "
            f"others of their layer do: {few[0].site.name} saw {few[0].tokens} …; more --tokens reach more"
        )
    if estimator == "exact":
        exact = _exactly(subject, own, state, save, stages, sharding)
        curves = {name: exact[name] for name in curves}
    header = Header(
        model=subject.name,
        model_digest=subject.digest,
        data=data,
        data_digest=data_digest(ids),
        sequences=ids.shape[0],
        length=ids.shape[1],
        parts=parts,
        seed=seed,
        estimator=estimator,
        rounding=rounding,
        engine=engine,
        storage_dtype=str(subject.storage_dtype).removeprefix("torch."),
        other_bytes=subject.other_bytes,
        carried_bytes=subject.carried_bytes,
        distortion=subject.distortion.name,
        transforms=transforms,
        rotation=subject.rotation,
        sites=sites,
        products=products,
    )
    measurement = Measurement(header, curves)
    if estimator == "fisher":
        measurement = spot_check(subject, measurement, ids, stages, workers)
    return replace(measurement, header=replace(measurement.header, seconds=dict(stages.seconds)))


def shared_out(ids: Tensor, parts: int, routed: bool, rounding: str = "gptq") -> tuple[Tensor, Tensor | None]:
    """The sequences of each part that also go back, and those that do not, if any.

    An expert sees few of the tokens as it is, so that of a model with experts (`routed`) all go back; as they do before
    a rounding that takes so long that they hardly add to it.
    """
    each = ids.unflatten(0, (parts, -1))
    if each.shape[1] < MANY or routed or rounding not in QUICK:
        return ids, None
    back = torch.arange(each.shape[1]) % DIFFERENTIATED == DIFFERENTIATED - 1
    return each[:, back].flatten(0, 1), each[:, ~back].flatten(0, 1)


def products_of(subject: Subject, sites: str) -> str:
    """What the sweep computes matrix products in: see `natprec.arithmetic`."""
    # the rounding of activations is not to be measured on a grid that bfloat16 gives them
    return str(torch.float32 if sites == "all" else subject.staged.products).removeprefix("torch.")


def _exactly(
    subject: Subject, ids: Tensor, state: SweepState, save: Any, stages: Stages, sharding: Sharding
) -> dict[str, Curve]:
    """Replace the forward curves by exact ones, site by site."""
    left = [curve for curve in state.curves.values() if curve.site.name not in state.exact and not curve.few]
    own = sharding.take(ids)
    steps = sum(len(curve.formats) for curve in left) * len(batches(*own.shape, routed=subject.staged.routed))
    sharding.workers.stage = "exact"
    with stages.stage("measure exactly", steps) as advance:
        wanted = [(curve.site, curve.formats) for curve in left]
        for site, found in exact_curves(subject.staged, wanted, own, subject.storage_dtype, advance):
            values = sharding.gather(torch.from_numpy(found)).numpy()
            curve = state.curves[site.name]
            parts, units, formats = curve.forward.shape
            pooled = values.reshape(parts, units, -1, formats).mean(2)
            state.curves[site.name] = replace(curve, forward=pooled, alignment=np.ones(formats))
            state.exact.add(site.name)
            save(state)
    return state.curves


def spot_check(
    subject: Subject, measurement: Measurement, ids: Tensor, stages: Stages, workers: Workers | None = None
) -> Measurement:
    """Compare the sweep with the exact estimator at a few sites, spread over the depth; processes share the sites."""
    workers = workers or Workers()
    wanted = list(_checked(measurement))
    own = wanted[workers.rank :: workers.size]
    first = ids[: len(ids) // measurement.header.parts]  # of the first kind of text, as the Fisher values below
    few = first[:: max(1, len(first) // CHECK_SEQUENCES)][:CHECK_SEQUENCES]
    exact = torch.zeros(len(wanted), dtype=torch.float64)
    workers.stage = "spot check"
    with stages.stage("spot check", len(own) * len(batches(*few.shape, routed=subject.staged.routed))) as advance:
        found = exact_curves(subject.staged, own, few, subject.storage_dtype, advance) if own else ()
        for number, (_, values) in enumerate(found):
            exact[workers.rank + number * workers.size] = float(values.mean())
        (exact,) = workers.all_sum(exact)
    rows = []
    for (site, (fmt,)), value in zip(wanted, exact.tolist(), strict=True):
        curve = measurement.curves[site.name]
        column = curve.formats.index(fmt)
        fisher = float(curve.forward[0, :, column].mean() * curve.alignment[column])
        rows.append((site.name, fmt.name, fisher, value))
    return replace(measurement, header=replace(measurement.header, checks=rows))


def _checked(measurement: Measurement) -> Iterator[tuple[Site, Sequence[Format]]]:
    """A few weights, and where they were measured a few activations."""
    for weights in (True, False):
        found = [each for each in measurement.curves.values() if (each.site.kind == "weight") == weights]
        curves = [curve for curve in found if curve.energy.any() and not curve.few]
        total = sum(curve.site.elements for curve in curves)
        for index in np.unique(np.linspace(0, len(curves) - 1, min(CHECK_SITES, len(curves))).round().astype(int)):
            curve = curves[index]
            means = curve.kl()
            share = CHECK_EPS * curve.site.elements / total
            yield curve.site, (curve.formats[int(np.abs(np.log(np.maximum(means, 1e-300) / share)).argmin())],)
