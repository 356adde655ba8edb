"""The rows of the table of sites: weights, and values that flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from natprec.formats import Format
from natprec.inspection.information import Codebook
from natprec.inspection.ir import Boundary, Capture, Materialization
from natprec.inspection.ir.domains import attention_operation
from natprec.inspection.ir.flows import BUNDLE
from natprec.inspection.ir.graph import module_path, weight_of
from natprec.inspection.ir.operators import ATTENTION, operands, operator
from natprec.inspection.natural_bits import Star
from natprec.inspection.weights import WeightCodes, rounding_cost, weight_codes
from natprec.measurement import Curve, Measurement
from natprec.measurement.subject import Subject
from natprec.models.weight_sites import Site, site_weight
from natprec.solver import Plan
from natprec.utils.progress import Stages


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


def activation_values(graph: Capture, operations: Mapping[str, str], blocks: Sequence[str]) -> dict[str, fx.Node]:
    """Site name → value: a block's input (`BLOCK:stream`), a fused operation's (`OPERATION:input`), keys, values."""
    found: dict[str, fx.Node] = {}
    ahead = list(blocks)
    for node in graph.nodes:
        reads = operands(node)
        if ahead and reads and (module_path(node) == ahead[0] or module_path(node).startswith(ahead[0] + ".")):
            found[f"{ahead.pop(0)}:stream"] = reads[0]
        if weight_of(node) is not None and reads and operator(node) != "embedding":
            found.setdefault(f"{operations[module_path(node)]}:input", reads[0])
        elif operator(node) == ATTENTION:
            for kind, value in zip(("key", "value"), reads[1:3], strict=False):
                found[f"{module_path(node)}:{kind}"] = value
    return found


def weight_rows(
    subject: Subject,
    measurement: Measurement,
    found: Mapping[str, Star],
    operations: Mapping[str, str],
    widths: Mapping[str, int],
    plan: Plan | None,
    kelvin: float,
    stages: Stages,
) -> tuple[list[SiteRow], list[Boundary]]:
    """A row for each weight, and what rounding it costs where it has a format."""
    rows, boundaries = [], []
    with stages.stage("codes of weights", len(subject.sites)) as advance:
        for site in subject.sites:
            weight = site_weight(subject.model, site)
            codes = weight_codes(weight, subject.storage_dtype)
            fmt, above = shown_format(site, measurement, operations, widths, plan), None
            if plan is not None and fmt is not None and plan.sites[site.name].natural_bits is not None:
                above = fmt.bits - (plan.sites[site.name].natural_bits or 0)
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
                    width=fmt.bits if fmt is not None else Materialization(subject.storage_dtype).bits,
                    grid=_describe(codes),
                    bits_above=above,
                )
            )
            advance(site.name)
    return rows, boundaries


def shown_format(
    site: Site, measurement: Measurement, operations: Mapping[str, str], widths: Mapping[str, int], plan: Plan | None
) -> Format | None:
    """The format that an inspection gives a weight: the plan's, or else the best of its domain's width."""
    if plan is not None:
        return plan.sites[site.name].format
    if site.fused_group not in widths and operations.get(site.name) not in widths:
        return None
    width = max(widths.get(operations.get(use, use), 0) for use in (*site.uses, site.fused_group))
    return _format_of(measurement.curves[site.name], width)


def _format_of(curve: Curve, width: int) -> Format | None:
    """The measured format of a width with the least distortion."""
    measured = zip(curve.kl(), curve.formats, strict=True)
    of_width = [(kl, fmt) for kl, fmt in measured if fmt.bits == width]
    return min(of_width)[1] if of_width else None


def _describe(codes: WeightCodes) -> dict[str, Any] | None:
    if codes.grid is None or codes.grid.best is None:
        return None
    offset, bits = codes.grid.best
    return {"group_size": codes.grid.group_size, "offset": offset, "bits": bits, "bits_by_offset": codes.grid.bits}


def activation_rows(
    values: Mapping[str, fx.Node],
    books: Mapping[fx.Node, Codebook],
    found: Mapping[str, Star],
    widths: Mapping[str, int],
    subject: Subject,
) -> list[SiteRow]:
    """A row for each value that `activation_values` found."""
    rows = []
    for name, node in values.items():
        book = books[node]
        operation, _, kind = name.rpartition(":")
        owner = attention_operation(operation) if kind in ("key", "value") else operation
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
                width=widths.get(owner, Materialization(subject.storage_dtype).bits),
                effective_bits=node.meta[BUNDLE].entropy_bits,
            )
        )
    return rows
