"""Rounding a whole model to a plan, a segment at a time.

A text goes along, through each stage after it has been rounded, so that a rounding that gathers something of it lets
later blocks make up for the errors of earlier ones. How each one rounds is in the file of its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from natprec.measurement.subject import Subject
from natprec.measurement.sweep import sweep_batches
from natprec.models.hidden_states import HiddenStates, state_key
from natprec.models.segments import StagedModel
from natprec.models.weight_sites import Site
from natprec.quantizers import QuantizedTensor
from natprec.rounding.moments import Gradients
from natprec.rounding.rounder import Run, rounder_named
from natprec.rounding.segment import StageRounder
from natprec.roundings import rounding_named
from natprec.solver import Plan
from natprec.tasks import Samples
from natprec.transforms import Gauge
from natprec.utils.progress import Advance

STATE = "text.safetensors"
"""File of what the calibration text has become."""


def rounded_segments(
    subject: Subject,
    plan: Plan,
    samples: Samples | None,
    rounding: str,
    kept: Path | None = None,
    advance: Advance = lambda stage: None,
    seed: int = 0,
) -> Iterator[tuple[int, dict[str, QuantizedTensor]]]:
    """Round one segment of a subject after another; after each: its stage, and the codes of its sites.

    While they are yielded the segment is held, and its weights are those that an engine reconstructs.

    Args:
        samples: of the calibration text; unused by roundings that need none.
        kept: folder that holds how far the text has come, once what was yielded before has been taken; with the same
            model, plan and text a later call goes on there.
        advance: called once per batch of forward work.
        seed: of what a rounding draws: only 'learned' does.
    """
    states = None
    if samples is not None:
        file, key = None, ""
        if kept is not None:
            file, plan_text = kept / STATE, json.dumps(plan.to_json(), sort_keys=True)
            products = str(subject.staged.products)
            key = state_key(subject.digest, plan_text, rounding, samples.digest, products, str(seed))
        states = HiddenStates(subject.staged, samples, file, key)
    gauges = subject.gauges if any(choice.scaled for choice in plan.sites.values()) else None
    dtype = subject.storage_dtype
    for stage, codes in rounded_stages(
        subject.staged, subject.sites, plan, states, rounding, dtype, advance, gauges, seed
    ):
        yield stage, codes
        if kept is not None and states is not None and states.stage is not None and stage >= 0:
            states.keep()


@torch.no_grad()
def rounded_stages(
    staged: StagedModel,
    sites: list[Site],
    plan: Plan,
    states: HiddenStates | None,
    rounding: str,
    storage_dtype: torch.dtype,
    advance: Advance = lambda stage: None,
    gauges: Mapping[str, Gauge] | None = None,
    seed: int = 0,
) -> Iterator[tuple[int, dict[str, QuantizedTensor]]]:
    """The same of a model's parts.

    Args:
        states: the calibration text before the prefix; stages that it had passed in an earlier run are left out.
        storage_dtype: of scales, and of everything that is not quantized.
        gauges: unit → where its inputs can be rescaled; needed for units that the plan rescales, except by 'rtn'.
    Raises:
        ValueError: `gauges` are needed.
    """
    needs = rounding_named(rounding).needs
    work = StageRounder(staged, sites, plan, storage_dtype, gauges)
    text = None if needs == "nothing" else states
    assert needs == "nothing" or text is not None
    gradients = Gradients(staged, text, advance) if needs == "gradients" and text is not None else None
    rounder = rounder_named(rounding)(Run(staged, work, text, gradients, seed, advance))
    for stage in staged.stages:
        if text is not None and text.has_passed(stage):
            continue
        with staged.hold(stage):
            rounder.watch(stage)
            work.store_the_rest(staged.parameters(stage))
            codes = rounder.round(stage)
            if text is not None and stage < len(staged.blocks):
                with staged.gathering():
                    text.through(stage, advance)
            yield stage, {site.name: codes[site.name] for site in work.sites if site.stage == stage}


def apply_batches(staged: StagedModel, rounding: str, samples: Samples) -> int:
    """At most how many times `rounded_segments` calls `advance`; a rounding that needs no text does not."""
    needs = rounding_named(rounding).needs
    steps = 0 if needs == "nothing" else (2 * len(staged.blocks) + 1) * len(samples.batches())
    steps += sweep_batches(staged, samples) if needs == "gradients" else 0
    return steps + rounder_named(rounding).more_batches(staged, samples)
