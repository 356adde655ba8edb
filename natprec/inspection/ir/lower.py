"""Lowering: Linears of the graph become quantized ones, and what an epilogue can hold goes into it.

    linear → silu → mul → add → round    becomes one call: accumulate, bias, silu, gated product, residual, round once

A call computes what the specification of `natprec.runtime.kernels.reference` says, or runs on the low-bit kernel that a
layer of a checkpoint gets on this machine. Both the lowered graph and the same graph without fusing can be built, and
run in float64 beside each other: the int8 codes must be identical.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from natprec.errors import InputError, unknown
from natprec.inspection.ir.domains import find_fused_operations
from natprec.inspection.ir.graph import Capture, weight_of
from natprec.inspection.ir.operators import PRODUCTS, operands, operator
from natprec.quantizers import QuantizedTensor
from natprec.runtime.kernels import Epilogue, reference
from natprec.runtime.kernels.dispatch import choose
from natprec.runtime.kernels.epilogue import round_to_codes
from natprec.runtime.kernels.kernel import Layer
from natprec.runtime.kernels.linear import QuantizedWeight

CODES = "codes_of"
"""In the meta of a node whose value is int8 codes: the fused operation that reads them."""


@dataclass(frozen=True)
class Group:
    """A Linear and the operators that its epilogue takes in, in order."""

    weight: str
    nodes: tuple[fx.Node, ...]
    epilogue: Epilogue
    multiplier: fx.Node | None = None
    residual: fx.Node | None = None


@dataclass(frozen=True)
class Lowered:
    """A graph whose Linears are quantized.

    Attributes:
        epilogues: weight → name of the epilogue that its call has.
    """

    module: fx.GraphModule
    epilogues: dict[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Any]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The model's outputs in float64, and the int8 codes that each fused operation read."""
        interpreter = _InFloat64(self.module)
        return self._outputs(interpreter, inputs), interpreter.codes

    @torch.no_grad()
    def compute(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The model's outputs, in the dtypes of its parameters and inputs."""
        return self._outputs(fx.Interpreter(self.module), inputs)

    def _outputs(self, interpreter: fx.Interpreter, inputs: Mapping[str, Any]) -> list[Tensor]:
        places = [node.target for node in self.module.graph.nodes if node.op == "placeholder"]
        found = interpreter.run(*(inputs[str(name)] for name in places), enable_io_processing=False)
        return [leaf for leaf in torch.utils._pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


class QuantizedCall(nn.Module):
    """One call of the specification, on tensors of any number of leading dimensions."""

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None, epilogue: Epilogue, x_scale: float | None) -> None:
        super().__init__()
        self.weight, self.bias, self.epilogue, self.x_scale = weight, bias, epilogue, x_scale

    def forward(self, x: Tensor, multiplier: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """(…, columns), floats or int8 codes, to (…, rows), float64 or int8 codes."""
        rows = len(self.weight.codes)
        flat = [None if other is None else other.reshape(-1, rows) for other in (multiplier, residual)]
        scale = None if self.x_scale is None else torch.tensor([self.x_scale], dtype=torch.float64)
        y = reference.linear(
            x.reshape(-1, x.shape[-1]), self.weight, x_scale=scale, bias=self.bias, epilogue=self.epilogue,
            multiplier=flat[0], residual=flat[1],
        )  # fmt: skip
        return y.view(*x.shape[:-1], rows)


class KernelCall(nn.Module):
    """One call on the low-bit kernel that this machine's table gives the layer; the epilogue follows in float32.

    The kernel is given as few tokens at a time as it is made for: many would meet dense weights in bfloat16.
    """

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None, epilogue: Epilogue, x_scale: float | None) -> None:
        super().__init__()
        if x_scale is not None:
            raise InputError("inputs in int8 codes have no kernel outside of a fused graph; lower without scales")
        layer = Layer(weight.format, *weight.codes.shape)
        kernel, _ = choose(layer)
        self.kernel, self.epilogue, self.bias = kernel.name, epilogue, bias
        self.stored = QuantizedWeight(weight, layer, kernel, torch.float32)

    def forward(self, x: Tensor, multiplier: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """(…, columns) to (…, rows), float32."""
        rows = self.stored.rows
        flat = [None if other is None else other.reshape(-1, rows) for other in (multiplier, residual)]
        tokens = self.stored.rounded(x.reshape(-1, x.shape[-1]))
        y = torch.cat([self.stored.product(few) for few in tokens.split(min(self.stored.few, len(tokens)))])
        return self.epilogue.apply(y, self.bias, *flat).view(*x.shape[:-1], rows)


Call = Callable[[QuantizedTensor, Tensor | None, Epilogue, float | None], nn.Module]
"""Makes what computes a quantized Linear, from its weight, bias, epilogue and the step of its inputs' codes."""


def lower(
    capture: Capture,
    weights: Mapping[str, QuantizedTensor],
    scales: Mapping[str, float],
    fuse: bool = True,
    call: Call = QuantizedCall,
) -> Lowered:
    """Replace Linears.

    Args:
        weights: name → codes; a name is that of the module that owns the weight. Others stay as they are.
        scales: fused operation → step of the int8 codes that it reads; others read floats.
        fuse: put epilogues into the calls; without, a Linear is one call and all else stays an operator.
        call: what a Linear becomes: the specification, or `KernelCall`.
    Raises:
        InputError: a name that no Linear or fused operation has.
    """
    every = {node: name for node in capture.nodes if operator(node) in PRODUCTS and (name := weight_of(node))}
    operations = find_fused_operations(capture)
    _refuse_unknown("Linear", weights, every.values())
    _refuse_unknown("fused operation", scales, (operations[node] for node in every))
    linears = {node: name for node, name in every.items() if name in weights}
    reads = {node: (operations[node], scales[operations[node]]) for node in linears if operations[node] in scales}
    groups = {group.nodes[-1]: group for group in _groups(capture, linears, reads, fuse)}
    inside = {node for group in groups.values() for node in group.nodes[:-1]}
    graph = fx.Graph()
    calls: dict[str, Any] = {}
    done: dict[fx.Node, fx.Node] = {}
    codes: dict[tuple[fx.Node, str], fx.Node] = {}
    for node in capture.nodes:
        if node in inside:
            continue  # part of a call further down
        if node not in groups:
            done[node] = graph.node_copy(node, done.__getitem__)
            continue
        group = groups[node]
        linear = group.nodes[0]
        source = operands(linear)[0]
        x, step = done[source], None
        if linear in reads:
            operation, step = reads[linear]
            if source not in groups or groups[source].epilogue.output_scale is None:
                if (source, operation) not in codes:
                    codes[source, operation] = graph.call_function(round_to_codes, (x, step))
                    codes[source, operation].meta[CODES] = operation
                x = codes[source, operation]
        place = PRODUCTS[operator(linear)]
        bias = linear.args[place] if len(linear.args) > place else None
        values = _attribute(capture, bias) if isinstance(bias, fx.Node) else None
        name = f"quantized_{len(done)}"
        calls[name] = call(weights[group.weight], values, group.epilogue, step)
        others = {"multiplier": group.multiplier, "residual": group.residual}
        given: dict[str, Any] = {key: done[other] for key, other in others.items() if other is not None}
        done[node] = graph.call_module(name, (x,), given)
        if group.epilogue.output_scale is not None:
            done[node].meta[CODES] = reads[next(iter(node.users))][0]
    root = {str(node.target): _attribute(capture, node) for node in graph.nodes if node.op == "get_attr"}
    return Lowered(
        fx.GraphModule({**root, **calls}, graph), {group.weight: group.epilogue.name for group in groups.values()}
    )


def _attribute(capture: Capture, node: fx.Node) -> Any:
    return attrgetter(str(node.target))(capture.module)


def _groups(
    capture: Capture, linears: Mapping[fx.Node, str], reads: Mapping[fx.Node, tuple[str, float]], fuse: bool
) -> list[Group]:
    """Each quantized Linear with as much of what follows as an epilogue holds; no operator is in two."""
    found: list[Group] = []
    taken: set[fx.Node] = set()
    for linear, weight in linears.items():
        nodes, activation = [linear], "none"
        operand: dict[str, fx.Node | None] = {"mul": None, "add": None}
        while fuse and (follower := _only_reader(nodes[-1], taken)) is not None:
            name = operator(follower)
            other = next((each for each in operands(follower) if each is not nodes[-1]), None)
            if len(nodes) == 1 and name in ("relu", "silu", "gelu"):
                tanh = follower.kwargs.get("approximate") == "tanh"
                activation = "gelu_tanh" if tanh else name
            elif name in operand and operand[name] is None and operand["add"] is None and _same_shape(follower, other):
                operand[name] = other
            else:
                break
            nodes.append(follower)
        taken.update(nodes)
        step = _common_step(nodes[-1], reads) if fuse else None
        epilogue = Epilogue(activation, operand["mul"] is not None, operand["add"] is not None, step)
        found.append(Group(weight, tuple(nodes), epilogue, operand["mul"], operand["add"]))
    return found


def _only_reader(node: fx.Node, taken: set[fx.Node]) -> fx.Node | None:
    reader = next(iter(node.users), None)
    return reader if reader is not None and len(node.users) == 1 and reader not in taken else None


def _same_shape(node: fx.Node, other: fx.Node | None) -> bool:
    """Whether a product or sum takes two tensors element by element, with no factor of its own."""
    if other is None or node.kwargs or len(node.args) != 2:
        return False
    return bool(node.meta["val"].shape == other.meta["val"].shape)


def _common_step(node: fx.Node, reads: Mapping[fx.Node, tuple[str, float]]) -> float | None:
    """The step of the codes that all readers want, if they want the same."""
    wanted = {reads.get(reader) for reader in node.users}
    one = wanted.pop() if len(wanted) == 1 else None
    return None if one is None else one[1]


def _refuse_unknown(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    names = set(known)
    for name in given:
        if name not in names:
            raise unknown(kind, name, names)


class _InFloat64(fx.Interpreter):
    """Parameters and float inputs in float64; keeps int8 codes by the fused operation that reads them."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.codes: dict[str, Tensor] = {}

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _double(super().placeholder(target, args, kwargs))

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _double(super().get_attr(target, args, kwargs))

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if CODES in n.meta:
            self.codes[n.meta[CODES]] = value
        return value


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
