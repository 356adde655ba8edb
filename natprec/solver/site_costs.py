"""What a format costs one site: distortion, bytes, and the gradient that it loses (T2, T3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from natprec.formats import EngineProfile, Format
from natprec.formats.listing import naming_bytes
from natprec.solver.allocation import natural_precision
from natprec.solver.choices import UNQUANTIZED_BITS

if TYPE_CHECKING:
    from natprec.measurement import Curve, Measurement

EPS_BWD_SHOWN = 0.01
"""Of the gradient's energy: where b* of the backward flow is reported if no tolerance is given."""


def weight_formats(curve: Curve, profile: EngineProfile) -> list[Format]:
    """The measured formats of a weight that the engine runs."""
    return [fmt for fmt in curve.formats if profile.stores(curve.site.role, fmt)]


def kl_of(curve: Curve, formats: Sequence[Format | None], rounding: str) -> np.ndarray:
    """KL under each of some formats, nats per token; None: unquantized, which costs an activation nothing."""
    place = {fmt: index for index, fmt in enumerate(curve.formats)}
    values = curve.kl(rounding)
    kept = curve.unquantized_kl if curve.site.kind == "weight" else 0.0
    return np.array([kept if fmt is None else values[place[fmt]] for fmt in formats])


def stored_bytes(curve: Curve, fmt: Format | None, profile: EngineProfile) -> int:
    """Bytes of one weight on disk; None: at 16 bits."""
    site = curve.site
    if fmt is None:
        return UNQUANTIZED_BITS // 8 * site.elements
    return profile.stored_bytes(site.role, fmt, *site.shape, uses=len(site.uses))


def named_bytes(measurement: Measurement, profile: EngineProfile) -> int:
    """Bytes that a checkpoint spends on naming the weights, whatever their formats: header and configuration."""
    return naming_bytes(profile.container, (curve.site.name for curve in measurement.weights.values()))


def backward_bits(curve: Curve, eps_bwd: float) -> int | None:
    """b* of the backward flow: the fewest bits that keep all but `eps_bwd` of the gradient's energy (T3)."""
    energy = float(curve.energy.mean())
    if energy == 0:
        return None
    return fewest_bits(curve.formats, curve.backward.mean(0) / energy, eps_bwd)


def fewest_bits(formats: Sequence[Format], values: np.ndarray, limit: float) -> int | None:
    """The fewest bits from which every wider format also keeps a limit; of several of one width the best counts."""
    best: dict[int, float] = {}
    for fmt, value in zip(formats, values, strict=True):
        best[fmt.bits] = min(best.get(fmt.bits, np.inf), float(value))
    widths = np.array(sorted(best))
    found = natural_precision(widths, np.array([best[bits] for bits in widths]), limit)
    return None if found is None else int(widths[found])


def keeps_gradient(curve: Curve, fmt: Format, eps_bwd: float) -> bool:
    """Whether a format, rounding the site's gradient, loses at most this share of its energy; nothing reached: yes."""
    energy = float(curve.energy.mean())
    return energy == 0 or float(curve.backward.mean(0)[curve.formats.index(fmt)]) <= eps_bwd * energy
