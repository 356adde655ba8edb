"""The format of all keys and values in the cache, which is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from natprec.config import NOT_ROUNDED
from natprec.errors import InputError
from natprec.formats import EngineProfile, Format, PerHead
from natprec.models.weight_sites import Site
from natprec.roundings import rounding_named
from natprec.solver.choices import CacheChoice
from natprec.solver.fused_groups import refuse_other_rule
from natprec.solver.site_costs import kl_of

if TYPE_CHECKING:
    from natprec.measurement import Measurement


def cache_of(measurement: Measurement, profile: EngineProfile, rounding: str, kv: str) -> CacheChoice | None:
    """Keys and values at so many bits; None for 16.

    Raises:
        InputError: they were not measured, or differ in size.
    """
    if kv == NOT_ROUNDED:
        return None
    curves = [curve for curve in measurement.curves.values() if curve.site.role == "cache"]
    if not curves and measurement.header.sites != "all":
        raise InputError("keys and values were not measured; measure with --sites all")
    fmt = cache_format([curve.site for curve in curves], profile, kv)
    if not fmt.floating:
        refuse_other_rule(curves, profile)
    kl = sum(float(kl_of(curve, [fmt], rounding)[0]) for curve in curves)
    way = rounding_named(rounding).compensates
    heads = {
        curve.site.name: curve.by_head[way]
        for curve in curves
        if curve.by_head is not None and fmt.scaling.granularity == PerHead()
    }
    return CacheChoice(fmt, kl, {curve.site.name: curve.largest[way] for curve in curves}, heads)


def cache_format(sites: Sequence[Site], profile: EngineProfile, kv: str) -> Format:
    """The one format of all keys and values at so many bits, below 16.

    Raises:
        InputError: there are none among the sites, or they differ in size.
    """
    sizes = {site.shape[1]: site.kind for site in sites if site.role == "cache"}
    if not sizes:
        raise InputError(
            "keys and values were not found: this model does not call transformers' attention interface; leave --kv out"
        )
    formats = {profile.cached(int(kv), size) for size in sizes}
    if len(formats) > 1:
        heads = ", ".join(f"{kind}s of {size}" for size, kind in sizes.items())
        raise InputError(
            f"kv {kv!r}: heads of this model differ in size ({heads}), and a checkpoint for {profile.name} has one "
            "scheme, whose scales are per head; leave --kv out, or use --engine vllm, whose scales are per tensor"
        )
    return formats.pop()
