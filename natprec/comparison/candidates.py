"""Measurements with fewer candidates, so that natprec has no more than the peers that it is held against."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from natprec.errors import InputError
from natprec.measurement import Measurement
from natprec.solver.heads import head_tied


def linears_only(measurement: Measurement) -> Measurement:
    """Embedding and head stay at 16 bits, tied if they were."""
    tied = head_tied(measurement) if measurement.header.untied else measurement
    kept = {
        name: curve.unknown() if curve.site.kind == "weight" and curve.site.role != "linear" else curve
        for name, curve in tied.curves.items()
    }
    return replace(tied, curves=kept)


def with_formats(measurement: Measurement, names: Collection[str]) -> Measurement:
    """Of weights, the formats of these names alone.

    Raises:
        InputError: a weight was measured in none of them.
    """
    curves = {}
    for name, curve in measurement.curves.items():
        own = [fmt for fmt in curve.formats if fmt.name in names]
        if curve.site.kind == "weight" and curve.formats:
            if not own:
                raise InputError(f"{name!r} was measured in none of {', '.join(names)}; name others")
            curve = curve.only(own)
        curves[name] = curve
    return replace(measurement, curves=curves)
