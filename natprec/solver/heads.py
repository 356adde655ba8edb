"""A tied output head, measured apart: the same measurement, with the head tied again and both at 16 bits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from natprec.errors import InputError

if TYPE_CHECKING:
    from natprec.measurement import Measurement


def head_tied(measurement: Measurement) -> Measurement:
    """Embedding and head as one site again, which is kept at 16 bits, as an engine that reads no packed tied one does.

    Raises:
        InputError: the measurement names a head that it has no embedding for.
    """
    name = measurement.header.untied
    curves = dict(measurement.curves)
    head = curves.pop(name, None)
    own = [
        curve
        for curve in curves.values()
        if curve.site.role == "embedding" and head is not None and curve.site.shape == head.site.shape
    ]
    if head is None or not own:
        raise InputError(f"the measurement says that head {name!r} was tied, and has no embedding of its shape")
    embedding = own[0].unknown()
    unquantized = embedding.unquantized + head.unquantized.mean(1, keepdims=True)  # each stored once, and used twice
    site = replace(embedding.site, uses=(*embedding.site.uses, *head.site.uses))
    curves[site.name] = replace(embedding, site=site, unquantized=unquantized)
    return replace(measurement, header=replace(measurement.header, untied=""), curves=curves)
