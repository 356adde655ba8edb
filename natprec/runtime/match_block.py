"""Is a module a decoder block whose every operation is known? Read from its parts, not from its name.

Known is: norm, attention with rotary embedding, residual, norm, gated product with SiLU, residual; biases, and norms
over heads of query and key, may be there. Children and attributes beyond those known are a reason to refuse, since
nobody knows what they are for; what numbers can tell is tried with numbers.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from natprec.runtime.kernels.block import Block, Norm
from natprec.runtime.kernels.joined import Part
from natprec.runtime.kernels.linear import QuantLinear
from natprec.runtime.norms import alike, read_norm

CHILDREN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
PROJECTIONS, HEAD_NORMS = ("q_proj", "k_proj", "v_proj", "o_proj"), ("q_norm", "k_norm")
GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}
ATTRIBUTES = {
    "hidden_size", "config", "layer_idx", "layer_type", "attention_type", "head_dim", "num_heads",
    "num_key_value_heads", "num_attention_heads", "num_key_value_groups", "scaling", "attention_dropout",
    "is_causal", "sliding_window", "intermediate_size", "max_position_embeddings", "rope_theta",
}  # fmt: skip
"""Of a block, its attention and its gated product: they change nothing, or are used here. A sliding window is its
cache's and its mask's business."""


class Unknown(Exception):
    """Why a block is not recognised."""


def decoder_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """By name, whatever they consist of besides attention."""
    return {
        f"{name}.{index}": layer
        for name, modules in model.named_modules()
        if isinstance(modules, nn.ModuleList)
        for index, layer in enumerate(modules)
        if hasattr(layer, "self_attn")
    }


def read_block(layer: nn.Module) -> Block:
    """The parts of a block.

    Raises:
        Unknown: it is of another structure.
    """
    expect_children(layer, CHILDREN)
    attention, mlp = layer.self_attn, layer.mlp
    assert isinstance(attention, nn.Module)
    assert isinstance(mlp, nn.Module)
    expect_children(attention, {*PROJECTIONS}, {*HEAD_NORMS})
    expect_children(mlp, GATED)
    for module in (layer, attention, mlp):
        expect_attributes(module)
    if not getattr(attention, "is_causal", False):
        raise Unknown("attention is not causal")
    size, scaling = getattr(attention, "head_dim", None), getattr(attention, "scaling", None)
    if not isinstance(size, int) or not isinstance(scaling, float):
        raise Unknown("attention has no head_dim or no scaling")
    linears = {name: _linear(attention, name) for name in PROJECTIONS}
    rows = [linears[name].out_features for name in PROJECTIONS[:3]]
    if any(count % size for count in rows) or rows[1] != rows[2] or rows[0] % rows[1]:
        raise Unknown(f"heads of {size} do not fill {rows}")
    _expect_silu(mlp.act_fn)
    down = _linear(mlp, "down_proj")
    assert isinstance(down, QuantLinear)
    output = linears["o_proj"]
    assert isinstance(output, QuantLinear)
    norms = [_norm(getattr(attention, name), size) if hasattr(attention, name) else None for name in HEAD_NORMS]
    return Block(
        _side_by_side([linears[name] for name in PROJECTIONS[:3]]),
        output,
        _side_by_side([_linear(mlp, "gate_proj"), _linear(mlp, "up_proj")]),
        down,
        _norm(layer.input_layernorm, down.out_features),
        _norm(layer.post_attention_layernorm, down.out_features),
        norms[0],
        norms[1],
        rows[0] // size,
        rows[1] // size,
        size,
        scaling,
    )


def expect_children(module: nn.Module, wanted: set[str], allowed: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Children and own tensors as wanted, others only where allowed.

    Raises:
        Unknown: names what differs.
    """
    found = {name for name, _ in module.named_children()}
    if wrong := sorted((wanted - found) | (found - wanted - allowed)):
        raise Unknown(f"{type(module).__name__} differs in {', '.join(wrong)}")
    own = [name for name, value in (*module._parameters.items(), *module._buffers.items()) if value is not None]
    if own:
        raise Unknown(f"{type(module).__name__} has {own[0]}")


def expect_attributes(module: nn.Module) -> None:
    """None but those in `ATTRIBUTES`.

    Raises:
        Unknown: names the others.
    """
    plain = {name for name in vars(module) if not name.startswith("_") and name != "training"}
    if unknown := sorted(plain - ATTRIBUTES):
        raise Unknown(f"{type(module).__name__} has {', '.join(unknown)}")


def _linear(parent: nn.Module, name: str) -> QuantLinear | Part:
    found = getattr(parent, name)
    if not isinstance(found, QuantLinear | Part):
        raise Unknown(f"{name} is {type(found).__name__}")
    return found


def _side_by_side(linears: list[QuantLinear | Part]) -> tuple[QuantLinear, ...]:
    """One where they are joined, in order."""
    first = linears[0]
    if isinstance(first, Part):
        parts = [each for each in linears if isinstance(each, Part) and each.joined is first.joined]
        if [part.index for part in parts] != list(range(len(linears))) or len(first.joined.sizes) != len(linears):
            raise Unknown("Linears are joined otherwise")
        return (first.joined.linear,)
    if any(isinstance(each, Part) for each in linears):
        raise Unknown("Linears are joined otherwise")
    return tuple(each for each in linears if isinstance(each, QuantLinear))


def _norm(module: object, columns: int) -> Norm:
    assert isinstance(module, nn.Module)
    norm = read_norm(module)
    if norm is None or len(norm.weight) != columns:
        raise Unknown(f"{type(module).__name__} is another norm")
    return norm


def _expect_silu(function: object) -> None:
    x = torch.linspace(-12, 12, 97)
    if not callable(function) or not alike(functional.silu(x), function(x)):
        raise Unknown(f"the gate is {type(function).__name__}")
