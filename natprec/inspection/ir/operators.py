"""What the IR knows of operators, by name: which multiply weights, which an epilogue can hold (T12).

Names are those of aten without overload or sign of in-place: `aten.linear.default` is `linear`, `relu_` is `relu`.
Patterns are matched on the operators that torch.export leaves as the model wrote them (linear, silu,
scaled_dot_product_attention), before any decomposition.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

WEIGHTED = {"linear": 1, "addmm": 2, "conv1d": 1, "conv2d": 1, "conv3d": 1, "embedding": 0}
"""Operators that meet a weight → the argument that it is; `addmm` is the call of transformers' Conv1D (GPT-2)."""

PRODUCTS = {"linear": 2, "addmm": 0}
"""Operators that multiply each token with a matrix → the argument that is their bias."""

ATTENTION = "scaled_dot_product_attention"

ELEMENTWISE = {
    "add", "sub", "mul", "div", "neg", "clamp", "relu", "hardtanh", "silu", "gelu", "sigmoid", "tanh", "hardswish",
    "hardsigmoid", "leaky_relu", "softplus", "exp", "pow", "sqrt",
}  # fmt: skip
"""Each element of the output needs one element of each operand."""

PER_CHANNEL = {"batch_norm", "_native_batch_norm_legit_no_training"}
"""In eval mode a scale and a shift per channel."""

SHAPE_ONLY = {
    "view", "reshape", "transpose", "permute", "flatten", "unsqueeze", "squeeze", "contiguous", "clone", "t", "alias",
    "dropout", "to", "_to_copy", "detach",
}  # fmt: skip
"""Each element goes to one place, unchanged."""

EPILOGUE = ELEMENTWISE | PER_CHANNEL | SHAPE_ONLY
"""What can stand in an epilogue. Norms with new statistics, softmax, sums over other elements cannot."""

ROUNDING = {
    "round", "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine", "quantize_per_tensor",
    "quantize_per_channel", "quantize_per_token", "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
}  # fmt: skip
"""Puts values onto a grid."""


def operator(node: fx.Node) -> str:
    """Name of what a node does: an aten operator, or in a graph of modules the class of the module."""
    if node.op == "call_function":
        target = node.target
        if isinstance(target, torch._ops.OpOverload):
            return target.name().split("::")[-1].split(".")[0].rstrip("_")
        return getattr(target, "__name__", str(target))
    return str(node.meta.get("operator", node.op))


def carries_values(node: fx.Node) -> bool:
    """Whether a node's value is a tensor of floats that the model computed (no weight, mask index or shape)."""
    value = node.meta.get("val")
    return (
        node.op in ("call_function", "call_module", "placeholder")
        and isinstance(value, Tensor)
        and value.is_floating_point()
    )


def operands(node: fx.Node) -> list[fx.Node]:
    """The computed float tensors that a node reads, each once, in order."""
    return [other for other in node.all_input_nodes if carries_values(other)]


def before_moving(node: fx.Node) -> fx.Node:
    """The node that computed a value before it was only moved about."""
    while operator(node) in SHAPE_ONLY and len(operands(node)) == 1:
        node = operands(node)[0]
    return node
