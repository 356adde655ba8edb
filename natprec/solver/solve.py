"""T5: from curves to formats. Milliseconds; the model is never opened."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from natprec.errors import BudgetError, InputError
from natprec.formats import EngineProfile, NumberFormat, engine_profile
from natprec.solver.allocation import Staircase, Unit, natural_precision, staircase, within_bytes, within_kl
from natprec.solver.plan import UNQUANTIZED_BITS, Choice, Plan
from natprec.solver.uniform import best_uniform, total
from natprec.statistics import bootstrap_interval

if TYPE_CHECKING:
    from natprec.measurement import Curve, Measurement

Scope = Literal["model", "site"]

HEADROOM = 0.95
"""Of the whole model's tolerance, the part that is planned for: on text not measured on, plans cost up to 5 % more."""


def solve(
    measurement: Measurement,
    eps: float | None = None,
    *,
    bits: float | None = None,
    max_size: float | None = None,
    engine: str | None = None,
    eps_scope: Scope = "model",
    eps_solved: float | None = None,
    rounding: str | None = None,
) -> Plan:
    """The cheapest plan that keeps a tolerance, or the most faithful one of a size.

    Args:
        eps: distortion (KL in nats per token by default) that the whole model may cost, or each site:
            `eps_scope="site"`.
        bits: stored bits per quantized weight, scales included. Give one of eps, bits, max_size;
            eps beside a size states what the verification will judge.
        max_size: bytes of the whole checkpoint on disk.
        engine: a profile's name; default: the one measured for.
        rounding: 'gptq' or 'rtn', which the plan's KL supposes; default: the one measured for.
        eps_solved: tolerance to solve for when a correction tightened it; default: for the whole model
            `HEADROOM` × eps, or what the widest formats reach if that is more; for each site eps.
    Raises:
        InputError: a value out of range, or none given.
        BudgetError: no combination of the measured formats reaches it.
    """
    check_eps(eps)
    check_positive("bits", bits)
    check_positive("max-size", max_size)
    profile = engine_profile(engine or measurement.header.engine)
    rounding = rounding or measurement.header.rounding
    if rounding not in ("rtn", measurement.header.rounding):
        raise InputError(
            f"rounding {rounding!r} was not measured; measure with --rounding {rounding}, or solve for rtn"
        )
    groups, units, stairs = _prepared(measurement, profile, rounding)
    if not units:
        raise BudgetError(
            f"engine {profile.name!r} runs none of the measured formats; measure with --engine {profile.name}"
        )
    kept = [name for name, curve in measurement.weights.items() if not _formats(curve, profile)]
    lost = sum(measurement.curves[name].kept_kl for name in kept)  # by storing them in 16 bits
    fixed = measurement.header.other_bytes + measurement.header.carried_bytes
    fixed += sum(2 * measurement.curves[name].site.elements for name in kept)
    weights = sum(unit.elements for unit in units)
    budget = eps if eps_solved is None else eps_solved
    if bits is not None or max_size is not None:
        allowed = min(bits * weights / 8 if bits else math.inf, max_size - fixed if max_size else math.inf)
        _refuse_small(stairs.stored[-1], allowed, fixed, weights, bits)
        chosen = within_bytes(units, stairs, allowed)
    elif budget is None:
        raise InputError("nothing to solve for: give --eps (nats per token), --bits or --max-size")
    elif eps_scope == "site":
        _refuse_tight(max(float(unit.worst.min()) for unit in units), budget, "at every site")
        found = [natural_precision(unit.stored, unit.worst, budget) for unit in units]
        chosen = [index for index in found if index is not None]
    else:
        smallest = float(stairs.kl[0]) + lost
        _refuse_tight(smallest, budget, "for the whole model")
        if eps_solved is None:
            budget = min(budget, max(HEADROOM * budget, smallest))
        chosen = within_kl(units, stairs, budget - lost)
    uniform = best_uniform(units, [formats for _, _, formats in groups], chosen)
    if uniform is not None and eps_scope == "model" and total(units, uniform[1], "kl") < total(units, chosen, "kl"):
        chosen = uniform[1]
    spent = total(units, chosen, "kl")
    share = spent if budget is None else budget if eps_scope == "site" else budget - lost
    plan = _plan(measurement, profile, groups, kept, chosen, fixed, eps, budget, eps_scope, share, rounding)
    if uniform is None:
        return plan
    return replace(plan, uniform=uniform[0].name, kl_uniform=lost + total(units, uniform[1], "kl"))


def check_eps(eps: float | None) -> None:
    """Refuse a tolerance that means nothing.

    Raises:
        InputError: zero, negative, NaN or infinite.
    """
    if eps is not None and not (math.isfinite(eps) and eps > 0):
        raise InputError(
            f"eps {eps}: a tolerance is a positive number (nats per token, where D is KL), for example 0.05"
        )


def check_positive(name: str, value: float | None) -> None:
    """Refuse a size that means nothing.

    Raises:
        InputError: zero, negative, NaN or infinite.
    """
    if value is not None and not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} {value}: give a positive number")


def _formats(curve: Curve, profile: EngineProfile) -> list[NumberFormat]:
    return [fmt for fmt in curve.formats if isinstance(fmt, NumberFormat) and profile.runs(curve.site.role, fmt)]


Group = tuple[Unit, list["Curve"], list[NumberFormat]]


@lru_cache(maxsize=4)
def _prepared(
    measurement: Measurement, profile: EngineProfile, rounding: str
) -> tuple[list[Group], list[Unit], Staircase]:
    """What every target solves on; many targets come from one measurement."""
    groups = _units(measurement, profile, rounding)
    units = [unit for unit, _, _ in groups]
    return groups, units, staircase(units)


def _units(measurement: Measurement, profile: EngineProfile, rounding: str) -> list[Group]:
    """Units with the formats that the engine runs for all of their sites."""
    members: dict[str, list[Curve]] = {}
    for curve in measurement.weights.values():
        if _formats(curve, profile):
            members.setdefault(curve.site.unit, []).append(curve)
    groups = []
    for name, curves in members.items():
        shared = set.intersection(*(set(curve.formats) for curve in curves))
        formats = [fmt for fmt in _formats(curves[0], profile) if fmt in shared]
        table = np.array([_means(curve, formats, rounding) for curve in curves])
        if not any(curve.energy.any() for curve in curves):
            formats = formats[-1:]  # no token reached it: unknown, not free
            table = table[:, -1:]
        stored = np.array([sum(_stored(curve, fmt, profile) for curve in curves) for fmt in formats])
        elements = sum(curve.site.elements for curve in curves)
        groups.append((Unit(name, elements, table.sum(0), table.max(0), stored), curves, formats))
    return groups


def _means(curve: Curve, formats: list[NumberFormat], rounding: str) -> np.ndarray:
    """KL under each of some formats, nats per token."""
    place = {fmt: index for index, fmt in enumerate(curve.formats)}
    return np.asarray(curve.kl(rounding)[[place[fmt] for fmt in formats]])


def _stored(curve: Curve, fmt: NumberFormat, profile: EngineProfile) -> int:
    site = curve.site
    return profile.stored_bytes(site.role, fmt, *site.shape, uses=len(site.uses))


def _refuse_tight(smallest: float, eps: float, where: str) -> None:
    if smallest > eps:
        raise BudgetError(
            f"eps {eps:.3g} is below what the widest formats reach {where}: the smallest reachable is {smallest:.3g} "
            "with these formats; raise --eps or measure with smaller groups"
        )


def _refuse_small(cheapest: float, allowed: float, fixed: int, weights: int, bits: float | None) -> None:
    if cheapest <= allowed:
        return
    if bits is not None and bits * weights / 8 <= allowed:
        raise BudgetError(
            f"budget {bits:.2f} bits/weight is below the cheapest plan, {cheapest * 8 / weights:.2f}; "
            "raise --bits or measure with larger groups"
        )
    raise BudgetError(
        f"max-size {allowed + fixed:.0f} bytes is below the cheapest plan, {cheapest + fixed:.0f} bytes "
        f"({fixed} of them are not quantized); raise --max-size"
    )


def _plan(
    measurement: Measurement,
    profile: EngineProfile,
    groups: list[Group],
    kept: list[str],
    chosen: list[int],
    fixed: int,
    eps: float | None,
    eps_solved: float | None,
    scope: Scope,
    share: float,
    rounding: str,
) -> Plan:
    header = measurement.header
    weights = sum(unit.elements for unit, _, _ in groups)
    choices: dict[str, Choice] = {}
    pooled = []
    for (unit, curves, formats), index in zip(groups, chosen, strict=True):
        own = share if scope == "site" else share * unit.elements / weights
        natural = natural_precision(unit.stored, unit.worst if scope == "site" else unit.kl, own)
        for curve in curves:
            fmt = formats[index]
            pooled.append(curve.samples(fmt, rounding))
            choices[curve.site.name] = Choice(
                fmt,
                None if natural is None else formats[natural].bits,
                float(_means(curve, [fmt], rounding)[0]),
                _stored(curve, fmt, profile),
                curve.site.elements,
                curve.site.unit,
                curve.scaled and rounding == "gptq",
            )
    for name in kept:
        curve, site = measurement.curves[name], measurement.curves[name].site
        pooled.append(curve.samples(None))
        choices[name] = Choice(None, None, curve.kept_kl, 2 * site.elements, site.elements, site.unit)
    units = min(len(values) for values in pooled)
    total = sum(values.reshape(units, -1).mean(1) for values in pooled)
    stored = sum(choice.stored_bytes for choice in choices.values() if choice.format)
    everything = sum(choice.elements for choice in choices.values())
    reference = header.other_bytes + header.carried_bytes + everything * UNQUANTIZED_BITS // 8
    return Plan(
        model=header.model,
        model_digest=header.model_digest,
        engine=profile.name,
        storage_dtype=header.storage_dtype,
        eps=eps,
        eps_solved=eps_solved,
        eps_scope=scope,
        rounding=rounding,
        kl_predicted=float(np.sum([choice.kl for choice in choices.values()])),
        kl_predicted_ci95=bootstrap_interval(np.asarray(total), header.seed),
        stored_bytes=stored + fixed,
        stored_bytes_reference=reference,
        bits_per_weight=8 * stored / weights,
        bits_per_weight_total=8 * (stored + sum(2 * measurement.curves[n].site.elements for n in kept)) / everything,
        sites={name: choices[name] for name in measurement.weights},
        distortion=header.distortion,
    )
