"""Domains (T14): connected regions of the graph whose operations share one materialization.

A fused operation is a weight's operator, or several that read one tensor and stand in one module (query, key and
value), and the per-element operators after them whose every operand comes from the same fused operation: what an
epilogue could hold. Each fused operation gets the width of its sites, the largest (T15: measured b* decides).
Everything else, norms, attention, the residual stream, keeps the dtype of the model. Neighbours with equal
materializations then are one domain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from natprec.formats import Format
from natprec.inspection.ir.bundle import Materialization
from natprec.inspection.ir.graph import Capture, module_path, weight_of
from natprec.inspection.ir.operators import ATTENTION, EPILOGUE, operands, operator

KEY = "natprec"
"""Where a node's meta holds what the IR knows of it."""


@dataclass(frozen=True)
class Place:
    """Of one node.

    Attributes:
        operation: the name of the fused operation that it belongs to; None outside of all.
        materialization: of the values that it computes.
        domain: name of the domain.
    """

    operation: str | None
    materialization: Materialization
    domain: str


@dataclass(frozen=True)
class Domain:
    """A connected region with one materialization.

    Attributes:
        name: its first fused operation, or its first module.
        sites: names of the weights in it, in order.
        operators: number of nodes.
    """

    name: str
    materialization: Materialization
    sites: tuple[str, ...]
    operators: int


def find_fused_operations(capture: Capture) -> dict[fx.Node, str]:
    """Node → name of its fused operation, that of the operation's first weight; for nodes that have one."""
    operations: dict[fx.Node, str] = {}
    shared: dict[tuple[str, fx.Node], str] = {}
    with_epilogue: set[fx.Node] = set()  # a lookup has none
    for node in capture.nodes:
        weight = weight_of(node)
        reads = operands(node)
        if weight is not None:
            path = module_path(node) or weight
            together = operator(node) == "linear" and bool(reads)
            operations[node] = shared.setdefault((path.rpartition(".")[0], reads[0]), path) if together else path
            if operator(node) != "embedding":
                with_epilogue.add(node)
        elif operator(node) == ATTENTION:
            operations[node] = attention_operation(module_path(node))
        elif operator(node) in EPILOGUE and reads and with_epilogue.issuperset(reads):
            own = {operations[other] for other in reads}
            if len(own) == 1 and all(len(other.users) == 1 for other in reads):  # else the operand is stored anyway
                operations[node] = own.pop()
                with_epilogue.add(node)
    return operations


def attention_operation(module: str) -> str:
    """Name of the fused operation of a module's scaled dot product."""
    return f"{module}:attention"


def assign_domains(
    capture: Capture, widths: Mapping[str, int] | Mapping[str, Format], storage: Materialization
) -> list[Domain]:
    """Give every node its place, in `node.meta[KEY]`; returns the domains in the order of the graph.

    Args:
        widths: fused operation → format of its codes, or bits of integers; fused operations without one keep `storage`.
    """
    operations = find_fused_operations(capture)
    computed = [node for node in capture.nodes if node.op in ("call_function", "call_module", "placeholder")]
    materializations = {
        node: Materialization.of_codes(widths[operations[node]]) if operations.get(node) in widths else storage
        for node in computed
    }
    leader = _connected(computed, operations, materializations)
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in computed:
        members.setdefault(leader[node], []).append(node)
    domains = []
    for nodes in members.values():
        sites = tuple(dict.fromkeys(name for name in map(weight_of, nodes) if name is not None))
        first = nodes[0]
        name = (
            next((operations[node] for node in nodes if node in operations), None) or module_path(first) or first.name
        )
        for node in nodes:
            node.meta[KEY] = Place(operations.get(node), materializations[node], name)
        domains.append(Domain(name, materializations[first], sites, len(nodes)))
    return domains


def place_of(node: fx.Node) -> Place:
    """What `assign_domains` found."""
    place: Place = node.meta[KEY]
    return place


def _connected(
    nodes: list[fx.Node], operations: Mapping[fx.Node, str], materializations: Mapping[fx.Node, Materialization]
) -> dict[fx.Node, fx.Node]:
    """Node → a representative of its region: joins neighbours of one materialization, and fused operations."""
    parent = {node: node for node in nodes}

    def root(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    first: dict[str, fx.Node] = {}
    for node in nodes:
        joined = [
            other
            for other in node.all_input_nodes
            if other in parent and materializations[other] == materializations[node]
        ]
        if node in operations:
            joined.append(first.setdefault(operations[node], node))
        for other in joined:
            one, two = root(other), root(node)
            parent[two] = one
    return {node: root(node) for node in nodes}
