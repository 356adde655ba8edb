"""The information IR (T13-T15): a captured graph, its entropies, its domains and the boundaries between them."""

from natprec.inspection.ir.boundaries import Boundary, Edge, cost, find_edges
from natprec.inspection.ir.bundle import InfoBundle, Materialization
from natprec.inspection.ir.domains import Domain, assign_domains, find_fused_operations
from natprec.inspection.ir.graph import Capture, capture

__all__ = [
    "Boundary",
    "Capture",
    "Domain",
    "Edge",
    "InfoBundle",
    "Materialization",
    "assign_domains",
    "capture",
    "cost",
    "find_edges",
    "find_fused_operations",
]
