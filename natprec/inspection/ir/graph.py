"""Capturing a model as a graph: torch.export, and module hooks where that fails.

The graph is torch.fx's, its operators aten's, as the model wrote them; what the IR knows of a node is in its `meta`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from natprec.errors import ModelError, first_line
from natprec.inspection.ir.hooks import hooked_graph, watch_modules
from natprec.inspection.ir.operators import WEIGHTED, operator
from natprec.utils.hooks import attached

See = Callable[[fx.Node, Tensor], None]
"""Told the value of a node."""


@dataclass(frozen=True)
class Capture:
    """A model's graph.

    Attributes:
        module: the graph and its parameters; its nodes are in the order of computation.
        by: 'torch.export' or 'module hooks'.
        culprit: name of the module that export failed at, '' for the model itself; None where it worked.
        reason: what export said.
    """

    model: nn.Module
    module: fx.GraphModule
    by: str = "torch.export"
    culprit: str | None = None
    reason: str | None = None

    @property
    def nodes(self) -> list[fx.Node]:
        """All nodes, in order."""
        return list(self.module.graph.nodes)

    def run(self, inputs: Mapping[str, Any], watched: set[fx.Node] | None = None, see: See | None = None) -> list[Any]:
        """Compute; `see` is told the value of each watched node.

        Args:
            inputs: as `capture` was given, tensors of the same shapes.
        Returns:
            The tensors among the outputs, in order.
        """
        watched, see = watched or set(), see or (lambda node, value: None)
        if self.by == "torch.export":
            interpreter = _Watching(self.module, watched, see)
            places = [node.target for node in self.nodes if node.op == "placeholder"]
            found = interpreter.run(*(inputs[str(name)] for name in places), enable_io_processing=False)
        else:
            with watch_modules(self.model, self.module.graph, watched, see):
                found = self.model(**inputs)
        return [value for value in torch.utils._pytree.tree_leaves(found) if isinstance(value, Tensor)]


class _Watching(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, watched: set[fx.Node], see: See) -> None:
        super().__init__(module)
        self.watched, self.see = watched, see

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.watched:
            self.see(n, value)
        return value


@torch.no_grad()
def capture(model: nn.Module, inputs: Mapping[str, Any]) -> Capture:
    """The graph of a model on inputs of these shapes.

    Args:
        inputs: keyword arguments of its forward.
    Raises:
        ModelError: the model does not run on these inputs, or computes nothing from them.
    """
    try:
        module = _exported(model, inputs)
    except Exception as error:  # whatever torch.export finds: it has no common type
        culprit, cause = _culprit(model, inputs, error)
        return Capture(model, hooked_graph(model, inputs), "module hooks", culprit, first_line(cause))
    _tidy(module.graph)
    if not any(operator(node) in WEIGHTED for node in module.graph.nodes):
        raise ModelError(f"model {type(model).__name__} computes nothing with weights: no Linear, Conv or embedding")
    return Capture(model, module)


def module_path(node: fx.Node) -> str:
    """Name of the module in whose forward a node was computed; '' for the model's own."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def weight_of(node: fx.Node) -> str | None:
    """The parameter that a node multiplies its input with, or looks up in: its name, without `.weight`."""
    place = WEIGHTED.get(operator(node))
    if node.op == "call_module":
        return str(node.target) if place is not None else None
    if place is None or len(node.args) <= place:
        return None
    weight = node.args[place]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    return str(weight.target).removesuffix(".weight")


def _exported(model: nn.Module, inputs: Mapping[str, Any]) -> fx.GraphModule:
    program = torch.export.export(model, (), dict(inputs), strict=False)
    return program.module(check_guards=False)


def _culprit(model: nn.Module, inputs: Mapping[str, Any], error: Exception) -> tuple[str, Exception]:
    """The deepest module that cannot be exported with the arguments that it gets, and why."""
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.setdefault(name, (args, kwargs))

        return hook

    own = {name: module for name, module in model.named_modules() if not type(module).__module__.startswith("torch.nn")}
    handles = [module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, module in own.items() if name]
    try:
        with attached(handles):
            model(**inputs)
    except Exception as broken:
        raise ModelError(
            f"model {type(model).__name__} does not run on these inputs ({first_line(broken)}); mend the model"
        ) from broken
    found, inner = "", _called_in("", calls)
    while inner:
        name = inner.pop(0)
        try:
            torch.export.export(own[name], *calls[name], strict=False)
        except Exception as cause:
            found, error, inner = name, cause, _called_in(name, calls)
    return found, error


def _called_in(name: str, calls: Iterable[str]) -> list[str]:
    """The outermost of the called modules that lie within one."""
    inside = [other for other in calls if other != name and (not name or other.startswith(name + "."))]
    return [other for other in inside if not any(other.startswith(outer + ".") for outer in inside)]


def _tidy(graph: fx.Graph) -> None:
    """Drop what computes nothing: assertions, copies to the dtype that is there already, dropout in eval mode."""
    for node in list(graph.nodes):
        name = operator(node)
        if name == "_assert_tensor_metadata":
            graph.erase_node(node)
            continue
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or name not in ("to", "alias", "dropout", "detach", "contiguous"):
            continue
        before, after = source.meta.get("val"), node.meta.get("val")
        if name == "dropout" and node.args[2]:
            continue
        if isinstance(before, Tensor) and isinstance(after, Tensor) and before.dtype == after.dtype:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
