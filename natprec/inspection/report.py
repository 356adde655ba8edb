"""An inspection as JSON and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from natprec.inspection.inspect import Inspection
from natprec.inspection.ir import Boundary
from natprec.inspection.lowered import LoweredBlock
from natprec.inspection.rows import SiteRow
from natprec.solver import Plan
from natprec.utils.human import human_count
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


def tables(inspection: Inspection, top: int | None = None) -> RenderableType:
    """Sums, then the largest sites and the boundaries that erase most, for a terminal of 80 columns.

    Args:
        top: rows of each table; None: all.
    """
    found = totals(inspection.boundaries)
    parts: list[RenderableType] = [
        f"{found['boundaries']} boundaries, {found['free']} free, {found['fused']} in an epilogue;",
        f"{found['erased_bits']:.4g} bits erased, at least {found['landauer_joules']:.3g} J",
    ]
    for kind, value in inspection.correlation.items():
        parts.append(
            f"entropy orders b* of {kind} sites with a rank correlation of {_correlation(inspection, kind, value)}"
        )
    if inspection.plan is not None:
        sums = budget(inspection.plan)
        spent = "" if sums["spent"] is None else f"{sums['spent']:.1%} of eps {sums['eps']:g} spent; "
        each = max(1, sums["weights"])
        parts.append(
            f"{spent}bits per weight above b*: {sums['bits_above_b_star'] / each:.3f}, "
            f"below: {sums['bits_below_b_star'] / each:.3f}"
        )
    largest = sorted(inspection.sites, key=lambda row: -row.elements)[:top] if top else inspection.sites
    erasing = sorted(inspection.boundaries, key=lambda each: -each.erased_bits)[:top] if top else inspection.boundaries
    parts += ["", _sites(largest), *_rest(len(inspection.sites), len(largest), "largest sites")]
    parts += ["", _boundaries(erasing), *_rest(len(inspection.boundaries), len(erasing), "boundaries that erase most")]
    if inspection.lowered is not None:
        parts += ["", _lowered(inspection.lowered)]
    return Group(*parts, *inspection.notes)


def _rest(count: int, shown: int, what: str) -> list[str]:
    """How many rows are left out."""
    return [f"the {shown} {what} of {count}; --top 0 or --json for all"] if shown < count else []


def _correlation(inspection: Inspection, kind: str, value: float) -> str:
    """A dash where all b* are equal, which nothing orders."""
    stars = {row.b_star.forward for row in inspection.sites if (row.kind == "weight") == (kind == "weight")}
    return f"{value:+.2f}" if len(stars) > 1 else "-"


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


NAME = 26
"""Columns of a name: its end, which tells more than its beginning."""


def _name(text: str, width: int = NAME) -> str:
    """A module path without what all have in common."""
    text = text.removeprefix("model.")
    return text if len(text) <= width else "…" + text[1 - width :]


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for header in left:
        table.add_column(header, no_wrap=True)
    for header in right:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _sites(rows: Sequence[SiteRow]) -> Table:
    """`b*` of the forward flow, the backward flow and both."""
    table = _table(("site", "kind"), ("elements", "H", "codes", "lossless", "b*", "width"))
    for row in rows:
        star = (row.b_star.forward, row.b_star.backward, row.b_star.dual)
        width = f"{row.width}" if row.bits_above is None else f"{row.width} ({row.bits_above:+d})"
        table.add_row(
            _name(row.name, 25), row.kind, human_count(row.elements), f"{row.entropy_bits:.2f}",
            str(row.realized_codes), _lossless(row), "/".join("-" if bits is None else str(bits) for bits in star),
            width,
        )  # fmt: skip
    return table


def _lossless(row: SiteRow) -> str:
    if row.grid is None:
        return str(row.lossless_bits)
    offset = {"none": "", "integer": "z", "float": "f"}[row.grid["offset"]]
    return f"{row.lossless_bits} g{row.grid['group_size']}{offset}"


def _boundaries(boundaries: Sequence[Boundary]) -> Table:
    table = _table(("from", "to"), ("bits", "H", "collide", "erased", ""))
    for each in boundaries:
        word = "free" if each.free else "erases"
        table.add_row(
            _name(each.source, 22), _name(each.target, 22), f"{each.source_bits}→{each.target_bits}",
            f"{each.source_entropy_bits:.1f}", str(each.colliding_codes), f"{each.erased_bits:.3g}",
            f"{word}, fused" if each.fused else word,
        )  # fmt: skip
    return table
