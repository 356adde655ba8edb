"""b* of every site for both flows and both at once (T1, T3, T4); widths of fused operations, from them or a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from natprec.formats import Format
from natprec.inspection.ir import Materialization
from natprec.inspection.ir.domains import attention_operation
from natprec.measurement import Curve, Measurement
from natprec.measurement.subject import Subject
from natprec.solver.choices import dual
from natprec.solver.plan import Plan
from natprec.solver.site_costs import backward_bits, fewest_bits


@dataclass(frozen=True)
class Star:
    """Natural precision in bits; None where no measured width keeps the tolerance."""

    forward: int | None
    backward: int | None

    @property
    def dual(self) -> int | None:
        """The fewest bits that keep both tolerances."""
        return dual(self.forward, self.backward)

    def to_json(self) -> dict[str, int | None]:
        """As `natprec inspect --json` prints it."""
        return {"forward": self.forward, "backward": self.backward, "dual": self.dual}


def stars(measurement: Measurement, eps: float, eps_bwd: float) -> dict[str, Star]:
    """Site name → b*, the same tolerance at every site (T1); sites that nothing reached have none.

    Args:
        eps: distortion, in the measurement's unit.
        eps_bwd: of the gradient's energy, the share that may be lost.
    """
    return {name: _star(curve, eps, eps_bwd) for name, curve in measurement.curves.items()}


def _star(curve: Curve, eps: float, eps_bwd: float) -> Star:
    if not curve.energy.any():
        return Star(None, None)
    return Star(fewest_bits(curve.formats, curve.kl(), eps), backward_bits(curve, eps_bwd))


def operation_widths(
    operations: Mapping[str, str], measurement: Measurement, found: Mapping[str, Star]
) -> dict[str, int]:
    """Fused operation → the largest forward b* of its sites, of whatever kind was measured.

    Args:
        operations: module → fused operation that its operator belongs to.
    """
    widths: dict[str, int] = {}
    unknown: set[str] = set()
    for name, star in found.items():
        site = measurement.curves[name].site
        readers = [attention_operation(use) for use in site.uses] if site.kind in ("key", "value") else list(site.uses)
        for operation in {operations[reader] for reader in readers if reader in operations}:
            if star.forward is None:
                unknown.add(operation)
            else:
                widths[operation] = max(widths.get(operation, 0), star.forward)
    return {operation: bits for operation, bits in widths.items() if operation not in unknown}


def planned_formats(plan: Plan, operations: Mapping[str, str]) -> dict[str, Format]:
    """Fused operation → format in which the plan hands it its input, or its keys and values; others read 16 bits."""
    attentions = (
        []
        if plan.cache is None
        else [operation for operation in operations.values() if operation.endswith(":attention")]
    )
    return plan.rounded_inputs | {operation: plan.cache.format for operation in attentions if plan.cache is not None}


def planned_bits(subject: Subject, plan: Plan, modules: list[str]) -> int:
    """Widest format of a fused operation's weights in a plan; that of the model's dtype where there is none."""
    names = {use: site.name for site in subject.sites for use in site.uses}
    formats = [plan.sites[names[module]].format for module in modules if module in names]
    known = [fmt.bits for fmt in formats if fmt is not None]
    return max(known) if known else Materialization(subject.storage_dtype).bits
