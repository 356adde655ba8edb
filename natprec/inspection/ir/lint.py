"""Double rounding (T11): values that are put onto a grid, and onto another one before anything new was computed.

    linear → silu → quantize → dequantize → mul → quantize

Of all ways to end on a given grid, rounding once, from the accumulator, is pointwise at least as near. Between the
two roundings only per-element operators stand: after a sum over other elements (a matrix product, a norm) the values
are new ones, and rounding them is not rounding twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from natprec.inspection.ir.boundaries import value_name
from natprec.inspection.ir.graph import Capture, module_path
from natprec.inspection.ir.operators import EPILOGUE, ROUNDING, operator

_THROUGH = EPILOGUE | {
    "dequantize_per_tensor",
    "dequantize_per_channel",
    "dequantize_per_token",
    "cat",
    "slice",
    "expand",
}


@dataclass(frozen=True)
class DoubleRounding:
    """Two roundings in a row.

    Attributes:
        first, second: names of the nodes; `where`: the module of the second.
        between: operators that stand between them, in order.
    """

    first: str
    second: str
    where: str
    between: tuple[str, ...]

    def __str__(self) -> str:
        path = " → ".join((self.first, *self.between, self.second))
        return f"{self.where or 'model'}: rounded twice: {path}; round once, at the end"


def double_roundings(capture: Capture) -> list[DoubleRounding]:
    """Every pair of roundings with nothing but per-element operators between, in the order of the graph."""
    found = []
    for node in capture.nodes:
        if is_rounding(node):
            for first, between in _rounded_before(node):
                names = tuple(value_name(other).rpartition(":")[2] for other in between)
                found.append(DoubleRounding(first.name, node.name, module_path(node), names))
    return found


def is_rounding(node: fx.Node) -> bool:
    """Whether a node puts values onto a grid."""
    return node.op == "call_function" and operator(node) in ROUNDING


def _rounded_before(node: fx.Node) -> list[tuple[fx.Node, list[fx.Node]]]:
    """The nearest roundings upstream, each with what lies between."""
    found: list[tuple[fx.Node, list[fx.Node]]] = []
    stack: list[tuple[fx.Node, list[fx.Node]]] = [(node, [])]
    seen: set[fx.Node] = set()
    while stack:
        current, path = stack.pop()
        source = current.args[0] if is_rounding(current) and current.args else None
        for other in [source] if isinstance(source, fx.Node) else current.all_input_nodes:
            if other in seen:
                continue
            seen.add(other)
            if is_rounding(other):
                found.append((other, path))
            elif operator(other) in _THROUGH:
                stack.append((other, [other, *path]))
    return found
