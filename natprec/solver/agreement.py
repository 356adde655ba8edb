"""What a plan has to agree with: its own sums, what its engine runs, and the weights of the model it is applied to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from natprec.distortions import impossible
from natprec.formats import Format, engine_profile
from natprec.formats.engines import Role
from natprec.schema import Place
from natprec.sites import Site, together
from natprec.solver.choices import Choice

if TYPE_CHECKING:
    from natprec.solver.plan import Plan

WEIGHTS: tuple[Role, ...] = ("linear", "head", "embedding")
"""Roles of weights."""

CLOSE = 1e-6
"""Relative: of a sum, however its terms are added."""


def refuse_other_sums(plan: Plan, place: Place) -> None:
    """Stop at a plan whose figures are not those of its sites.

    Raises:
        InputError: names the figure.
    """
    weights = list(plan.sites.values())
    rounded = [choice for choice in weights if choice.format is not None]
    costs = [choice.kl for choice in weights] + [choice.kl for choice in plan.inputs.values()]
    costs += [plan.cache.kl] if plan.cache else []
    if impossible(plan.distortion, min(costs, default=0.0)):
        raise place.within("sites").wrong(f"have a kl of {min(costs):g}, and {plan.distortion} is never below 0")
    low, high = plan.kl_predicted_ci95
    if low > high:
        raise place.within("kl_predicted_ci95").wrong(f"goes from {low:g} to {high:g}")
    sums = {
        "kl_predicted": (plan.kl_predicted, math.fsum(costs)),
        "bits_per_weight": (plan.bits_per_weight, _bits(rounded)),
        "bits_per_weight_total": (plan.bits_per_weight_total, _bits(weights)),
    }
    for name, (said, found) in sums.items():
        if not math.isclose(said, found, rel_tol=CLOSE, abs_tol=1e-12):
            raise place.within(name).wrong(f"is {said:.9g}, and its sites make {found:.9g}")
    if plan.stored_bytes < (least := sum(choice.stored_bytes for choice in weights)):
        raise place.within("stored_bytes").wrong(f"is {plan.stored_bytes}, and its sites alone take {least}")


def refuse_other_engine(plan: Plan, place: Place) -> None:
    """Stop at a plan that asks its engine for what that does not run.

    Raises:
        InputError: names the format and the engine.
    """
    profile = engine_profile(plan.engine)
    for name, choice in plan.sites.items():
        own, inputs = choice.format, plan.rounded_inputs.get(choice.unit)
        at = place.within("sites").at(name).within("format")
        if own is not None and not any(profile.runs(role, own) for role in WEIGHTS):
            raise at.wrong(f"is {own.name}, which engine {plan.engine!r} does not run")
        if own is not None and inputs is not None and not profile.multiplies(own, inputs):
            raise at.wrong(f"is {own.name}, which engine {plan.engine!r} does not multiply with {inputs.name}")
    if plan.cache is not None and not profile.runs("cache", plan.cache.format):
        raise place.within("cache.format").wrong(
            f"is {plan.cache.format.name}, in which engine {plan.engine!r} keeps no keys and values"
        )
    if others := plan.inputs.keys() - {choice.unit for choice in plan.sites.values()}:
        raise place.within("inputs").wrong(f"has {min(others)!r}, which is the unit of no site")


def refuse_other_sites(choices: Mapping[str, Choice], engine: str, sites: Iterable[Site], place: Place) -> None:
    """Stop before weights are rounded that are not those of a plan.

    Raises:
        InputError: names those that one of both lacks, or that the engine does not run as planned.
    """
    profile, known = engine_profile(engine), {site.name: site for site in sites}
    for what, lacking in (
        ("lacks", known.keys() - choices.keys()),
        ("has what is none", choices.keys() - known.keys()),
    ):
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise place.wrong(f"{what} of the model's {len(known)} weights: {min(lacking)!r}{more}")
    alike: dict[tuple[str, str], Format] = {}
    for name, site in known.items():
        fmt, at = choices[name].format, place.within("sites").at(name)
        if choices[name].elements != site.elements:
            raise at.within("elements").wrong(
                f"is {choices[name].elements}, and the model's weight has {site.elements}"
            )
        if fmt is None:
            continue
        if not profile.runs(site.role, fmt):
            raise at.within("format").wrong(f"is {fmt.name}, which engine {engine!r} does not run as {site.role}")
        if not fmt.divides(site.shape[1]):
            raise at.within("format").wrong(f"is {fmt.name}, whose groups do not divide rows of {site.shape[1]}")
        first = alike.setdefault(together(site, profile), fmt)
        if fmt != first:
            raise at.within("format").wrong(
                f"is {fmt.name}, and {first.name} is that of others which engine {engine!r} runs as one matrix with it"
            )


def _bits(choices: list[Choice]) -> float:
    """Stored bits per weight."""
    elements = sum(choice.elements for choice in choices)
    return 8 * sum(choice.stored_bytes for choice in choices) / elements if elements else 0.0
