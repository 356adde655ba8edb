"""A coarser graph where torch.export fails: modules as nodes, edges found by following gradients back.

Each call of a Linear, Conv, embedding, norm or activation module is a node. What lies between two of them is not
seen as operators, only that there is something: the tensor that a module reads is traced through autograd's graph
to the modules whose outputs it was computed from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from natprec.errors import ModelError
from natprec.utils.hooks import attached, differentiable

OPERATORS: dict[type[nn.Module], str] = {
    nn.Linear: "linear", nn.Embedding: "embedding", nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d",
    nn.ReLU: "relu", nn.ReLU6: "hardtanh", nn.SiLU: "silu", nn.GELU: "gelu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh",
    nn.BatchNorm1d: "batch_norm", nn.BatchNorm2d: "batch_norm", nn.LayerNorm: "layer_norm",
}  # fmt: skip
"""Modules that become nodes; of all others only their inner ones."""

BETWEEN = "between"
"""The operator of a node that stands for whatever was computed between modules."""


@torch.enable_grad()
def hooked_graph(model: nn.Module, inputs: Mapping[str, Any]) -> fx.GraphModule:
    """Run once and write down which module read what from which."""
    graph = fx.Graph()
    start = graph.placeholder("inputs")
    producers: dict[Any, fx.Node] = {}
    kept: list[Any] = []  # autograd's nodes are compared by identity: keep them alive
    calls: dict[str, int] = {}

    def before(name: str, operator: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
                return None
            sources = _sources(args[0], producers)
            calls[name] = calls.get(name, 0) + 1
            reading = sources[0] if len(sources) == 1 and _direct(args[0], producers) else None
            if reading is None:
                reading = graph.create_node("call_module", name, (*(sources or [start]),), name=f"before_{name}")
                reading.meta |= {"operator": BETWEEN, "val": args[0].detach(), "call": calls[name]}
                reading.meta["nn_module_stack"] = {"": (name.rpartition(".")[0], nn.Module)}
            node = graph.create_node("call_module", name, (reading,), name=name)
            node.meta |= {"operator": operator, "val": output.detach(), "call": calls[name]}
            node.meta["nn_module_stack"] = {"": (name, type(module))}
            if not output.requires_grad:
                output = differentiable(output)
            producers[_mark(output)] = node
            kept.append(_mark(output))
            return output

        return hook

    handles = []
    for name, module in model.named_modules():
        operator = next((found for kind, found in OPERATORS.items() if isinstance(module, kind)), None)
        if operator is not None:
            handles.append(module.register_forward_hook(before(name, operator)))
    with attached(handles):
        outputs = model(**inputs)
    if not producers:
        raise ModelError(f"model {type(model).__name__} calls no Linear, Conv or embedding on these inputs")
    ends = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    graph.output([node for end in ends for node in _sources(end, producers)])
    return fx.GraphModule(model, graph)


@contextlib.contextmanager
def watch_modules(model: nn.Module, graph: fx.Graph, watched: set[fx.Node], see: Any) -> Iterator[None]:
    """While the model runs, tell `see` the values of watched nodes of a hooked graph."""
    calls: dict[str, int] = {}
    places = {(str(node.target), node.meta["call"], node.meta["operator"] == BETWEEN): node for node in watched}

    def hook_for(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            for value, reads in ((args[0] if args else None, True), (output, False)):
                node = places.get((name, calls[name], reads))
                if node is not None:
                    see(node, value)

        return hook

    names = {str(node.target) for node in watched}
    handles = [model.get_submodule(name).register_forward_hook(hook_for(name)) for name in names]
    with attached(handles):
        yield


def _mark(tensor: Tensor) -> Any:
    """What autograd knows a tensor by: its function, or for a leaf the tensor itself."""
    return tensor.grad_fn if tensor.grad_fn is not None else tensor


def _direct(tensor: Tensor, producers: Mapping[Any, fx.Node]) -> bool:
    return _mark(tensor) in producers


def _sources(tensor: Tensor, producers: Mapping[Any, fx.Node]) -> list[fx.Node]:
    """The nearest modules that a tensor was computed from, in the order of their calls."""
    found: dict[fx.Node, None] = {}
    seen: set[Any] = set()
    stack: list[Any] = [_mark(tensor)]
    while stack:
        mark = stack.pop()
        if mark is None or mark in seen:
            continue
        seen.add(mark)
        leaf = getattr(mark, "variable", None)  # the end of autograd's graph holds the tensor
        if mark in producers:
            found[producers[mark]] = None
        elif leaf is not None:
            stack.append(leaf)
        elif not isinstance(mark, Tensor):
            stack += [function for function, _ in mark.next_functions]
    order = {node: place for place, node in enumerate(producers.values())}
    return sorted(found, key=order.__getitem__)
