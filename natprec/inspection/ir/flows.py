"""How much information there is at every node (T15): forward what arrives, backward what can still matter.

    forward   (Shannon)  no operator adds information: elementwise, H(f(x)) <= H(x) and H(f(x, y)) <= H(x) + H(y)
    backward  (Gibbs)    a value matters only through its readers, and to each with no more bits than it reads
    effective = min(forward, backward): what is present is bounded by both

These are bounds per element, tightened where the codes that occur were counted. They decide nothing: precision comes
from measured b* (domains.py), since on real models entropy does not order b* (docs/theory.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from natprec.inspection.ir.bundle import InfoBundle, Meaning, bound_bits
from natprec.inspection.ir.domains import place_of
from natprec.inspection.ir.graph import Capture
from natprec.inspection.ir.operators import ELEMENTWISE, PER_CHANNEL, SHAPE_ONLY, operands, operator

BUNDLE, FLOWS = "natprec_bundle", "natprec_flows"
"""Where a node's meta holds its bundle, and the two flows whose smaller one is the bundle's bound."""

_PRESERVING = ELEMENTWISE | PER_CHANNEL | SHAPE_ONLY


@dataclass(frozen=True)
class Flows:
    """Bounds at one node, bits per element."""

    forward_bits: float
    backward_bits: float


def flow(
    capture: Capture, counted: Mapping[fx.Node, float], vocabulary: int | None = None
) -> dict[fx.Node, InfoBundle]:
    """Both flows through the graph, and the bundle of every computed tensor; they are put into `node.meta` as well.

    Args:
        counted: node → entropy of its codes on data, bits per element.
        vocabulary: how many tokens there are, where the inputs are tokens.
    """
    nodes = [node for node in capture.nodes if isinstance(node.meta.get("val"), Tensor) and node.op != "get_attr"]
    forward: dict[fx.Node, float] = {}
    for node in nodes:
        forward[node] = min(_arriving(node, forward, vocabulary), counted.get(node, math.inf))
    backward: dict[fx.Node, float] = {}
    for node in reversed(nodes):
        own = _stored_bits(node)
        backward[node] = min(own, sum(_read(reader, backward, own) for reader in node.users)) if node.users else own
    bundles = {}
    for node in nodes:
        bits = min(forward[node], backward[node])
        bundle = InfoBundle(tuple(int(size) for size in node.meta["val"].shape), bits, _meaning(node))
        node.meta[FLOWS] = Flows(forward[node], backward[node])
        node.meta[BUNDLE] = bundles[node] = bundle
    return bundles


def _arriving(node: fx.Node, forward: Mapping[fx.Node, float], vocabulary: int | None) -> float:
    """At most so many bits per element, from what the operator reads."""
    own = _stored_bits(node)
    if node.op == "placeholder":
        return bound_bits(_meaning(node), vocabulary, own)
    if operator(node) == "embedding":  # each element of a row is a function of the token
        ids = [other for other in node.all_input_nodes if other in forward and other.op != "get_attr"]
        return min(own, sum(forward[other] for other in ids)) if ids else own
    reads = operands(node)
    if operator(node) in _PRESERVING and reads and all(other in forward for other in reads):
        return min(own, sum(forward[other] for other in reads))
    return own


def _read(reader: fx.Node, backward: Mapping[fx.Node, float], own: float) -> float:
    """How many bits per element a reader can make use of."""
    if reader not in backward:  # the model's output, or something that is no tensor
        return own
    materialization = place_of(reader).materialization.bits
    return min(materialization, backward[reader]) if operator(reader) in _PRESERVING else materialization


def _stored_bits(node: fx.Node) -> float:
    """What the materialization of a float, or the dtype of anything else, can hold."""
    value: Tensor = node.meta["val"]
    return float(place_of(node).materialization.bits) if value.is_floating_point() else 8.0 * value.element_size()


def _meaning(node: fx.Node) -> Meaning:
    """The semantic type, from the operator."""
    value: Tensor = node.meta["val"]
    name = operator(node)
    if node.op == "placeholder":
        return "pixels" if value.is_floating_point() and value.ndim == 4 else "tokens"
    if name == "embedding":
        return "embedding"
    if "softmax" in name:
        return "attention" if value.ndim == 4 else "probability"
    return "activation"
