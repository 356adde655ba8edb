"""T5: from curves to formats. Milliseconds; the model is never opened."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from natprec.config import NOT_ROUNDED, Scope, check_targets
from natprec.costs.choose import BYTES
from natprec.distortions.registry import margin_of
from natprec.errors import BudgetError, InputError
from natprec.solver.allocation import natural_precision, within_bytes, within_kl
from natprec.solver.assemble import Target, assemble
from natprec.solver.check_flows import check_flows
from natprec.solver.heads import head_tied
from natprec.solver.plan import Plan
from natprec.solver.problem import Problem, objective_of, problem_of, profile_of, rounding_of
from natprec.solver.uniform import best_uniform, total
from natprec.utils.options import fraction, positive, tolerance

if TYPE_CHECKING:
    from natprec.measurement import Measurement


def solve(
    measurement: Measurement,
    eps: float | None = None,
    *,
    bits: float | None = None,
    max_size: float | None = None,
    margin: float | None = None,
    engine: str | None = None,
    eps_scope: Scope = "model",
    eps_solved: float | None = None,
    rounding: str | None = None,
    activations: str = NOT_ROUNDED,
    kv: str = NOT_ROUNDED,
    eps_bwd: float | None = None,
    gpu: str | None = None,
    untested: bool = False,
    portable: bool = False,
    minimize: str = BYTES,
    costs: str | Path | None = None,
) -> Plan:
    """The cheapest plan that keeps a tolerance, or the most faithful one of a size.

    Args:
        eps: distortion (KL in nats per token by default) that the whole model may cost, or each site:
            `eps_scope="site"`.
        bits: stored bits per quantized weight, scales included.
        max_size: bytes of the whole checkpoint on disk. Of a size the most faithful plan is taken; with eps beside it
            both hold.
        margin: part of eps that is kept back, since plans cost more on kinds of text that were not measured on;
            default: by the distortion.
        engine: a profile's name; default: the one measured for.
        rounding: 'gptq', 'yaqa', 'learned' or 'rtn', which the plan's KL supposes; default: the one measured for.
        eps_solved: tolerance to solve for when a correction tightened it; default: for the whole model
            `1 - margin` of eps, or what the widest formats reach if that is more; for each site eps.
        activations: bits of the inputs of all Linears: '16', what the engine multiplies, or 'auto': see
            `natprec.solver.fused_groups`.
        kv: bits of keys and values in the cache: '16', or what the engine keeps.
        eps_bwd: of each site's gradient, the share of its energy that rounding may lose (T4).
        minimize: what the plan for a tolerance is the least of: bytes, or with a table of costs the time of a new token
            ('decode') or of a prompt ('prefill'), or the joules of a new token. See `natprec.costs`.
        costs: a table as `natprec costs` writes it; default: natprec's own for that engine and GPU, else a roofline.
        gpu, untested, portable: see `natprec.formats.engine_profile`; default: as it was measured. Where a tied output
            head was measured apart, the plan writes it apart if that is the better one: smaller for a tolerance or
            bits per weight, more faithful for a size.
    Raises:
        InputError: a value out of range, or none given.
        BudgetError: no combination of the measured formats reaches it, or not both of a tolerance and a size.
    """
    tolerance("eps", eps)
    margin = margin_of(measurement.header.distortion, margin)
    fraction("margin", margin)
    for name, size in (("bits", bits), ("max-size", max_size), ("eps-bwd", eps_bwd)):
        positive(name, size)
    check_targets(eps, bits, max_size, eps_scope, activations, minimize)
    rounding = rounding_of(measurement, rounding)
    profile = profile_of(measurement, engine, gpu, untested, portable, minimize)
    objective = objective_of(minimize, costs, profile, gpu)
    check_flows(profile, activations, kv)
    target = Target(
        eps,
        eps_solved,
        eps_scope,
        rounding,
        activations,
        eps_bwd,
        None if eps is None or eps_scope == "site" else margin,
    )
    apart = {"embedding", "head"} <= profile.formats.keys()
    ways = [measurement] if apart or not measurement.header.untied else []
    ways += [head_tied(measurement)] if measurement.header.untied else []
    plans, errors = [], []
    for way in ways:
        try:
            plans.append(
                _solved(
                    way,
                    problem_of(way, profile, rounding, activations, kv, eps_bwd, objective),
                    target,
                    bits,
                    max_size,
                    margin,
                )
            )
        except BudgetError as error:
            errors.append(error)
    if not plans:
        raise errors[0]
    return min(plans, key=lambda plan: plan.kl_predicted if max_size else plan.cost or 0.0)


def _solved(
    measurement: Measurement,
    problem: Problem,
    target: Target,
    bits: float | None,
    max_size: float | None,
    margin: float,
) -> Plan:
    """See `solve`; of the target, `eps_solved` is the one given."""
    eps, eps_solved, eps_scope = target.eps, target.eps_solved, target.eps_scope
    groups, decisions, stairs = problem.groups, problem.decisions, problem.stairs
    lost, fixed = problem.lost, problem.fixed
    weights = sum(decision.elements for decision in decisions)
    budget = eps if eps_solved is None else eps_solved
    if bits is not None or max_size is not None:
        allowed = min(bits * weights / 8 if bits else math.inf, max_size - fixed if max_size else math.inf)
        _refuse_small(float(stairs.stored[-1]), allowed, fixed, weights, bits)
        chosen = within_bytes(decisions, stairs, allowed)
    elif budget is None:
        raise InputError("nothing to solve for: give --eps (nats per token), --bits or --max-size")
    elif eps_scope == "site":
        _refuse_tight(max(float(decision.worst.min()) for decision in decisions), budget, "at every site")
        if problem.objective.costs is None:
            found = [natural_precision(decision.stored, decision.worst, budget) for decision in decisions]
            chosen = [index for index in found if index is not None]
        else:  # a wider format may be cheaper
            chosen = [int(np.where(each.worst <= budget, each.stored, np.inf).argmin()) for each in decisions]
    else:
        smallest = float(stairs.kl[0]) + lost
        _refuse_tight(smallest, budget, "for the whole model")
        if eps_solved is None:
            budget = min(budget, max((1 - margin) * budget, smallest))
        chosen = within_kl(decisions, stairs, budget - lost)
    uniform = best_uniform(decisions, [group.pairs for group in groups], chosen)
    if (
        uniform is not None
        and eps_scope == "model"
        and total(decisions, uniform[1], "kl") < total(decisions, chosen, "kl")
    ):
        chosen = uniform[1]
    spent = total(decisions, chosen, "kl")
    if eps is not None and (bits is not None or max_size is not None):
        if eps_scope == "model":
            _refuse_both(spent + lost, eps, margin, float(stairs.kl[0]) + lost)
        else:
            _refuse_both(
                max(float(decision.worst[index]) for decision, index in zip(decisions, chosen, strict=True)),
                eps,
                0.0,
                0.0,
            )
    share = spent if budget is None else budget if eps_scope == "site" else budget - lost
    target = replace(target, eps_solved=budget)
    plan = assemble(measurement, problem, chosen, share, target)
    if uniform is None:
        return plan
    return replace(plan, uniform=uniform[0].name, kl_uniform=lost + total(decisions, uniform[1], "kl"))


def _refuse_tight(smallest: float, eps: float, where: str) -> None:
    if smallest > eps:
        raise BudgetError(
            f"eps {eps:.3g} is below what the widest formats reach {where}: the smallest reachable is {smallest:.3g} "
            "with these formats; raise --eps or measure with smaller groups"
        )


def _refuse_both(predicted: float, eps: float, margin: float, smallest: float) -> None:
    """A size beside a tolerance: the most faithful plan of that size must keep it, margin included."""
    if predicted > max((1 - margin) * eps, min(smallest, eps)):
        raise BudgetError(
            f"eps {eps:.3g} and that size do not go together: the best plan of the size is predicted to cost "
            f"{predicted:.3g}; give a larger size, --eps {predicted / (1 - margin):.3g}, or one of the two alone"
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
