"""Measuring a subject: the sweep, the exact estimator beside it, and the file that they fill."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from natprec.config import QuantizeConfig
from natprec.data.seen import pieces_of
from natprec.errors import InputError
from natprec.measurement.curves import Curve
from natprec.measurement.exact import exact_curves
from natprec.measurement.left_out import left_out
from natprec.measurement.measurement import Header, Measurement
from natprec.measurement.resume import SweepState, load_state, save_state
from natprec.measurement.sharding import Sharding
from natprec.measurement.spot_check import not_believed, spot_check
from natprec.measurement.subject import Subject
from natprec.measurement.sweep import sweep, sweep_batches
from natprec.models.activation_sites import activation_formats
from natprec.models.devices import device_name
from natprec.models.routing import MIN_TOKENS
from natprec.models.weight_sites import uneven
from natprec.roundings import rounding_named
from natprec.tasks import Samples
from natprec.utils.memory import keep_freed
from natprec.utils.progress import Stages

DIFFERENTIATED = 2
"""Of a kind of text one in so many sequences also goes back, if there are `MANY`; GPTQ is fitted to the others."""

MANY = 16


def measure(
    subject: Subject,
    samples: Samples,
    config: QuantizeConfig | None = None,
    *,
    parts: int = 1,
    data: str = "given tokens",
    text_digest: str | None = None,
    stages: Stages | None = None,
    state_file: Path | None = None,
    resume: bool = False,
    **options: Any,
) -> Measurement:
    """Forward distortion and gradient distortion of every site under every candidate format.

    The processes of `subject.segmented.workers` call this with the same arguments and share the work; process 0 writes
    the state.

    Args:
        samples: of the calibration text.
        config: the options. Of `rounding`: where it compensates for errors, what GPTQ leaves is measured too, which
            plans may then suppose; 'rtn': half the time. `transforms` 'rotate' is of a subject that was rotated.
        parts: kinds of text in `samples`, equal and one after the other; a site costs what it costs on
            the kind where it costs most.
        data: what the text is called; `text_digest`: of its file, see `natprec.data.seen`.
        state_file: where progress is kept, so that `resume` can go on from it; removed at the end.
        options: where there is no `config`, those of it that `natprec measure` takes, by name.
    Raises:
        InputError: unknown engine or estimator, a group size that divides a site not, a state of
            another measurement; fewer batches than processes.
    """
    config = config or QuantizeConfig.of("measure", subject.name, options)
    config.check_each()
    if config.transforms == "rotate" and subject.rotation is None:
        raise InputError(f"transforms 'rotate': {subject.name!r} was not rotated; measure subject.rotated(seed)")
    if len(samples) % parts:
        raise InputError(f"{len(samples)} sequences cannot be {parts} equal parts; give a multiple of {parts}")
    if subject.segmented.weights.whole:  # what is read from disk, block by block, is to go back to the system
        keep_freed()
    workers = subject.segmented.workers
    own, others = shared_out(samples, parts, subject.segmented.routed, config.rounding)
    sharding = Sharding.of(own.batches(subject.segmented.together), workers)
    profile = config.profile
    formats = subject.candidates(profile, config.group_size, config.sites)
    stages = stages or Stages(quiet=True)
    uses = [site for site in subject.sites if site.name not in subject.left]
    if said := uneven(uses, formats, None if profile.container == "gguf" else config.group_size):
        stages.note(said)
    for sentence in left_out(subject, profile, formats):
        stages.note(sentence)
    header = header_of(subject, samples, config, parts, data, text_digest)
    fingerprint = {
        **header.identity(fmt for several in formats.values() for fmt in several),
        "differentiated": len(own),
        "full_range": profile.full_range,
    }
    state = load_state(state_file, fingerprint) if resume and state_file else None

    def save(now: SweepState) -> None:
        if state_file is not None and workers.first:
            save_state(state_file, fingerprint, now)

    state = state or SweepState(len(subject.segmented.blocks), None, {}, {})
    begun = json.dumps([fingerprint, state.segment, sorted(state.curves), sorted(state.exact)])
    workers.refuse_difference("model, text, options or state", begun.encode())
    flows = subject.activations if config.sites == "all" else []
    if flows and not any(site.kind == "key" for site in flows) and subject.task.generates:
        stages.note("keys and values were not found: this model does not call transformers' attention interface")
    compensates = rounding_named(config.rounding).compensates
    fitted = others if compensates else None
    steps = sweep_batches(subject.segmented, sharding.take(own), state.segment)
    if fitted is not None:
        fitting = sum(segment <= state.segment for segment in {site.segment for site in subject.sites if site.gptq})
        forward = 1 + state.segment if subject.segmented.blocks else 0
        steps += len(workers.share(len(fitted.batches()))) * (forward + fitting)
    with stages.stage("measure", steps) as advance:
        curves = sweep(
            subject.segmented,
            subject.sites,
            formats,
            own,
            scale_dtype=subject.storage_dtype,
            seed=config.seed,
            rounding=config.rounding,
            parts=parts,
            gauges=subject.gauges if compensates and config.transforms != "none" and not profile.leaves else None,
            activations={
                site: activation_formats(site, config.group_size, profile.full_range, profile) for site in flows
            },
            advance=advance,
            state=state,
            save=save,
            scratch=state_file.absolute().parent if state_file else None,
            sharding=sharding,
            fitted=fitted,
        )
    unreached = [name for name, curve in curves.items() if not curve.formats and formats.get(name) != ()]
    if unreached:
        stages.note(
            f"{len(unreached)} of {len(curves)} sites stay at 16 bits, as no sample reached them or their weights are "
            f"read without a call of their modules: {unreached[0]} …"
        )
    idle = [name for name, curve in curves.items() if curve.formats and not curve.energy.any()]
    if idle:
        stages.note(f"{len(idle)} of {len(curves)} sites have no effect here, so they stay wide: {idle[0]} …")
    few = [curve for curve in curves.values() if curve.few]
    if few:
        experts = sum(curve.tokens is not None for curve in curves.values())
        stages.note(
            f"{len(few)} of {experts} weights of experts saw fewer than {MIN_TOKENS} tokens, so they cost what the "
            f"others of their layer do: {few[0].site.name} saw {few[0].tokens} …; more --tokens reach more"
        )
    if config.estimator == "exact":
        exact = _exactly(subject, own, state, save, stages, sharding, list(curves))
        curves = {name: exact[name] for name in curves}
    measurement = Measurement(header, curves, pieces_of(samples))
    if config.estimator == "fisher":
        measurement = spot_check(subject, measurement, samples, stages)
        far = not_believed(measurement)
        if far:
            row = next(row for row in measurement.header.checks if row[0] == far[0])
            stages.note(
                f"the Fisher estimate is far from the exact value at {len(far)} of the checked sites, so these are "
                f"measured exactly: {row[0]} as {row[1]} costs {row[3]:.3g}, not {row[2]:.3g} …; "
                "--estimator exact measures all sites so"
            )
            exact = _exactly(subject, own, state, lambda now: None, stages, sharding, far)
            measurement = replace(measurement, curves={name: exact[name] for name in curves})
    return replace(measurement, header=replace(measurement.header, seconds=dict(stages.seconds)))


def header_of(
    subject: Subject, samples: Samples, config: QuantizeConfig, parts: int, data: str, text_digest: str | None = None
) -> Header:
    """The header of a measurement of this subject on these samples, before it is made."""
    return Header(
        model=subject.name,
        model_digest=subject.digest,
        data=data,
        data_digest=samples.digest,
        text_digest=text_digest,
        sequences=len(samples),
        length=samples.length,
        parts=parts,
        engine=config.engine,
        storage_dtype=str(subject.storage_dtype).removeprefix("torch."),
        other_bytes=subject.other_bytes,
        carried_bytes=subject.carried_bytes,
        distortion=subject.distortion.name,
        rotation=subject.rotation,
        gpu=config.profile.gpu,
        untested=config.untested,
        portable=config.portable,
        untied=subject.untied,
        device=device_name(str(next(subject.model.parameters()).device)),
        revision=subject.revision,
        source_bytes=subject.source_bytes,
        source_format=subject.source_format,
        products=products_of(subject, config.sites),
        **config.entering(),
    )


def shared_out(samples: Samples, parts: int, routed: bool, rounding: str = "gptq") -> tuple[Samples, Samples | None]:
    """The samples of each part that also go back, and those that do not, if any: see `goes_back`."""
    back = goes_back(len(samples), parts, routed, rounding)
    return (samples, None) if back.all() else (samples[back], samples[~back])


def goes_back(count: int, parts: int, routed: bool, rounding: str) -> Tensor:
    """Which of so many samples, in equal parts, also go back.

    An expert sees few of the tokens as it is, so that of a model with experts (`routed`) all go back; as they do before
    a rounding that takes so long that they hardly add to it.

    Returns:
        (count,), bool.
    """
    each = count // parts
    if each < MANY or routed or not rounding_named(rounding).quick:
        return torch.ones(count, dtype=torch.bool)
    return (torch.arange(each) % DIFFERENTIATED == DIFFERENTIATED - 1).repeat(parts)


def products_of(subject: Subject, sites: str) -> str:
    """The dtype of the sweep's matrix products: see `natprec.utils.matmul`."""
    # the rounding of activations is not to be measured on a grid that bfloat16 gives them
    return str(torch.float32 if sites == "all" else subject.segmented.products).removeprefix("torch.")


def _exactly(
    subject: Subject,
    samples: Samples,
    state: SweepState,
    save: Any,
    stages: Stages,
    sharding: Sharding,
    names: Collection[str],
) -> dict[str, Curve]:
    """Replace the forward curves of these sites by exact ones, site by site."""
    known = [curve for curve in state.curves.values() if curve.formats and not curve.few]
    left = [curve for curve in known if curve.site.name in names and curve.site.name not in state.exact]
    own = sharding.take(samples)
    steps = sum(len(curve.formats) for curve in left) * len(own.batches(subject.segmented.together))
    sharding.workers.stage = "exact"
    with stages.stage("measure exactly", steps) as advance:
        wanted = [(curve.site, curve.formats) for curve in left]
        for site, found in exact_curves(subject.segmented, wanted, own, subject.storage_dtype, advance):
            values = sharding.gather(torch.from_numpy(found)).numpy()
            curve = state.curves[site.name]
            parts, pool_count, formats = curve.forward.shape
            pooled = values.reshape(parts, pool_count, -1, formats).mean(2)
            state.curves[site.name] = replace(curve, forward=pooled, alignment=np.ones(formats))
            state.exact.add(site.name)
            save(state)
    return state.curves
