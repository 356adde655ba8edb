"""The information IR (T13-T15): a captured graph, its entropies, its domains and the boundaries between them."""

from natprec.ir.boundaries import Boundary, Edge, cost, find_edges
from natprec.ir.bundle import Gauge, InfoBundle
from natprec.ir.domains import Domain, assign_domains, find_units
from natprec.ir.graph import Capture, capture

__all__ = [
    "Boundary",
    "Capture",
    "Domain",
    "Edge",
    "Gauge",
    "InfoBundle",
    "assign_domains",
    "capture",
    "cost",
    "find_edges",
    "find_units",
]
