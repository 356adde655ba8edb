"""Rounding a whole model to a plan, stage by stage.

GPTQ and YAQA take each block's second moments from what the already rounded prefix produces, so that later
blocks make up for the errors of earlier ones. Sites without a matrix-product input of their own in
the stage (embeddings), and experts that no token reached, are rounded to nearest, those without gradients of their own
outputs by GPTQ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from natprec.progress import Advance
from natprec.quantizers import QuantizedTensor, quantize
from natprec.quantizers.gptq import InputOrder, gptq
from natprec.quantizers.roundings import refuse_unknown_rounding
from natprec.quantizers.yaqa import output_order, yaqa
from natprec.rounding.moments import Gradients, stage_moments
from natprec.sites import Site, site_weight
from natprec.solver import Plan
from natprec.staged.batches import batch_count, batches
from natprec.staged.blocks import StagedModel
from natprec.staged.passage import Passage
from natprec.subject import Subject
from natprec.transforms import Gauge, channel_scales, fold


def apply_plan(
    staged: StagedModel,
    sites: list[Site],
    plan: Plan,
    ids: Tensor | None,
    rounding: str,
    storage_dtype: torch.dtype,
    advance: Advance = lambda stage: None,
    gauges: Mapping[str, Gauge] | None = None,
) -> dict[str, QuantizedTensor]:
    """Round every site of the plan; the model's weights become those that an engine reconstructs.

    Weights are replaced, not overwritten: `snapshot` and `restore` bring the original back.

    Args:
        ids: (sequences, time) calibration tokens; unused by round-to-nearest.
        storage_dtype: of scales, and of everything that is not quantized.
        advance: called once per batch of forward work.
        gauges: unit → where its inputs can be rescaled; needed for units that the plan rescales, except by 'rtn'.
    Returns:
        Site name → codes and scales.
    Raises:
        ValueError: `gauges` are needed.
    """
    passage = None if ids is None else Passage(staged, ids)
    result: dict[str, QuantizedTensor] = {}
    for _, codes in rounded_stages(staged, sites, plan, passage, rounding, storage_dtype, advance, gauges):
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
) -> Iterator[tuple[int, dict[str, QuantizedTensor]]]:
    """Round one stage after another; after each: its number, and the codes of its sites.

    While they are yielded the stage's weights are in memory and are those that an engine reconstructs.

    Args:
        passage: the calibration text before the prefix, if not rounded to nearest; stages that it had passed in an
            earlier run are left out. The others are as for `apply_plan`.
    """
    refuse_unknown_rounding(rounding)
    wanted = [site for site in sites if plan.sites[site.name].format is not None]
    quantized = {id(site_weight(staged.model, site)) for site in wanted}
    compensated = None if rounding == "rtn" else passage
    assert rounding == "rtn" or passage is not None
    gradients = Gradients(staged, passage, advance) if rounding == "yaqa" and passage is not None else None

    def store_the_rest(parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            if id(parameter) not in quantized:
                parameter.data = parameter.data.to(storage_dtype).to(parameter.dtype)

    def put(site: Site, inputs: InputOrder | None, errors: Tensor | None = None) -> QuantizedTensor:
        fmt = plan.sites[site.name].format
        weight = site_weight(staged.model, site)
        assert fmt is not None
        if inputs is None:
            value = quantize(weight, fmt, storage_dtype)
        elif errors is None:
            value = gptq(weight, inputs, fmt, storage_dtype)
        else:
            value = yaqa(weight, inputs, output_order(errors), fmt, storage_dtype)
        weight.data = value.dequantize().to(weight.dtype)
        return value

    for stage in staged.stages:
        if compensated is not None and compensated.has_passed(stage):
            continue
        with staged.hold(stage):
            store_the_rest(staged.parameters(stage))
            codes: dict[str, QuantizedTensor] = {}
            for site in wanted:
                again = not staged.weights.whole and stage in {staged.stage_of(use) for use in site.uses}
                if (site.stage == stage or again) and (compensated is None or not site.gptq):
                    codes[site.name] = put(site, None)
            if compensated is not None:
                members = [site for site in wanted if site.gptq and site.stage == stage]
                moments = stage_moments(staged, members, compensated, stage, gradients, advance)
                inputs = {unit: InputOrder.of(moment) for unit, moment in moments.inputs.items()}
                scaled = {site.unit: None for site in members if plan.sites[site.name].scaled and site.unit in inputs}
                for unit in scaled:
                    if gauges is None:
                        raise ValueError(f"the plan rescales {unit!r}: give the subject's gauges")
                    fmt = plan.sites[unit].format
                    weights = [site_weight(staged.model, site) for site in members if site.unit == unit]
                    assert fmt is not None
                    scale = channel_scales(weights, inputs[unit].cost, fmt, gauges[unit])
                    scale = fold(staged.model, gauges[unit], scale, storage_dtype)
                    inputs[unit] = _rescaled(gauges[unit], weights, inputs[unit], scale)
                    moments.rescale_outputs(gauges[unit].producer, scale)
                    store_the_rest(staged.model.get_submodule(gauges[unit].producer).parameters())
                codes |= {
                    site.name: put(site, inputs.get(site.unit), moments.outputs.get(site.name)) for site in members
                }
                if stage < len(staged.blocks):
                    with staged.gathering():
                        compensated.through(stage, advance)
            yield stage, {site.name: codes[site.name] for site in wanted if site.stage == stage}


def _rescaled(gauge: Gauge, weights: list[Tensor], inputs: InputOrder, scale: Tensor) -> InputOrder:
    """Multiply the columns of a unit by the scales of its channels; returns what its inputs are then."""
    columns = scale[gauge.channels(weights[0].shape[1]).to(scale.device)]
    for weight in weights:
        weight.data = weight.data * columns
    return inputs.scaled(columns)


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
    """At most how many times `apply_plan` calls `advance`; rounding to nearest does not."""
    rounds = (2 * len(staged.blocks) + 1) * len(batches(sequences, length))
    return {"rtn": 0, "gptq": rounds, "yaqa": rounds + batch_count(staged, sequences, length)}[rounding]
