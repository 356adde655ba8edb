"""A look at a few sites with the exact estimator, beside what the sweep found there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from natprec.formats import Format
from natprec.measurement.exact import exact_curves
from natprec.measurement.table import Measurement
from natprec.parallel.workers import Workers
from natprec.progress import Stages
from natprec.sites import Site
from natprec.staged.batches import batches
from natprec.subject import Subject

CHECK_SITES = 4
CHECK_SEQUENCES = 2
CHECK_EPS = 0.05
"""The spot check takes, at each checked site, the width that this tolerance would give it."""


def spot_check(
    subject: Subject, measurement: Measurement, ids: Tensor, stages: Stages, workers: Workers | None = None
) -> Measurement:
    """Compare the sweep with the exact estimator at a few sites, spread over the depth; processes share the sites."""
    workers = workers or Workers()
    wanted = list(_checked(measurement))
    own = wanted[workers.rank :: workers.size]
    first = ids[: len(ids) // measurement.header.parts]  # of the first kind of text, as the Fisher values below
    few = first[:: max(1, len(first) // CHECK_SEQUENCES)][:CHECK_SEQUENCES]
    exact = torch.zeros(len(wanted), dtype=torch.float64)
    workers.stage = "spot check"
    with stages.stage("spot check", len(own) * len(batches(*few.shape, routed=subject.staged.routed))) as advance:
        found = exact_curves(subject.staged, own, few, subject.storage_dtype, advance) if own else ()
        for number, (_, values) in enumerate(found):
            exact[workers.rank + number * workers.size] = float(values.mean())
        (exact,) = workers.all_sum(exact)
    rows = []
    for (site, (fmt,)), value in zip(wanted, exact.tolist(), strict=True):
        curve = measurement.curves[site.name]
        column = curve.formats.index(fmt)
        fisher = float(curve.forward[0, :, column].mean() * curve.alignment[column])
        rows.append((site.name, fmt.name, fisher, value))
    return replace(measurement, header=replace(measurement.header, checks=rows))


def _checked(measurement: Measurement) -> Iterator[tuple[Site, Sequence[Format]]]:
    """A few weights, and where they were measured a few activations."""
    for weights in (True, False):
        found = [each for each in measurement.curves.values() if (each.site.kind == "weight") == weights]
        curves = [curve for curve in found if curve.formats and curve.energy.any() and not curve.few]
        total = sum(curve.site.elements for curve in curves)
        for index in np.unique(np.linspace(0, len(curves) - 1, min(CHECK_SITES, len(curves))).round().astype(int)):
            curve = curves[index]
            means = curve.kl()
            share = CHECK_EPS * curve.site.elements / total
            yield curve.site, (curve.formats[int(np.abs(np.log(np.maximum(means, 1e-300) / share)).argmin())],)
