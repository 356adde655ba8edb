"""A look at a few sites with the exact estimator, beside what the sweep found there.

The sweep's second order ends where a change, however small, is scaled up: by a norm whose input is next to nothing,
say. Then one token outweighs all others, and the estimate is out by orders of magnitude. So what looks like that is
looked at too, and where the two are far apart the exact value counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from natprec.formats import Format
from natprec.measurement.curves import Curve
from natprec.measurement.exact import exact_curves
from natprec.measurement.measurement import Measurement
from natprec.measurement.subject import Subject
from natprec.models.weight_sites import Site
from natprec.tasks import Samples
from natprec.utils.progress import Stages

CHECK_SITES = 4
CHECK_SEQUENCES = 2
CHECK_EPS = 0.05
"""The spot check takes, at each checked site, the width that this tolerance would give it."""

FAR = 100.0
"""By this factor an estimate is too far from the exact value to be believed; usual is 0.3 to 3."""

SUSPECTS, OUTWEIGHS = 4, 1000.0
"""So many more sites are checked where one pool costs so many times what the middle one does."""


def spot_check(subject: Subject, measurement: Measurement, samples: Samples, stages: Stages) -> Measurement:
    """Compare the sweep with the exact estimator at a few sites, spread over the depth; processes share the sites."""
    workers = subject.segmented.workers
    wanted = list(_checked(measurement))
    kinds = [_kind(measurement.curves[site.name]) for site, _ in wanted]
    few = {kind: _few(samples, kind, measurement.header.parts) for kind in kinds}
    exact = torch.zeros(len(wanted), dtype=torch.float64)
    workers.stage = "spot check"
    together = subject.segmented.together
    steps = sum(len(few[kind].batches(together)) for kind in kinds[workers.rank :: workers.size])
    with stages.stage("spot check", steps) as advance:
        for kind, some in few.items():
            own = [number for number in range(workers.rank, len(wanted), workers.size) if kinds[number] == kind]
            sites = [wanted[number] for number in own]
            found = exact_curves(subject.segmented, sites, some, subject.storage_dtype, advance) if own else ()
            for number, (_, values) in zip(own, found, strict=True):
                exact[number] = float(values.mean())
        (exact,) = workers.all_sum(exact)
    rows = []
    for (site, (fmt,)), kind, value in zip(wanted, kinds, exact.tolist(), strict=True):
        curve = measurement.curves[site.name]
        column = curve.formats.index(fmt)
        fisher = float(curve.forward[kind, :, column].mean() * curve.alignment[column])
        rows.append((site.name, fmt.name, fisher, value))
    return replace(measurement, header=replace(measurement.header, checks=rows))


def _kind(curve: Curve) -> int:
    """The first kind of text that the site has an effect on: of a vision tower, that about pictures."""
    return int(curve.forward.any(axis=(1, 2)).argmax())


def _few(samples: Samples, kind: int, parts: int) -> Samples:
    """Some samples of one of so many kinds of text."""
    each = len(samples) // parts
    own = samples[kind * each : (kind + 1) * each]
    return own[:: max(1, len(own) // CHECK_SEQUENCES)][:CHECK_SEQUENCES]


def not_believed(measurement: Measurement) -> list[str]:
    """The checked sites whose estimate is far from the exact value, and of any weight within a tolerance."""
    total = sum(curve.site.elements for curve in measurement.weights.values())
    names = []
    for name, _, fisher, exact in measurement.header.checks:
        small, large = sorted((fisher, exact))
        share = CHECK_EPS * measurement.curves[name].site.elements / total
        if large > FAR * small and large > share / FAR:
            names.append(name)
    return names


def _suspects(curves: Sequence[Curve]) -> list[Curve]:
    """Curves at which one pool outweighs all others, or whose widest format takes the whole tolerance."""

    def outweighed(curve: Curve) -> float:
        widest = curve.forward[:, :, int(curve.kl().argmin())]
        middle = np.median(widest, axis=1)
        spread = float((widest.max(1) / np.maximum(middle, 1e-300)).max()) if curve.tokens is None else 0.0
        return max(spread / OUTWEIGHS, float(curve.kl().min()) / CHECK_EPS)

    worst = sorted(curves, key=outweighed, reverse=True)[:SUSPECTS]
    return [curve for curve in worst if outweighed(curve) > 1]


def _checked(measurement: Measurement) -> Iterator[tuple[Site, Sequence[Format]]]:
    """A few weights, and where they were measured a few activations."""
    for weights in (True, False):
        found = [each for each in measurement.curves.values() if (each.site.kind == "weight") == weights]
        curves = [curve for curve in found if curve.formats and curve.energy.any() and not curve.few]
        total = sum(curve.site.elements for curve in curves)
        spread = np.linspace(0, len(curves) - 1, min(CHECK_SITES, len(curves))).round().astype(int)
        chosen = [curves[index] for index in np.unique(spread)] + _suspects(curves)
        for curve in {each.site.name: each for each in chosen}.values():
            means = curve.kl()
            share = CHECK_EPS * curve.site.elements / total
            yield curve.site, (curve.formats[int(np.abs(np.log(np.maximum(means, 1e-300) / share)).argmin())],)
