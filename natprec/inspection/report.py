"""An inspection as JSON and as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from natprec.inspection.inspect import Inspection
from natprec.inspection.ir import Boundary
from natprec.inspection.lowered import LoweredBlock
from natprec.inspection.rows import SiteRow
from natprec.pipeline.summary import human_count
from natprec.solver import Plan
from natprec.utils.records import without_places


def to_json(inspection: Inspection) -> dict[str, Any]:
    """One object: `sites`, `boundaries`, `domains`, and what they add up to."""
    capture = inspection.capture
    return {
        "captured_by": capture.by,
        "export_failed_at": capture.culprit,
        "export_error": capture.reason and without_places(capture.reason),
        "sites": [row.to_json() for row in inspection.sites],
        "boundaries": [boundary.to_json() for boundary in inspection.boundaries],
        "domains": [
            {
                "name": each.name,
                "format": each.materialization.name,
                "sites": list(each.sites),
                "operators": each.operators,
            }
            for each in inspection.domains
        ],
        "entropy_orders_b_star": inspection.correlation,
        "totals": totals(inspection.boundaries),
        "budget": None if inspection.plan is None else budget(inspection.plan),
        "lowered": None if inspection.lowered is None else inspection.lowered.to_json(),
        "notes": [without_places(note) for note in inspection.notes],
    }


def totals(boundaries: list[Boundary]) -> dict[str, Any]:
    """Sums over boundaries."""
    return {
        "boundaries": len(boundaries),
        "free": sum(each.free for each in boundaries),
        "fused": sum(each.fused for each in boundaries),
        "erased_bits": sum(each.erased_bits for each in boundaries),
        "landauer_joules": sum(each.landauer_joules for each in boundaries),
    }


def budget(plan: Plan) -> dict[str, Any]:
    """T18: too few bits destroy information, too many are carried for nothing."""
    chosen = [
        (choice.format.bits - choice.natural_bits, choice.elements)
        for choice in plan.sites.values()
        if choice.format is not None and choice.natural_bits is not None
    ]
    weights = sum(count for _, count in chosen)
    return {
        "eps": plan.eps,
        "kl_predicted": plan.kl_predicted,
        "spent": None if plan.eps is None else plan.kl_predicted / plan.eps,
        "bits_above_b_star": sum(max(0, above) * count for above, count in chosen),
        "bits_below_b_star": sum(max(0, -above) * count for above, count in chosen),
        "weights": weights,
    }


def tables(inspection: Inspection) -> RenderableType:
    """Sites, boundaries and sums, for a terminal."""
    parts: list[RenderableType] = [_sites(inspection.sites), "", _boundaries(inspection.boundaries), ""]
    found = totals(inspection.boundaries)
    parts.append(
        f"{found['boundaries']} boundaries, {found['free']} free, {found['fused']} in an epilogue; "
        f"{found['erased_bits']:.4g} bits erased, at least {found['landauer_joules']:.3g} J"
    )
    for kind, value in inspection.correlation.items():
        parts.append(f"entropy orders b* of {kind} sites with a rank correlation of {value:+.2f}")
    if inspection.plan is not None:
        sums = budget(inspection.plan)
        spent = "" if sums["spent"] is None else f"{sums['spent']:.1%} of eps {sums['eps']:g} spent; "
        each = max(1, sums["weights"])
        parts.append(
            f"{spent}carried above b*: {sums['bits_above_b_star'] / each:.3f} bits per weight, "
            f"below it: {sums['bits_below_b_star'] / each:.3f}"
        )
    if inspection.lowered is not None:
        parts += ["", _lowered(inspection.lowered)]
    return Group(*parts, *inspection.notes)


def _lowered(block: LoweredBlock) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in (f"{block.block}, lowered", "format", "kernel", "epilogue"):
        table.add_column(header, no_wrap=True)
    for weight, call in block.calls.items():
        table.add_row(weight.removeprefix(block.block + "."), call["format"], call["kernel"], call["epilogue"])
    return Group(
        table,
        f"On {block.tokens} tokens the lowered block differs from the dense block with the same weights by "
        f"{block.kernels:.2e} of its output,",
        f"and that dense block from the original by {block.rounding:.2e} (root mean squares).",
    )


def _sites(rows: list[SiteRow]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("site", "kind"):
        table.add_column(header, no_wrap=True)
    for header in ("elements", "H", "codes", "lossless", "b* fwd", "bwd", "both", "width"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        star = (row.b_star.forward, row.b_star.backward, row.b_star.dual)
        width = f"{row.width}" if row.bits_above is None else f"{row.width} ({row.bits_above:+d})"
        table.add_row(
            row.name, row.kind, human_count(row.elements), f"{row.entropy_bits:.2f}", str(row.realized_codes),
            _lossless(row), *("-" if bits is None else str(bits) for bits in star), width,
        )  # fmt: skip
    return table


def _lossless(row: SiteRow) -> str:
    if row.grid is None:
        return str(row.lossless_bits)
    offset = {"none": "", "integer": " zero point", "float": " float offset"}[row.grid["offset"]]
    return f"{row.lossless_bits} g{row.grid['group_size']}{offset}"


def _boundaries(boundaries: list[Boundary]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("from", "to"):
        table.add_column(header, no_wrap=True)
    for header in ("bits", "H", "codes", "collide", "erased bits", "joules", ""):
        table.add_column(header, justify="right", no_wrap=True)
    for each in boundaries:
        word = "free" if each.free else "erases"
        table.add_row(
            each.source, each.target, f"{each.source_bits} → {each.target_bits}", f"{each.source_entropy_bits:.2f}",
            str(each.realized_codes), str(each.colliding_codes), f"{each.erased_bits:.3g}",
            f"{each.landauer_joules:.2g}", f"{word}, fused" if each.fused else word,
        )  # fmt: skip
    return table
