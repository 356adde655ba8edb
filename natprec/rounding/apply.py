"""Rounding a whole model to a plan, stage by stage.

A text goes along, through each stage after it has been rounded, so that a rounding that gathers something of it lets
later blocks make up for the errors of earlier ones. How each one rounds is in the file of its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from natprec.progress import Advance
from natprec.quantizers import QuantizedTensor
from natprec.rounding.moments import Gradients
from natprec.rounding.rounder import Run, rounder_named
from natprec.rounding.stage import StageRounder
from natprec.roundings import rounding_named
from natprec.sites import Site
from natprec.solver import Plan
from natprec.staged.batches import batch_count, batches
from natprec.staged.blocks import StagedModel
from natprec.staged.passage import Passage
from natprec.subject import Subject
from natprec.transforms import Gauge


def apply_plan(
    staged: StagedModel,
    sites: list[Site],
    plan: Plan,
    ids: Tensor | None,
    rounding: str,
    storage_dtype: torch.dtype,
    advance: Advance = lambda stage: None,
    gauges: Mapping[str, Gauge] | None = None,
    seed: int = 0,
) -> dict[str, QuantizedTensor]:
    """Round every site of the plan; the model's weights become those that an engine reconstructs.

    Weights are replaced, not overwritten: `snapshot` and `restore` bring the original back.

    Args:
        ids: (sequences, time) calibration tokens; unused by round-to-nearest.
        storage_dtype: of scales, and of everything that is not quantized.
        advance: called once per batch of forward work.
        gauges: unit → where its inputs can be rescaled; needed for units that the plan rescales, except by 'rtn'.
        seed: of what a rounding draws: only 'learned' does.
    Returns:
        Site name → codes and scales.
    Raises:
        ValueError: `gauges` are needed.
    """
    passage = None if ids is None else Passage(staged, ids)
    result: dict[str, QuantizedTensor] = {}
    for _, codes in rounded_stages(staged, sites, plan, passage, rounding, storage_dtype, advance, gauges, seed):
        result |= codes
    return {site.name: result[site.name] for site in sites if site.name in result}


@torch.no_grad()
def rounded_stages(
    staged: StagedModel,
    sites: list[Site],
    plan: Plan,
    passage: Passage | None,
    rounding: str,
    storage_dtype: torch.dtype,
    advance: Advance = lambda stage: None,
    gauges: Mapping[str, Gauge] | None = None,
    seed: int = 0,
) -> Iterator[tuple[int, dict[str, QuantizedTensor]]]:
    """Round one stage after another; after each: its number, and the codes of its sites.

    While they are yielded the stage's weights are in memory and are those that an engine reconstructs.

    Args:
        passage: the calibration text before the prefix, if not rounded to nearest; stages that it had passed in an
            earlier run are left out. The others are as for `apply_plan`.
    """
    needs = rounding_named(rounding).needs
    work = StageRounder(staged, sites, plan, storage_dtype, gauges)
    text = None if needs == "nothing" else passage
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


def needed_gauges(subject: Subject, plan: Plan) -> Mapping[str, Gauge] | None:
    """The subject's, which are searched for when first asked for, if the plan rescales anything."""
    return subject.gauges if any(choice.scaled for choice in plan.sites.values()) else None


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """The model's present weights, by reference."""
    return {name: parameter.data for name, parameter in model.named_parameters()}


def restore(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put back what `snapshot` returned."""
    for name, parameter in model.named_parameters():
        parameter.data = weights[name]


def apply_batches(staged: StagedModel, rounding: str, sequences: int, length: int) -> int:
    """At most how many times `apply_plan` calls `advance`; a rounding that needs no text does not."""
    needs = rounding_named(rounding).needs
    steps = 0 if needs == "nothing" else (2 * len(staged.blocks) + 1) * len(batches(sequences, length))
    steps += batch_count(staged, sequences, length) if needs == "gradients" else 0
    return steps + rounder_named(rounding).more_batches(staged, sequences, length)
