"""The solver's staircase as plain data, so that the page solves any tolerance or size by itself (`solver.js`).

All that `natprec.solver.solve` adds up is added up here, once; what is left is a look-up in running sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from natprec.config import NOT_ROUNDED
from natprec.costs.choose import BYTES
from natprec.distortions.registry import margin_of
from natprec.formats import EngineProfile, Format
from natprec.measurement import Measurement
from natprec.solver import Plan
from natprec.solver.allocation import lower_hull
from natprec.solver.fused_groups import FusedGroup
from natprec.solver.problem import opened
from natprec.solver.site_costs import stored_bytes
from natprec.solver.uniform import common_formats


def staircase_data(measurement: Measurement, plan: Plan) -> dict[str, Any] | None:
    """What `solver.js` takes; None where a plan has a target for each site, which no staircase answers, or is the
    least of something else than bytes, whose costs are not in the measurement.

    Returns:
        groups: each with its `sites`, `elements`, and, format by format, names, bits, `kl`, `stored` (what the solver
            saves) and `bytes`; `hull`: its useful formats, widest first.
        start, group, format, kl, stored: the staircase (see `natprec.solver.allocation.Staircase`).
        common: numbers of the groups that share the formats of most weights.
        headroom, lost, fixed: see `natprec.solver.solve`.
    """
    if plan.eps_scope == "site" or plan.minimize != BYTES:
        return None
    kv = NOT_ROUNDED if plan.cache is None else str(plan.cache.format.bits)
    given = opened(
        measurement, plan.engine, plan.rounding, plan.activations, kv, plan.eps_bwd, plan.gpu, apart=bool(plan.untied)
    )
    common = common_formats(given.decisions, [group.pairs for group in given.groups])
    return {
        "groups": [_group(group, given.profile) for group in given.groups],
        "start": list(given.stairs.start),
        "group": given.stairs.decision.tolist(),
        "format": given.stairs.format.tolist(),
        "kl": given.stairs.kl.tolist(),
        "stored": given.stairs.stored.tolist(),
        "common": [number for number, group in enumerate(given.groups) if group.pairs == common],
        "headroom": 1 - margin_of(measurement.header.distortion, plan.margin),
        "lost": given.lost,
        "fixed": given.fixed,
        "elements": sum(group.decision.elements for group in given.groups),
        "unquantized": [[name, measurement.curves[name].site.elements] for name in given.unquantized],
    }


def _group(group: FusedGroup, profile: EngineProfile) -> dict[str, Any]:
    decision = group.decision
    kept: tuple[Format | None, ...] = (*group.formats, None)
    sizes = {fmt: sum(stored_bytes(curve, fmt, profile) for curve in group.curves) for fmt in kept}
    return {
        "name": decision.name,
        "sites": [curve.site.name for curve in group.curves],
        "elements": decision.elements,
        "formats": [pair.name for pair in group.pairs],
        "bits": [pair.bits for pair in group.pairs],
        "kl": decision.kl.tolist(),
        "stored": np.asarray(decision.stored).tolist(),
        "bytes": [sizes[pair.weight] for pair in group.pairs],
        "hull": lower_hull(decision.stored, decision.kl),
    }
