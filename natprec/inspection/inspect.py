"""The whole flow of `natprec inspect`.

model → graph → b* of its sites → domains → codes that occur → boundaries and their cost
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, fx

from natprec.errors import BoundError, unknown
from natprec.formats import NumberFormat
from natprec.information import Codebook
from natprec.information.landauer import ROOM_KELVIN
from natprec.inspection.stars import Star, stars, unit_widths
from natprec.inspection.weights import WeightCodes, rounding_cost, weight_codes
from natprec.ir import Boundary, Capture, Domain, Gauge, assign_domains, capture, cost, find_edges, find_units
from natprec.ir.bundle import require_bound
from natprec.ir.domains import attention_unit
from natprec.ir.flows import BUNDLE, flow
from natprec.ir.graph import module_path, weight_of
from natprec.ir.observe import codebooks
from natprec.ir.operators import ATTENTION, operands, operator
from natprec.measurement import Curve, Measurement
from natprec.progress import Stages
from natprec.sites import site_weight
from natprec.solver import Plan
from natprec.statistics import rank_correlation
from natprec.subject import Subject


@dataclass(frozen=True)
class SiteRow:
    """One site of the table.

    Attributes:
        kind: 'weight', 'activation', 'key' or 'value'.
        elements: of the weight, or of the activation's values that were counted.
        entropy_bits: of the codes that occur, per element: reported, it decides nothing.
        effective_bits: the smaller of both flows' bounds at an activation (T15).
        grid: where a weight lies on a grid: its group size, offset and bits.
        width: bits of its domain, or its format in the plan.
        bits_above: in a plan, width beyond b* (T18); negative where the plan gives less than b*.
    """

    name: str
    kind: str
    elements: int
    entropy_bits: float
    realized_codes: int
    lossless_bits: int
    unseen_mass: float | None
    b_star: Star
    width: int
    effective_bits: float | None = None
    grid: dict[str, Any] | None = None
    bits_above: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "b_star": self.b_star.to_json()}


@dataclass(frozen=True)
class Inspection:
    """All that was found.

    Attributes:
        correlation: kind → Spearman's rank correlation of entropy and forward b* over its sites.
        units: unit → modules whose weights it has; `widths`: unit → bits of its values, in a plan of its weights.
        notes: what a reader should know of how it was found.
    """

    capture: Capture
    sites: list[SiteRow]
    domains: list[Domain]
    boundaries: list[Boundary]
    correlation: dict[str, float]
    units: dict[str, list[str]]
    widths: dict[str, int]
    plan: Plan | None = None
    notes: list[str] = field(default_factory=list)


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
        graph = capture(subject.model, model_inputs(subject, ids[:1]))
    units = {
        unit if operator(node) == ATTENTION else module_path(node): unit
        for node, unit in find_units(graph).items()
        if weight_of(node) is not None or operator(node) == ATTENTION
    }
    found = stars(measurement, eps, eps_bwd)
    widths = unit_widths(units, measurement, found) if plan is None else _planned_widths(plan, units)
    domains = assign_domains(graph, widths, Gauge.of_dtype(subject.storage_dtype))
    edges = find_edges(graph)
    values = activation_values(graph, units, subject.staged.block_names)
    nodes = {edge.value for edge in edges} | set(values.values())
    with stages.stage("count codes", len(ids) + len(held_out)) as advance:
        books, others = (
            codebooks(graph, [model_inputs(subject, row[None]) for row in text], nodes, subject.storage_dtype, advance)
            for text in (ids, held_out)
        )
    flow(graph, {node: book.entropy_bits for node, book in books.items()}, _vocabulary(subject))
    boundaries = [cost(edge, books[edge.value], others[edge.value], kelvin) for edge in edges]
    rows, rounded = _weights(subject, measurement, found, units, widths, plan, kelvin, stages)
    rows += _activations(values, books, found, widths, subject)
    notes = [] if graph.by == "torch.export" else [f"export fails at module {graph.culprit!r}: {graph.reason}"]
    if not any(curve.site.kind != "weight" for curve in measurement.curves.values()):
        notes.append("activations were not measured: the widths of domains are those that their weights need")
    members: dict[str, list[str]] = {unit: [] for unit in units.values()}
    for module, unit in units.items():
        members[unit] += [module] if module != unit or not unit.endswith(":attention") else []
    storage = Gauge.of_dtype(subject.storage_dtype).bits
    drawn = {
        unit: widths.get(unit, storage) if plan is None or not modules else _planned(subject, plan, modules)
        for unit, modules in members.items()
    }
    return Inspection(graph, rows, domains, rounded + boundaries, _correlation(rows), members, drawn, plan, notes)


def model_inputs(subject: Subject, ids: Tensor) -> dict[str, Any]:
    """What the model's forward is called with."""
    return {"input_ids": ids, "use_cache": False} if subject.kind == "causal" else {"input_ids": ids}


def _vocabulary(subject: Subject) -> int:
    return int(subject.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def activation_values(graph: Capture, units: Mapping[str, str], blocks: Sequence[str]) -> dict[str, fx.Node]:
    """Site name → the value: a block's input (`BLOCK:stream`), a unit's (`UNIT:input`), keys and values."""
    found: dict[str, fx.Node] = {}
    ahead = list(blocks)
    for node in graph.nodes:
        reads = operands(node)
        if ahead and reads and (module_path(node) == ahead[0] or module_path(node).startswith(ahead[0] + ".")):
            found[f"{ahead.pop(0)}:stream"] = reads[0]
        if weight_of(node) is not None and reads and operator(node) != "embedding":
            found.setdefault(f"{units[module_path(node)]}:input", reads[0])
        elif operator(node) == ATTENTION:
            for kind, value in zip(("key", "value"), reads[1:3], strict=False):
                found[f"{module_path(node)}:{kind}"] = value
    return found


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


def _planned_widths(plan: Plan, units: Mapping[str, str]) -> dict[str, int]:
    """Unit → bits in which the plan hands it its input, or its keys and values; others read 16 bits."""
    widths = {unit: choice.format.bits for unit, choice in plan.inputs.items() if choice.format is not None}
    attentions = [] if plan.cache is None else [unit for unit in units.values() if unit.endswith(":attention")]
    return widths | {unit: plan.cache.format.bits for unit in attentions if plan.cache is not None}


def _planned(subject: Subject, plan: Plan, modules: list[str]) -> int:
    """Widest format of a unit's weights in a plan; that of the model's dtype where there is none."""
    names = {use: site.name for site in subject.sites for use in site.uses}
    formats = [plan.sites[names[module]].format for module in modules if module in names]
    known = [fmt.bits for fmt in formats if fmt is not None]
    return max(known) if known else Gauge.of_dtype(subject.storage_dtype).bits


def _weights(
    subject: Subject,
    measurement: Measurement,
    found: Mapping[str, Star],
    units: Mapping[str, str],
    widths: Mapping[str, int],
    plan: Plan | None,
    kelvin: float,
    stages: Stages,
) -> tuple[list[SiteRow], list[Boundary]]:
    rows, boundaries = [], []
    with stages.stage("codes of weights", len(subject.sites)) as advance:
        for site in subject.sites:
            weight = site_weight(subject.model, site)
            codes = weight_codes(weight, subject.storage_dtype)
            fmt, above = None, None
            if plan is not None:
                choice = plan.sites[site.name]
                fmt = choice.format
                if choice.natural_bits is not None and fmt is not None:
                    above = fmt.bits - choice.natural_bits
            elif site.unit in widths or units.get(site.name) in widths:
                width = max(widths.get(units.get(use, use), 0) for use in (*site.uses, site.unit))
                fmt = _format_of(measurement.curves[site.name], width)
            if fmt is not None:
                boundaries.append(rounding_cost(site.name, weight, codes, fmt, subject.storage_dtype, kelvin))
            rows.append(
                SiteRow(
                    name=site.name,
                    kind="weight",
                    elements=site.elements,
                    entropy_bits=codes.entropy_bits,
                    realized_codes=codes.realized_codes,
                    lossless_bits=codes.lossless_bits,
                    unseen_mass=None,
                    b_star=found.get(site.name, Star(None, None)),
                    width=fmt.bits if fmt is not None else Gauge.of_dtype(subject.storage_dtype).bits,
                    grid=_describe(codes),
                    bits_above=above,
                )
            )
            advance(site.name)
    return rows, boundaries


def _format_of(curve: Curve, width: int) -> NumberFormat | None:
    """The measured format of a width with the least distortion."""
    measured = zip(curve.kl(), curve.formats, strict=True)
    of_width = [(kl, fmt) for kl, fmt in measured if isinstance(fmt, NumberFormat) and fmt.bits == width]
    return min(of_width)[1] if of_width else None


def _describe(codes: WeightCodes) -> dict[str, Any] | None:
    if codes.grid is None or codes.grid.best is None:
        return None
    offset, bits = codes.grid.best
    return {"group_size": codes.grid.group_size, "offset": offset, "bits": bits, "bits_by_offset": codes.grid.bits}


def _activations(
    values: Mapping[str, fx.Node],
    books: Mapping[fx.Node, Codebook],
    found: Mapping[str, Star],
    widths: Mapping[str, int],
    subject: Subject,
) -> list[SiteRow]:
    rows = []
    for name, node in values.items():
        book = books[node]
        unit, _, kind = name.rpartition(":")
        owner = attention_unit(unit) if kind in ("key", "value") else unit
        rows.append(
            SiteRow(
                name=name,
                kind=kind if kind in ("key", "value") else "activation",
                elements=book.elements,
                entropy_bits=book.entropy_bits,
                realized_codes=book.size,
                lossless_bits=book.lossless_bits,
                unseen_mass=book.unseen_mass,
                b_star=found.get(name, Star(None, None)),
                width=widths.get(owner, Gauge.of_dtype(subject.storage_dtype).bits),
                effective_bits=node.meta[BUNDLE].entropy_bits,
            )
        )
    return rows


def _correlation(rows: list[SiteRow]) -> dict[str, float]:
    """Over the sites of each kind that have a b*: at least three, or it says nothing."""
    found: dict[str, float] = {}
    for kind in dict.fromkeys(row.kind for row in rows):
        known = [(row.entropy_bits, row.b_star.forward) for row in rows if row.kind == kind and row.b_star.forward]
        if len(known) > 2:
            entropies, bits = (np.array(column, dtype=np.float64) for column in zip(*known, strict=True))
            found[kind] = rank_correlation(entropies, bits)
    return found
