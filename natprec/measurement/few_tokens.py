"""Experts to which the text sent few tokens: unknown, not free.

The sum of squared gradients of an expert grows with the tokens that it sees, and one that saw three looks as if it
could be stored in two bits. Other text may send it more. So it costs at least what a typical expert of its layer would
that has its weights: the mean squared gradient of those that saw enough, per weight, times its own rounding errors.
Where none did, those that saw most stand for all. What GPTQ leaves is not asked: a plan supposes that such an expert is
rounded to nearest, and GPTQ, which also rounds it if any token reached it, leaves less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from natprec.measurement.curves import Curve
from natprec.measurement.fisher import ROWS_VALUES
from natprec.measurement.weight_observer import WeightObserver
from natprec.quantizers import Extent, squared_errors


def without_few(observers: Mapping[str, WeightObserver]) -> dict[str, WeightObserver]:
    """Those that are measured by themselves; of others what GPTQ would leave is not asked."""
    for observer in observers.values():
        if observer.few:
            observer.compensation = None
    return {name: observer for name, observer in observers.items() if not observer.few}


def lend(curves: Mapping[str, Curve], observers: Mapping[str, WeightObserver], terms: int) -> dict[str, Curve]:
    """The curves of a finished segment, those of experts that saw few tokens raised to what the others say.

    Args:
        observers: of the same sites, whose weights are in memory.
        terms: of a sequence, over which its distortion is averaged.
    """
    result = dict(curves)
    alike: dict[tuple[str, str], list[str]] = {}
    for name, curve in curves.items():
        if curve.site.experts:
            leaf = name.removeprefix(curve.site.experts + ".").partition(".")[2]
            alike.setdefault((curve.site.experts, leaf), []).append(name)
    for names in alike.values():
        most = max(curves[name].tokens or 0 for name in names)
        known = [curves[name] for name in names if not curves[name].few or 0 < (curves[name].tokens or 0) == most]
        for name in names:
            if curves[name].few and known:
                result[name] = _raised(curves[name], known, observers[name], terms)
    return result


def _raised(curve: Curve, known: list[Curve], observer: WeightObserver, terms: int) -> Curve:
    """A curve that is nowhere below that of a typical expert with its weights."""
    energy = np.mean([other.energy for other in known], 0)
    costs = _errors(observer).numpy() / (2 * terms * curve.site.elements)
    parts, pool_count, formats = curve.forward.shape
    typical = (energy[:, None] * costs).reshape(parts, pool_count, formats + 1)
    return replace(
        curve,
        forward=np.maximum(curve.forward, typical[:, :, :-1]),
        unquantized=np.maximum(curve.unquantized, typical[:, :, -1]),
        backward=np.mean([other.backward for other in known], 0),
        energy=energy,
        alignment=np.ones(formats),
    )


def _errors(observer: WeightObserver) -> torch.Tensor:
    """(formats + 1,), float64: the squared rounding errors of a weight; last: stored unquantized."""
    rows = max(1, ROWS_VALUES // observer.site.shape[1])
    weight, extent = observer.weight, Extent.of(observer.weight, observer.formats)
    slices = [slice(start, start + rows) for start in range(0, len(weight), rows)]
    parts = [squared_errors(weight[part], observer.formats, observer.scale_dtype, extent.at(part)) for part in slices]
    return torch.stack([part.sum(1).double().cpu() for part in parts]).sum(0)
