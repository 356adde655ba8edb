"""The requirements of a plan's checkpoint: an engine version, a GPU, and trust in what no run has loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from natprec.formats import Format
from natprec.formats.offers import Offer, Role, offer_of

if TYPE_CHECKING:
    from natprec.solver.plan import Plan

Used = tuple[Role, Format, Format | None]
"""A weight's role, its format, and that of its inputs where they are rounded."""


@dataclass(frozen=True)
class Needs:
    """The requirements of a checkpoint.

    Attributes:
        engine_version: the first version of the engine that loads all of it.
        gpu: the generation whose arithmetic it is, or 'any'.
        transformers: whether plain transformers loads it.
        untested: formats, with their inputs, that no run of the engine has been seen to load.
    """

    engine_version: str
    gpu: str
    transformers: bool
    untested: list[str]


def needs_of(engine: str, gpu: str, used: Iterable[Used]) -> Needs | None:
    """The requirements of all weights, keys and values; None if natprec does not know the engine's history."""
    found: dict[str, Offer] = {}
    for role, weight, inputs in set(used):
        offer = offer_of(engine, role, weight, inputs)
        if offer is None:
            return None
        where = "" if role == "linear" else f" ({role})"
        found[weight.name + (f"/{inputs.name}" if inputs else "") + where] = offer
    if not found:
        return None
    return Needs(
        engine_version=max((offer.since for offer in found.values()), key=_version),
        gpu=gpu,
        transformers=all(offer.portable for offer in found.values()),
        untested=sorted(name for name, offer in found.items() if offer.seen == "no"),
    )


def used_of(plan: Plan) -> Iterator[Used]:
    """The formats of a plan, each in the first role in which the engine runs it, since plans hold no roles."""
    flowing = plan.rounded_inputs
    roles: tuple[Role, ...] = ("linear", "head", "embedding")
    for choice in plan.sites.values():
        if choice.format is not None:
            inputs = flowing.get(choice.fused_group)
            able = (role for role in roles if offer_of(plan.engine, role, choice.format, inputs))
            yield next(able, "linear"), choice.format, inputs
    if plan.cache is not None:
        yield "cache", plan.cache.format, None


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))
