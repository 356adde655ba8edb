"""A measurement that knows what learned rounding leaves, where plans for it are asked for."""

from __future__ import annotations

from natprec.config import QuantizeConfig
from natprec.measurement import Measurement
from natprec.measurement.curves import LEARNED
from natprec.measurement.subject import Subject
from natprec.rounding.pilot import WAYS, left_by_learning, pilot_batches, pilot_blocks
from natprec.rounding.rounder import Pace, rounder_named
from natprec.solver import Plan
from natprec.tasks import Samples
from natprec.utils.progress import Stages

STAGE = "what learning leaves"


def asks_for_pilot(rounding: str, subject: Subject) -> bool:
    """Whether plans are for learned rounding, of a model in memory."""
    return rounding == LEARNED and subject.segmented.weights.whole


def pilot_seconds(subject: Subject, pace: Pace) -> float:
    """About what trying takes: all of the text goes through the model both ways, and the pilot's blocks are learned."""
    blocks = len(subject.segmented.blocks)
    part = len(pilot_blocks(blocks)) / max(1, blocks)
    passing, learning = (rounder_named(name).seconds(pace) for name in WAYS)
    return part * learning + passing


def with_pilot(
    config: QuantizeConfig, subject: Subject, measurement: Measurement, plan: Plan, samples: Samples, stages: Stages
) -> Measurement:
    """The measurement itself where nothing was found, or was to be found.

    A model whose weights are on disk has no pilot, which holds two models in memory: there the plan supposes what GPTQ
    leaves, and the promise is kept with room to spare.

    Args:
        plan: for what GPTQ leaves; its formats are tried.
        samples: that the measurement was made on.
    """
    if measurement.header.learned is not None or not asks_for_pilot(config.rounding, subject):
        return measurement
    own = subject.with_head(plan.untied)
    try:
        with stages.stage(STAGE, pilot_batches(own, samples)) as advance:
            found = left_by_learning(own, plan, samples, measurement.header.seed, advance)
    finally:
        own.with_head(bool(measurement.header.untied))
    if found is None:
        stages.note("what learned rounding leaves could not be tried: the plan supposes what GPTQ leaves")
        return measurement
    share, low, high = found
    stages.note(f"learned rounding leaves {share:.2f} of what GPTQ leaves (95 %: {low:.2f} to {high:.2f})")
    return measurement.with_learned(found)
