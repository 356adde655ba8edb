"""Rounding a whole model to a plan, stage by stage.

GPTQ takes each block's Hessians from inputs that the already rounded prefix produces, so that later
blocks make up for the errors of earlier ones. Sites without a matrix-product input of their own in
the stage (embeddings), and experts that no token reached, are rounded to nearest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from natprec.blocks import StagedModel
from natprec.errors import unknown
from natprec.formats import NumberFormat
from natprec.hooks import attached
from natprec.measurement.sweep import batches
from natprec.passage import Passage
from natprec.progress import Advance
from natprec.quantizers import QuantizedTensor, quantize
from natprec.quantizers.gptq import InputOrder, gptq
from natprec.sites import Site, site_weight
from natprec.solver import Plan
from natprec.subject import Subject
from natprec.transforms import Gauge, channel_scales, fold

Rounding = Literal["rtn", "gptq"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)


def refuse_unknown_rounding(name: str) -> None:
    """Raises InputError with the nearest name."""
    if name not in ROUNDINGS:
        raise unknown("rounding", name, ROUNDINGS)


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
        ids: (sequences, time) calibration tokens for GPTQ; unused by round-to-nearest.
        storage_dtype: of scales, and of everything that is not quantized.
        advance: called once per batch of forward work.
        gauges: unit → where its inputs can be rescaled; needed for units that the plan rescales, with GPTQ.
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
        passage: the calibration text before the prefix, for GPTQ; stages that it had passed in an earlier run are
            left out. The others are as for `apply_plan`.
    """
    refuse_unknown_rounding(rounding)
    wanted = [site for site in sites if plan.sites[site.name].format is not None]
    quantized = {id(site_weight(staged.model, site)) for site in wanted}
    compensated = passage if rounding == "gptq" else None
    assert rounding == "rtn" or passage is not None

    def store_the_rest(parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            if id(parameter) not in quantized:
                parameter.data = parameter.data.to(storage_dtype).to(parameter.dtype)

    def put(site: Site, inputs: InputOrder | None) -> QuantizedTensor:
        fmt = plan.sites[site.name].format
        weight = site_weight(staged.model, site)
        assert fmt is not None
        value = quantize(weight, fmt, storage_dtype) if inputs is None else gptq(weight, inputs, fmt, storage_dtype)
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
                inputs = _inputs(staged.model, members, compensated, stage, advance)
                scaled = {site.unit: None for site in members if plan.sites[site.name].scaled and site.unit in inputs}
                for unit in scaled:
                    if gauges is None:
                        raise ValueError(f"the plan rescales {unit!r}: give the subject's gauges")
                    fmt = plan.sites[unit].format
                    weights = [site_weight(staged.model, site) for site in members if site.unit == unit]
                    assert fmt is not None
                    inputs[unit] = _rescaled(staged.model, gauges[unit], weights, inputs[unit], fmt, storage_dtype)
                    store_the_rest(staged.model.get_submodule(gauges[unit].producer).parameters())
                codes |= {site.name: put(site, inputs.get(site.unit)) for site in members}
                if stage < len(staged.blocks):
                    compensated.through(stage, advance)
            yield stage, {site.name: codes[site.name] for site in wanted if site.stage == stage}


def _inputs(
    model: nn.Module, members: list[Site], passage: Passage, stage: int, advance: Advance
) -> dict[str, InputOrder]:
    """What GPTQ needs of the inputs of a stage's units, which the rounded prefix produces."""
    hessians: dict[str, Tensor] = {}
    if members:
        with _gathering(model, members, hessians):
            passage.run(stage, advance)
    return {unit: InputOrder.of(hessian) for unit, hessian in hessians.items()}


def _rescaled(
    model: nn.Module, gauge: Gauge, weights: list[Tensor], inputs: InputOrder, fmt: NumberFormat, dtype: torch.dtype
) -> InputOrder:
    """Move scales from a unit's producer to its columns; returns what its inputs are then."""
    scale = fold(model, gauge, channel_scales(weights, inputs.cost, fmt, gauge), dtype)
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


def apply_batches(staged: StagedModel, sequences: int, length: int) -> int:
    """At most how many times `apply_plan` calls `advance` with GPTQ."""
    return (2 * len(staged.blocks) + 1) * len(batches(sequences, length))


@contextlib.contextmanager
def _gathering(model: nn.Module, members: list[Site], hessians: dict[str, Tensor]) -> Iterator[None]:
    """Sum x xᵀ of each unit's input; sites of one unit share it, so its first site gathers."""

    def gather(unit: str) -> object:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs = args[0].flatten(0, -2).float()
            if unit not in hessians:
                hessians[unit] = inputs.new_zeros(inputs.shape[-1], inputs.shape[-1])
            hessians[unit].addmm_(inputs.T, inputs)

        return hook

    firsts = {site.unit: site.name for site in reversed(members)}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(gather(unit))  # type: ignore[arg-type]
        for unit, name in firsts.items()
    ]
    with attached(handles):
        yield
