"""The whole flow of `natprec inspect`.

model → graph → b* of its sites → domains → codes that occur → boundaries and their cost
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from natprec.config import ROOM_KELVIN
from natprec.errors import BoundError, unknown
from natprec.formats import Format
from natprec.inspection.ir import (
    Boundary,
    Capture,
    Domain,
    Materialization,
    assign_domains,
    capture,
    cost,
    find_edges,
    find_fused_operations,
)
from natprec.inspection.ir.bundle import require_bound
from natprec.inspection.ir.flows import flow
from natprec.inspection.ir.graph import module_path, weight_of
from natprec.inspection.ir.lint import double_roundings
from natprec.inspection.ir.observe import codebooks
from natprec.inspection.ir.operators import ATTENTION, operator
from natprec.inspection.lowered import LoweredBlock
from natprec.inspection.natural_bits import operation_widths, planned_bits, planned_formats, stars
from natprec.inspection.rows import SiteRow, activation_rows, activation_values, shown_format, weight_rows
from natprec.measurement import Measurement
from natprec.measurement.subject import Subject
from natprec.solver import Plan
from natprec.utils.progress import Stages
from natprec.utils.statistics import rank_correlation


@dataclass(frozen=True)
class Inspection:
    """All that was found.

    Attributes:
        correlation: kind → Spearman's rank correlation of entropy and forward b* over its sites.
        operations: fused operation → modules whose weights it has; `widths`: fused operation → bits of its values, in a
            plan of its weights.
        notes: what a reader should know of how it was found.
        formats: weight → the format that its row shows; `lowered`: what running a block in them showed, if asked for.
    """

    capture: Capture
    sites: list[SiteRow]
    domains: list[Domain]
    boundaries: list[Boundary]
    correlation: dict[str, float]
    operations: dict[str, list[str]]
    widths: dict[str, int]
    plan: Plan | None = None
    notes: list[str] = field(default_factory=list)
    formats: dict[str, Format | None] = field(default_factory=dict)
    lowered: LoweredBlock | None = None


def inspect(
    subject: Subject,
    ids: Tensor,
    held_out: Tensor,
    measurement: Measurement,
    *,
    eps: float,
    eps_bwd: float,
    plan: Plan | None = None,
    kelvin: float = ROOM_KELVIN,
    stages: Stages | None = None,
) -> Inspection:
    """Everything of T7-T9, T13-T15 and T18 about one model.

    Args:
        ids, held_out: (sequences, time) tokens, of one length.
        measurement: whose b*(eps) and b*(eps_bwd) give the domains their widths.
        plan: the formats are those of the plan instead.
    """
    stages = stages or Stages(quiet=True)
    with stages.stage("capture the graph"):
        graph = capture(subject.model, subject.task.inputs(ids[:1]))
    operations = {
        operation if operator(node) == ATTENTION else module_path(node): operation
        for node, operation in find_fused_operations(graph).items()
        if weight_of(node) is not None or operator(node) == ATTENTION
    }
    found = stars(measurement, eps, eps_bwd)
    planned = {} if plan is None else planned_formats(plan, operations)
    widths = (
        {operation: fmt.bits for operation, fmt in planned.items()}
        if plan
        else operation_widths(operations, measurement, found)
    )
    domains = assign_domains(graph, planned or widths, Materialization(subject.storage_dtype))
    edges = find_edges(graph)
    values = activation_values(graph, operations, subject.segmented.block_names)
    nodes = {edge.value for edge in edges} | set(values.values())
    with stages.stage("count codes", len(ids) + len(held_out)) as advance:
        books, others = (
            codebooks(graph, [subject.task.inputs(row[None]) for row in text], nodes, subject.storage_dtype, advance)
            for text in (ids, held_out)
        )
    flow(graph, {node: book.entropy_bits for node, book in books.items()}, _vocabulary(subject))
    boundaries = [cost(edge, books[edge.value], others[edge.value], kelvin) for edge in edges]
    rows, rounded = weight_rows(subject, measurement, found, operations, widths, plan, kelvin, stages)
    rows += activation_rows(values, books, found, widths, subject)
    notes = [] if graph.by == "torch.export" else [f"export fails at module {graph.culprit!r}: {graph.reason}"]
    if not any(curve.site.kind != "weight" for curve in measurement.curves.values()):
        notes.append("activations were not measured: the widths of domains are those that their weights need")
    members: dict[str, list[str]] = {operation: [] for operation in operations.values()}
    for module, operation in operations.items():
        members[operation] += [module] if module != operation or not operation.endswith(":attention") else []
    storage = Materialization(subject.storage_dtype).bits
    drawn = {
        operation: widths.get(operation, storage)
        if plan is None or not modules
        else planned_bits(subject, plan, modules)
        for operation, modules in members.items()
    }
    notes += [str(found) for found in double_roundings(graph)]
    formats = {site.name: shown_format(site, measurement, operations, widths, plan) for site in subject.sites}
    return Inspection(
        graph, rows, domains, rounded + boundaries, _correlation(rows), members, drawn, plan, notes, formats
    )


def _vocabulary(subject: Subject) -> int:
    return int(subject.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def require_explicit(inspection: Inspection) -> None:
    """`--strict`: every boundary must take what it receives, unless a plan says what is compressed, and where.

    Raises:
        BoundError: names the first that does not, and how many.
    """
    violations = []
    for boundary in inspection.boundaries if inspection.plan is None else []:
        try:
            where = f"{boundary.source} → {boundary.target}"
            require_bound(boundary.target_bits, boundary.source_entropy_bits, where)
        except BoundError as error:
            violations.append(str(error))
    if violations:
        raise BoundError(
            f"{violations[0]} (and {len(violations) - 1} more boundaries); "
            "give a plan that quantizes there (--plan), or a smaller --eps"
        )


def keep_named(inspection: Inspection, name: str) -> Inspection:
    """Only the sites and boundaries at or inside one module.

    Raises:
        InputError: nothing has that name; the nearest are listed.
    """

    def inside(other: str) -> bool:
        return other == name or other.startswith((f"{name}.", f"{name}:"))

    sites = [row for row in inspection.sites if inside(row.name)]
    boundaries = [each for each in inspection.boundaries if inside(each.source) or inside(each.target)]
    if not sites and not boundaries:
        raise unknown("site", name, (row.name for row in inspection.sites))
    return replace(inspection, sites=sites, boundaries=boundaries)


def _correlation(rows: list[SiteRow]) -> dict[str, float]:
    """Over the sites of each kind that have a b*: at least three, or it says nothing."""
    found: dict[str, float] = {}
    for kind in dict.fromkeys(row.kind for row in rows):
        known = [(row.entropy_bits, row.b_star.forward) for row in rows if row.kind == kind and row.b_star.forward]
        if len(known) > 2:
            entropies, bits = (np.array(column, dtype=np.float64) for column in zip(*known, strict=True))
            found[kind] = rank_correlation(entropies, bits)
    return found
