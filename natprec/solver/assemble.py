"""From chosen pairs to the plan: every site's format, its cost, and the b* that its own share would give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from natprec.config import NOT_ROUNDED
from natprec.costs import Estimate
from natprec.formats import EngineProfile, Format
from natprec.roundings import rounding_named
from natprec.solver.allocation import natural_precision
from natprec.solver.choices import UNQUANTIZED_BITS, Choice, InputChoice
from natprec.solver.fused_groups import width
from natprec.solver.needs import Used, needs_of
from natprec.solver.objective import Objective, plan_cost
from natprec.solver.plan import Plan
from natprec.solver.site_costs import fewest_bits, kl_of, stored_bytes
from natprec.utils.statistics import bootstrap_interval

if TYPE_CHECKING:
    from natprec.measurement import Curve, Measurement
    from natprec.solver.problem import Problem


@dataclass(frozen=True)
class Target:
    """The target of a plan: its attributes of these names."""

    eps: float | None
    eps_solved: float | None
    eps_scope: str
    rounding: str
    activations: str
    eps_bwd: float | None
    margin: float | None


def assemble(measurement: Measurement, problem: Problem, chosen: Sequence[int], share: float, target: Target) -> Plan:
    """The plan.

    Args:
        chosen: of each group the index of its pair.
        share: what all groups may cost together, or with `eps_scope` 'site' each site.
    """
    profile, groups, unquantized, cache = problem.profile, problem.groups, problem.unquantized, problem.cache
    header, rounding = measurement.header, target.rounding
    elements = sum(group.decision.elements for group in groups)
    flowing = {
        group.decision.name: group.inputs for group in groups if target.activations != NOT_ROUNDED and group.inputs
    }
    counted = elements + sum(group.decision.elements for group in groups if group.decision.name in flowing)
    choices: dict[str, Choice] = {}
    inputs: dict[str, InputChoice] = {}
    pooled = []
    for group, index in zip(groups, chosen, strict=True):
        pair = group.pairs[index]
        own = share if target.eps_scope == "site" else share * group.decision.elements / counted
        alone = group.alone
        found = natural_precision(alone.stored, alone.worst if target.eps_scope == "site" else alone.kl, own)
        natural = None if found is None else width(group.formats[found])
        for curve in group.curves:
            pooled.append(curve.samples(pair.weight, rounding))
            choices[curve.site.name] = Choice(
                pair.weight,
                natural,
                float(kl_of(curve, [pair.weight], rounding)[0]),
                stored_bytes(curve, pair.weight, profile),
                curve.site.elements,
                group.decision.name,
                pair.weight is not None and curve.scaled and rounding_named(rounding).compensates,
                group.backward[curve.site.name],
                curve.tokens,
            )
        if group.decision.name in flowing:
            curve = flowing[group.decision.name]
            kl = float(kl_of(curve, [pair.inputs], rounding)[0])
            natural = fewest_bits(curve.formats, curve.kl(rounding), own)
            largest = curve.largest[rounding_named(rounding).compensates] if _fixes(pair.inputs) else None
            inputs[group.decision.name] = InputChoice(
                pair.inputs, natural, kl, group.backward[curve.site.name], largest
            )
            if pair.inputs is not None:
                pooled.append(curve.samples(pair.inputs, rounding))
    for name in unquantized:
        curve, site = measurement.curves[name], measurement.curves[name].site
        pooled.append(curve.samples(None))
        choices[name] = Choice(None, None, curve.unquantized_kl, 2 * site.elements, site.elements, site.fused_group)
    if cache is not None:
        pooled += [measurement.curves[name].samples(cache.format, rounding) for name in cache.largest]
    pool_count = min(len(values) for values in pooled)
    total = sum(values.reshape(pool_count, -1).mean(1) for values in pooled)
    stored = sum(choice.stored_bytes for name, choice in choices.items() if name not in unquantized)
    stored_total = stored + problem.fixed
    unquantized_bytes = sum(choices[name].stored_bytes for name in unquantized)
    everything = sum(choice.elements for choice in choices.values())
    twice = choices[header.untied].elements if header.untied else 0
    used: list[Used] = []
    for group, index in zip(groups, chosen, strict=True):
        pair = group.pairs[index]
        if pair.weight is not None:
            used += [(curve.site.role, pair.weight, pair.inputs) for curve in group.curves]
        stored_total += pair.input_scale_bytes * sum(len(curve.site.uses) for curve in group.curves)
    used += [("cache", cache.format, None)] if cache else []
    lost = [choice.kl for choice in choices.values()] + [choice.kl for choice in inputs.values()]
    lost += [cache.kl] if cache else []
    parts: list[Estimate] = []
    if problem.objective.costs is not None:
        for group, index in zip(groups, chosen, strict=True):
            pair = group.pairs[index]
            parts.append(problem.objective.estimate(group.curves, pair.weight, pair.inputs, profile, header))
        parts += unquantized_costs(measurement, profile, unquantized, problem.objective)
    return Plan(
        **asdict(target),
        **asdict(plan_cost(problem.objective, parts, stored_total, header)),
        model=header.model,
        model_digest=header.model_digest,
        engine=profile.name,
        storage_dtype=header.storage_dtype,
        distortion=header.distortion,
        rotation=header.rotation,
        kl_predicted=float(np.sum(lost)),
        kl_sum=float(np.sum(lost)),
        kl_predicted_ci95=bootstrap_interval(np.asarray(total), header.seed),
        stored_bytes=stored_total,
        stored_bytes_reference=header.other_bytes + header.carried_bytes + (everything - twice) * UNQUANTIZED_BITS // 8,
        bits_per_weight=8 * stored / elements,
        bits_per_weight_total=8 * (stored + unquantized_bytes) / everything,
        sites={name: choices[name] for name in measurement.weights},
        inputs=inputs,
        cache=cache,
        gpu=profile.gpu,
        needs=needs_of(profile.name, profile.gpu, used) if profile.gpu else None,
        untied=bool(header.untied),
        source_bytes=header.source_bytes,
        source_format=header.source_format,
        provenance=header.provenance("natprec.solve"),
    )


def unquantized_costs(
    measurement: Measurement, profile: EngineProfile, unquantized: Sequence[str], objective: Objective
) -> list[Estimate]:
    """What the weights add that stay at 16 bits, by fused groups."""
    together: dict[str, list[Curve]] = {}
    for name in unquantized:
        curve = measurement.curves[name]
        together.setdefault(curve.site.fused_group, []).append(curve)
    return [objective.estimate(curves, None, None, profile, measurement.header) for curves in together.values()]


def _fixes(fmt: Format | None) -> bool:
    """Whether a format of inputs has something in its scales that calibration decides."""
    return fmt is not None and fmt.fixed
