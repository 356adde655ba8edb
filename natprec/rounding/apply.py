"""Rounding a whole model to a plan, a segment at a time.

A text goes along, through each segment after it has been rounded, so that a rounding that gathers something of it lets
later blocks make up for the errors of earlier ones. How each one rounds is in the file of its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from natprec.measurement.subject import Subject
from natprec.measurement.sweep import segment_label, sweep_batches
from natprec.models.hidden_states import HiddenStates, state_key
from natprec.models.segments import SegmentedModel
from natprec.models.shares import Share
from natprec.models.weight_sites import Site
from natprec.quantizers import QuantizedTensor
from natprec.rounding.moments import Gradients
from natprec.rounding.rounder import Run, rounder_named
from natprec.rounding.segment import SegmentRounder
from natprec.roundings import rounding_named
from natprec.solver import Plan
from natprec.tasks import Samples
from natprec.transforms import Gauge
from natprec.utils.progress import Advance

STATE = "text.safetensors"
"""File of what the calibration text has become."""

STAGE = "round"
"""Under which what processes send is counted: before the prefix as such, then with the name of each segment."""


def rounded_segments(
    subject: Subject,
    plan: Plan,
    samples: Samples | None,
    rounding: str,
    resume_folder: Path | None = None,
    advance: Advance = lambda step: None,
    seed: int = 0,
    unrounded: dict[str, Tensor] | None = None,
    stage: str = STAGE,
) -> Iterator[tuple[int, dict[str, QuantizedTensor]]]:
    """Round one segment of a subject after another; after each: its number, and the codes of its sites.

    While they are yielded the segment is held, and its weights are those that an engine reconstructs. Several processes
    share the work, and all of them yield all of it.

    Args:
        samples: of the calibration text; unused by roundings that need none.
        resume_folder: holds how far the text has come, once what was yielded before has been taken; with the same
            model, plan and text a later call goes on there.
        advance: called once per batch of forward work.
        seed: of what a rounding draws: only 'learned' does.
        unrounded: gets the weights that were rounded by what their inputs are, channels rescaled, by site.
        stage: under which what processes send is counted.
    """
    states = None
    if samples is not None:
        file, key = None, ""
        if resume_folder is not None:
            file, products = resume_folder / STATE, str(subject.segmented.products)
            key = state_key(subject.digest, plan.content(), rounding, samples.digest, products, str(seed))
        share = shared(subject.segmented, rounding, samples)
        share.refuse_idle()
        states = HiddenStates(subject.segmented, samples, file, key, share=share)
    workers, reached = subject.segmented.workers, None if states is None else states.reached
    workers.stage = stage
    workers.refuse_difference("plan, text or state", state_key(subject.digest, plan.content(), str(reached)).encode())
    gauges = subject.gauges if any(choice.scaled for choice in plan.sites.values()) else None
    dtype = subject.storage_dtype
    for segment, codes in rounded_in_order(
        subject.segmented, subject.sites, plan, states, rounding, dtype, advance, gauges, seed, unrounded, stage
    ):
        yield segment, codes
        if resume_folder is not None and states is not None and states.segment is not None and segment >= 0:
            states.keep()


@torch.no_grad()
def rounded_in_order(
    segmented: SegmentedModel,
    sites: list[Site],
    plan: Plan,
    states: HiddenStates | None,
    rounding: str,
    storage_dtype: torch.dtype,
    advance: Advance = lambda step: None,
    gauges: Mapping[str, Gauge] | None = None,
    seed: int = 0,
    unrounded: dict[str, Tensor] | None = None,
    stage: str = STAGE,
) -> Iterator[tuple[int, dict[str, QuantizedTensor]]]:
    """The same of a model's parts.

    Args:
        states: the calibration text before the prefix; segments that it had passed in an earlier run are left out.
        storage_dtype: of scales, and of everything that is not quantized.
        gauges: fused group → where its inputs can be rescaled; needed for fused groups that the plan rescales, except
            by 'rtn'.
    Raises:
        ValueError: `gauges` are needed.
    """
    needs = rounding_named(rounding).needs
    work = SegmentRounder(segmented, sites, plan, storage_dtype, gauges)
    work.unrounded = unrounded
    text = None if needs == "nothing" else states
    assert needs == "nothing" or text is not None
    gradients, lookups, blocks = None, lookups_in(sites, plan), needs == "gradients"
    if text is not None and (blocks or lookups):
        gradients = Gradients(segmented, text, advance, lookups=lookups, blocks=blocks)
    rounder = rounder_named(rounding)(Run(segmented, work, text, gradients, seed, advance))
    for segment in segmented.segments:
        if text is not None and text.has_passed(segment):
            continue
        segmented.workers.stage = f"{stage} {segment_label(segmented, segment)}"
        with segmented.hold(segment):
            rounder.watch(segment)
            work.store_the_rest(segmented.parameters(segment))
            codes = rounder.round(segment)
            if text is not None and segment < len(segmented.blocks):
                with segmented.gathering():
                    text.through(segment, advance)
            yield segment, {site.name: codes[site.name] for site in work.sites if site.segment == segment}


def apply_batches(segmented: SegmentedModel, rounding: str, samples: Samples, lookups: bool = False) -> int:
    """At most how many times `rounded_segments` calls `advance`; a rounding that needs no text does not.

    Args:
        lookups: whether embeddings are rounded by their gradients: see `lookups_in`.
    """
    needs = rounding_named(rounding).needs
    samples = shared(segmented, rounding, samples).take(samples)
    steps = 0 if needs == "nothing" else (2 * len(segmented.blocks) + 1) * len(samples.batches())
    steps += sweep_batches(segmented, samples) if needs == "gradients" or (lookups and needs != "nothing") else 0
    return steps + rounder_named(rounding).more_batches(segmented, samples)


def lookups_in(sites: Sequence[Site], plan: Plan) -> list[Site]:
    """The embeddings of a plan that are rounded by the gradients at what they put out."""
    formats = {site: plan.sites[site.name].format for site in sites if site.looked_up}
    return [site for site, fmt in formats.items() if fmt is not None and site.compensates(fmt)]


def shared(segmented: SegmentedModel, rounding: str, samples: Samples) -> Share:
    """How the processes share out the text of a rounding."""
    return Share.of(samples, segmented.workers, rounder_named(rounding).divides)
