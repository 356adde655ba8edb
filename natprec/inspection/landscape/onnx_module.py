"""A network in an ONNX file as a module of torch: Conv and Gemm become layers, the rest is computed as it says.

It knows the operators of the UNet in PyPI's adaptive-terrain-diffusion (opset 18), and names any other that it meets.
Operators: https://onnx.ai/onnx/operators. `onnx` reads the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from natprec.errors import ModelError

Attributes = dict[str, Any]


class OnnxModule(nn.Module):
    """The graph of a file; called with its inputs by name, it returns the first output."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = onnx.load(str(path)).graph
        constants = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
        self.output = graph.output[0].name
        self.layers = nn.ModuleDict()
        self.steps: list[tuple[str, str, list[str], list[str], Attributes]] = []
        used: set[str] = set()
        for number, node in enumerate(graph.node):
            attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            inputs, outputs = list(node.input), list(node.output)
            layer = _layer(node.op_type, [constants.get(name) for name in inputs], attributes)
            if layer is None and node.op_type not in OPERATORS:
                raise ModelError(
                    f"{str(path)!r} has an operator {node.op_type!r}, which this interpreter does not know"
                )
            name = ""
            if layer is not None:
                name, inputs = f"{node.op_type.lower()}{number}", inputs[:1]
                self.layers[name] = layer
            used.update(inputs)
            self.steps.append((node.op_type, name, inputs, outputs, attributes))
        self.names = {name: f"constant{number}" for number, name in enumerate(sorted(used & constants.keys()))}
        for name, buffer in self.names.items():
            self.register_buffer(buffer, constants[name], persistent=False)

    def forward(self, **inputs: Tensor) -> Tensor:
        """The first output."""
        values: dict[str, Any] = {name: getattr(self, buffer) for name, buffer in self.names.items()} | inputs
        for kind, layer, names, outputs, attributes in self.steps:
            given = [values[name] if name else None for name in names]
            found = self.layers[layer](*given) if layer else OPERATORS[kind](given, attributes)
            values |= zip(outputs, found if isinstance(found, list | tuple) else [found], strict=True)
        return values[self.output]


def _layer(kind: str, given: list[Tensor | None], attributes: Attributes) -> nn.Module | None:
    """A Conv or Gemm whose weight the file holds."""
    weight, bias = (given[1] if len(given) > 1 else None), (given[2] if len(given) > 2 else None)
    if kind == "Gemm" and weight is not None:
        assert (attributes.get("transA", 0), attributes.get("transB", 0)) == (0, 1)
        made: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    elif kind == "Conv" and weight is not None:
        pads = attributes["pads"]
        assert pads[: len(pads) // 2] == pads[len(pads) // 2 :]
        groups, size = attributes["group"], len(pads) // 2
        made = getattr(nn, f"Conv{size}d")(
            weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), tuple(attributes["strides"]),
            tuple(pads[:size]), tuple(attributes["dilations"]), groups, bias is not None,
        )  # fmt: skip
    else:
        return None
    made.weight.data = weight
    if bias is not None:
        made.bias.data = bias
    return made


def _reshape(given: list[Any], attributes: Attributes) -> Tensor:
    wanted = [int(each) for each in given[1]]
    if not attributes.get("allowzero"):
        wanted = [given[0].shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    return given[0].reshape(wanted)


def _shape(given: list[Any], attributes: Attributes) -> Tensor:
    return torch.tensor(given[0].shape[attributes.get("start", 0) : attributes.get("end")], dtype=torch.int64)


def _split(given: list[Any], attributes: Attributes) -> tuple[Tensor, ...]:
    if len(given) > 1 and given[1] is not None:
        return given[0].split(given[1].tolist(), attributes["axis"])
    size = given[0].shape[attributes["axis"]]
    return given[0].split(math.ceil(size / attributes["num_outputs"]), attributes["axis"])


def _unsqueeze(given: list[Any], _: Attributes) -> Tensor:
    found = given[0]
    for axis in sorted(given[1].tolist()):
        found = found.unsqueeze(axis)
    return found


def _squeeze(given: list[Any], _: Attributes) -> Tensor:
    return given[0].squeeze(tuple(given[1].tolist())) if len(given) > 1 else given[0].squeeze()


def _resize(given: list[Any], attributes: Attributes) -> Tensor:
    assert (attributes["mode"], attributes["nearest_mode"]) == (b"nearest", b"floor")
    if len(given) > 3 and given[3] is not None:
        return functional.interpolate(given[0], size=given[3].tolist()[2:], mode="nearest")
    return functional.interpolate(given[0], scale_factor=given[2].tolist()[2:], mode="nearest")


def _clip(given: list[Any], _: Attributes) -> Tensor:
    low, high = [*given[1:], None, None][:2]
    return given[0].clamp(low, high)


OPERATORS: dict[str, Callable[[list[Any], Attributes], Any]] = {
    "Add": lambda given, _: given[0] + given[1],
    "AveragePool": lambda given, how: functional.avg_pool2d(given[0], how["kernel_shape"], how["strides"]),
    "Clip": _clip,
    "Concat": lambda given, how: torch.cat(given, how["axis"]),
    "Conv": lambda given, how: _unknown("Conv without a weight of its own"),
    "Cos": lambda given, _: given[0].cos(),
    "Div": lambda given, _: given[0] / given[1],
    "Einsum": lambda given, how: torch.einsum(how["equation"].decode(), *given),
    "InstanceNormalization": lambda given, how: functional.instance_norm(
        given[0], weight=given[1], bias=given[2], eps=how["epsilon"]
    ),
    "Log": lambda given, _: given[0].log(),
    "Mul": lambda given, _: given[0] * given[1],
    "Pow": lambda given, _: given[0] ** given[1],
    "Reciprocal": lambda given, _: given[0].reciprocal(),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": lambda given, _: given[0].sigmoid(),
    "Sin": lambda given, _: given[0].sin(),
    "Softmax": lambda given, how: given[0].softmax(how.get("axis", -1)),
    "Split": _split,
    "Sqrt": lambda given, _: given[0].sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda given, _: given[0] - given[1],
    "Unsqueeze": _unsqueeze,
}


def _unknown(what: str) -> Any:
    raise ModelError(f"this interpreter does not know a {what}")
