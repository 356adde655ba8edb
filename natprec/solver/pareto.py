"""Plans in three dimensions: distortion, bytes, and another cost.

A plan is dominated by another that is no worse in any of the three, and better in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from natprec.costs import Estimate
from natprec.formats import Format
from natprec.solver.objective import Objective, PlanCost, plan_cost

if TYPE_CHECKING:
    from natprec.measurement import Curve, Measurement
    from natprec.solver.plan import Plan


def priced(measurement: Measurement, plan: Plan, objective: Objective) -> PlanCost:
    """What a plan costs by another objective than the one it was solved for.

    Raises:
        InputError: a product's cost is not known.
    """
    profile, flowing = plan.profile, plan.rounded_inputs
    groups: dict[str, list[Curve]] = {}
    for name in plan.sites:
        curve = measurement.weights[name]
        groups.setdefault(curve.site.fused_group if profile.fuses else name, []).append(curve)
    parts: list[Estimate] = []
    if objective.costs is not None:
        for curves in groups.values():
            by_format: dict[Format | None, list[Curve]] = {}
            for curve in curves:  # a plan edited by hand may differ within a group
                by_format.setdefault(plan.sites[curve.site.name].format, []).append(curve)
            for fmt, own in by_format.items():
                inputs = None if fmt is None else flowing.get(own[0].site.fused_group)
                parts.append(objective.estimate(own, fmt, inputs, profile, measurement.header))
    return plan_cost(objective, parts, plan.stored_bytes, measurement.header)


def dominated(points: Sequence[Sequence[float]]) -> list[bool]:
    """Of points whose coordinates are all to be small: whether another is no larger in any, and smaller in one."""
    return [
        any(
            all(theirs <= ours for theirs, ours in zip(other, point, strict=True)) and tuple(other) != tuple(point)
            for other in points
        )
        for point in points
    ]
