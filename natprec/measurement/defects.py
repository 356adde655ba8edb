"""Refuses impossible measurements: shapes that do not belong together, numbers that no sweep finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from natprec.distortions import impossible
from natprec.measurement.curves import ARRAYS, Curve
from natprec.utils.schema import LARGE, Place


def refuse_curve(curve: Curve, place: Place, distortion: str) -> None:
    """Stop at a curve that solving would take for one.

    Args:
        place: of the site.
        distortion: the name of the one that it is in.
    Raises:
        InputError: names the array, or the format, and what is wrong with it.
    """
    formats = len(curve.formats)
    if len(set(curve.formats)) < formats:
        raise place.within("formats").wrong("has one of them twice")
    for fmt in curve.formats:
        if not fmt.divides(curve.site.shape[1]):
            raise place.wrong(f"has {fmt.name}, whose groups do not divide its rows of {curve.site.shape[1]}")
    parts, samples = curve.unquantized.shape if curve.unquantized.ndim == 2 else (1, 1)
    pool_count = max(1, len(curve.energy)) if curve.energy.ndim else 1
    shapes = {
        "forward": (max(1, parts), max(1, samples), formats),
        "kept": (max(1, parts), max(1, samples)),
        "backward": (pool_count, formats),
        "energy": (pool_count,),
        "shares": (formats,),
        "alignment": (formats,),
    }
    for name, shape in shapes.items():
        array, own = getattr(curve, ARRAYS[name]), place.within(name)
        if array.shape != shape or array.dtype.kind != "f":
            raise own.wrong(f"is {array.dtype} {array.shape}, and must be float64 {shape}")
        if not bool((np.abs(array) <= LARGE).all()):
            raise own.wrong(f"has a number that is NaN or above {LARGE:g}")
        least = float(array.min(initial=0.0))
        if impossible(distortion, least) if name in ("forward", "kept") else least < 0:
            raise own.wrong(f"has a number below 0: {least:g}")


def refuse_unlike(curves: Sequence[Curve], place: Place) -> None:
    """Stop at curves whose pools of samples cannot be joined: the fewest of a site divide those of all."""
    counts = {curve.site.name: curve.unquantized.shape[1] for curve in curves}
    fewest = min(counts.values(), default=1)
    for name, count in counts.items():
        if count % fewest:
            raise place.at(name).wrong(f"has {count} pools of samples, which are no multiple of another's {fewest}")
