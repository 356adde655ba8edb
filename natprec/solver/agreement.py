"""Checks a plan against its own sums, its engine's formats, and the weights of the model that it is applied to."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import TYPE_CHECKING

from natprec.distortions import impossible
from natprec.formats import Format
from natprec.formats.offers import Role, first_gpu
from natprec.models.weight_sites import together
from natprec.utils.schema import Place

if TYPE_CHECKING:
    from natprec.measurement.subject import Subject
    from natprec.solver.plan import Plan

WEIGHTS: tuple[Role, ...] = ("linear", "convolution", "head", "embedding")
"""Roles of weights."""

CLOSE = 1e-6
"""Relative: of a sum, however its terms are added."""


def refuse_other_sums(plan: Plan, place: Place) -> None:
    """Stop at a plan whose figures are not those of its sites; they stay so where another format is written down.

    Raises:
        InputError: names the figure.
    """
    weights = list(plan.sites.values())
    if not weights:
        raise place.within("sites").wrong("are none")
    least = sum(choice.stored_bytes for choice in weights)
    costs = [choice.kl for choice in weights] + [choice.kl for choice in plan.inputs.values()]
    costs += [plan.cache.kl] if plan.cache else []
    if impossible(plan.distortion, min(costs)):
        raise place.within("sites").wrong(f"have a kl of {min(costs):g}, and {plan.distortion} is never below 0")
    low, high = plan.kl_predicted_ci95
    if low > high:
        raise place.within("kl_predicted_ci95").wrong(f"goes from {low:g} to {high:g}")
    sums = {
        "kl_sum": (plan.kl_sum, math.fsum(costs)),
        "bits_per_weight_total": (plan.bits_per_weight_total, 8 * least / sum(choice.elements for choice in weights)),
    }
    for name, (said, found) in sums.items():
        if not math.isclose(said, found, rel_tol=CLOSE, abs_tol=1e-12):
            raise place.within(name).wrong(f"is {said:.9g}, and its sites make {found:.9g}")
    if plan.kl_joint is None and not math.isclose(plan.kl_predicted, plan.kl_sum, rel_tol=CLOSE, abs_tol=1e-12):
        raise place.within("kl_predicted").wrong(
            f"is {plan.kl_predicted:.9g}, and without a kl_joint it is kl_sum, {plan.kl_sum:.9g}"
        )
    if (plan.kl_joint is None) != (plan.joint_ci95 is None):
        raise place.within("joint_ci95").wrong("goes with kl_joint: both are null, or neither")
    if impossible(plan.distortion, plan.kl_predicted):
        raise place.within("kl_predicted").wrong(f"is {plan.kl_predicted:g}, and {plan.distortion} is never below 0")
    if plan.stored_bytes < least:
        raise place.within("stored_bytes").wrong(f"is {plan.stored_bytes}, and its sites alone take {least}")


def refuse_other_engine(plan: Plan, place: Place) -> None:
    """Stop at a plan that asks its engine for what that does not run.

    Raises:
        InputError: names the format and the engine.
    """
    profile, flowing = plan.profile, plan.rounded_inputs
    for name, choice in plan.sites.items():
        own, inputs = choice.format, flowing.get(choice.fused_group)
        at = place.within("sites").at(name).within("format")
        if own is None:
            continue
        if inputs is None and not any(profile.runs(role, own) for role in WEIGHTS):
            raise at.wrong(f"is {own.name}, which engine {plan.engine!r} does not run{_where(plan, own)}")
        if inputs is not None and not profile.multiplies(own, inputs):
            raise at.wrong(
                f"is {own.name}, which engine {plan.engine!r} does not multiply with {inputs.name}"
                + _where(plan, own, inputs)
            )
    if plan.cache is not None and not profile.runs("cache", plan.cache.format):
        raise place.within("cache.format").wrong(
            f"is {plan.cache.format.name}, in which engine {plan.engine!r} keeps no keys and values"
        )
    if others := plan.inputs.keys() - {choice.fused_group for choice in plan.sites.values()}:
        raise place.within("inputs").wrong(f"has {min(others)!r}, which is the fused group of no site")


def _where(plan: Plan, weight: Format, inputs: Format | None = None) -> str:
    """On which GPU not, and from which on it does."""
    if plan.gpu is None:
        return ""
    found = first_gpu(plan.engine, lambda offer: any(offer.covers(role, weight, inputs) for role in WEIGHTS))
    return f" on {plan.gpu}" + (f"; it does {found}" if found else ", nor on any other")


def refuse_other_sites(plan: Plan, subject: Subject, place: Place) -> None:
    """Stop before a model is rounded whose sites are not those of a plan.

    Raises:
        InputError: names a site that one of both lacks, or that the engine does not run as planned.
    """
    profile, sites = plan.profile, {site.name: site for site in subject.sites}
    _refuse_difference(plan.sites.keys(), sites.keys(), "weights", place)
    fused_groups = {site.fused_group for site in sites.values()}
    if others := plan.inputs.keys() - fused_groups:
        raise place.within("inputs").wrong(f"has {min(others)!r}, and the model has no weights with such an input")
    if plan.cache is not None:
        cached = {site.name for site in subject.activations if site.role == "cache"}
        _refuse_difference(plan.cache.largest.keys(), cached, "keys and values", place.within("cache.largest"))
    alike: dict[tuple[str, str], Format] = {}
    for name, site in sites.items():
        choice, at = plan.sites[name], place.within("sites").at(name)
        fmt, first = choice.format, plan.sites[site.fused_group].format
        if choice.elements != site.elements:
            raise at.within("elements").wrong(f"is {choice.elements}, and the model's weight has {site.elements}")
        if fmt is None:
            continue
        own = at.within("format")
        if not profile.stores(site.role, fmt):
            raise own.wrong(f"is {fmt.name}, which engine {plan.engine!r} does not run as {site.role}")
        if not fmt.divides(site.shape[1]):
            raise own.wrong(f"is {fmt.name}, whose groups do not divide rows of {site.shape[1]}")
        if not profile.fits(site.role, fmt, *site.shape):
            raise own.wrong(f"is {fmt.name}, which a weight of {site.shape[0]} x {site.shape[1]} cannot have")
        if fmt != (other := alike.setdefault(together(site, profile), fmt)):
            raise own.wrong(
                f"is {fmt.name}, and {other.name} is that of others that engine {plan.engine!r} runs together with it"
            )
        if choice.scaled and first is None:
            raise at.within("scaled").wrong(
                f"is true, and {site.fused_group!r}, which shares its input, stays at 16 bits"
            )


def _refuse_difference(planned: Set[str], found: Set[str], of: str, place: Place) -> None:
    """Stop where a plan names others than a model has."""
    for what, names in (("lacks", found - planned), ("has what is none", planned - found)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise place.wrong(f"{what} of the model's {len(found)} {of}: {min(names)!r}{more}")
