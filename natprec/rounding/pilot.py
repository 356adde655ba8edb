"""What learned rounding leaves of GPTQ's distortion, measured on a few blocks before the whole model is rounded.

A plan supposes what GPTQ leaves, site by site. Learned rounding leaves less, but how much shows only at a block that
has been learned, and every step of learning costs a forward and a backward pass. So a few blocks of a plan are rounded
both ways, one after the other, for learning also makes up for what earlier blocks have done. Three of four samples are
fitted, and the fourth says what each way costs at the model's output.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from natprec.measurement.gptq_ratio import JUDGING
from natprec.measurement.subject import Subject
from natprec.models.weights import present_values, put_in
from natprec.rounding.apply import apply_batches, rounded_segments
from natprec.rounding.rounder import rounder_named
from natprec.rounding.teacher import HeldBack
from natprec.solver import Plan
from natprec.tasks import Samples
from natprec.utils.progress import Advance
from natprec.utils.statistics import bootstrap_ratio

STAGE = "pilot"
"""Under which what processes send is counted."""

WAYS = ("gptq", "learned")
"""In which its blocks are rounded, one after the other."""

BLOCKS = 4
"""Of the pilot, in the middle of the model."""


def pilot_blocks(count: int) -> range:
    """The blocks that are tried, of so many: at most `BLOCKS`, and at most half of them.

    >>> pilot_blocks(30), pilot_blocks(4), pilot_blocks(1), pilot_blocks(0)
    (range(13, 17), range(1, 3), range(0, 1), range(0, 0))
    """
    several = min(BLOCKS, -(-count // 2))
    return range((count - several) // 2, (count + several) // 2)


def left_by_learning(
    subject: Subject, plan: Plan, samples: Samples, seed: int, advance: Advance = lambda step: None
) -> tuple[float, float, float] | None:
    """The distortion of the pilot's blocks when they are learned over that when they are rounded by GPTQ.

    Several processes call this; all return the same.

    Args:
        subject: in memory; it has its weights again afterwards.
        samples: that the plan's measurement was made on.
        advance: called once per batch of work, at most `pilot_batches` times.
    Returns:
        The ratio, and its 95 % interval over samples, in pairs; None where there is no block with codes, too little
        text, or no distortion.
    """
    segmented = subject.segmented
    chosen = pilot_blocks(len(segmented.blocks))
    tried = {site.name for site in subject.sites if site.segment in chosen and site.learns}
    fitting, judging = _parts(samples)
    pilot = replace(
        plan, inputs={}, cache=None,
        sites={
            name: choice if name in tried else replace(choice, format=None, scaled=False)
            for name, choice in plan.sites.items()
        },
    )  # fmt: skip
    if not judging or len(fitting.batches()) < segmented.workers.size or not pilot.quantized:
        return None
    found = []
    with segmented.weights.hold(subject.model.parameters()):
        original = present_values(subject.model)
        held_back = HeldBack(segmented, original, judging)
        for rounding in WAYS:
            with put_in(subject.model, original):
                rounded = rounded_segments(subject, pilot, fitting, rounding, None, advance, seed, stage=STAGE)
                for segment, _ in rounded:
                    if segment == chosen[-1]:
                        break
                found.append(held_back.by_sample())
    gptq, learned = found
    if not gptq.mean() > 0 or not np.isfinite(learned).all():
        return None
    return float(learned.mean() / gptq.mean()), *bootstrap_ratio(learned, gptq, seed)


def pilot_batches(subject: Subject, samples: Samples) -> int:
    """At most how often `left_by_learning` calls `advance`."""
    segmented, (fitting, _) = subject.segmented, _parts(samples)
    passes = sum(apply_batches(segmented, rounding, fitting) for rounding in WAYS)
    every = rounder_named("learned").more_batches(segmented, fitting)
    blocks = len(segmented.blocks)
    return passes - every + every * len(pilot_blocks(blocks)) // max(1, blocks)


def _parts(samples: Samples) -> tuple[Samples, Samples]:
    """Those that are fitted, and those that judge."""
    judges = torch.arange(len(samples), device=samples.device) % JUDGING == JUDGING - 1
    return samples[~judges], samples[judges]
