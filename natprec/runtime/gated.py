"""Gated products, down(act(gate(x)) · up(x)), finished inside the kernels of their Linears.

A kernel that does what follows a product (`natprec.runtime.kernels.kernel.Fused`) stores act(gate(x)) · up(x) at once,
and the sum with a residual. Only a module's forward is replaced, not the module: where its parts are those of a gated
product, and it computes what its forward does, tried on numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from natprec.runtime.compare import TRIED, bound, verdict
from natprec.runtime.kernels.epilogue import ACTIVATIONS
from natprec.runtime.kernels.linear import QuantizedWeight, QuantLinear
from natprec.runtime.match_block import Unknown, expect_attributes
from natprec.runtime.norms import alike

PARTS = {"gate_proj", "up_proj", "down_proj"}


def activation_of(module: nn.Module) -> str | None:
    """The activation of a module whose parts are those of a gated product, by its numbers; None of any other."""
    function = getattr(module, "act_fn", None)
    if {name for name, _ in module.named_children()} - {"act_fn"} != PARTS or not callable(function):
        return None
    if isinstance(function, nn.Module) and next(function.parameters(), None) is not None:
        return None
    x = torch.linspace(-12, 12, 97)
    return next((name for name, known in ACTIVATIONS.items() if name != "none" and alike(known(x), function(x))), None)


class GatedProduct:
    """Instead of a module's forward."""

    def __init__(self, module: Any, activation: str) -> None:
        self.module, self.activation = module, activation
        self.plain: Callable[..., Tensor] = functools.partial(type(module).forward, module)
        self._hooks = [hooks for each in module.children() for hooks in (each._forward_hooks, each._forward_pre_hooks)]

    def forward(self, *args: Tensor, **kwargs: Any) -> Tensor:
        """(…, hidden) to the same, called as the module is."""
        return self.plain(*args, **kwargs) if kwargs or len(args) != 1 else self.finished(args[0])

    def finished(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The same; a residual of that shape is added."""
        if any(self._hooks) or x.requires_grad or self.module.training or torch.compiler.is_compiling():
            y = self.plain(x)
            return y if residual is None else y + residual
        gate, up = self.module.gate_proj, self.module.up_proj
        tokens = x.reshape(-1, gate.in_features)
        scaled = gate.stored.scaled(tokens)
        other = scaled if gate.stored.shares_inputs(up.stored) else up.stored.scaled(tokens)
        multiplier = up.stored.finished(other, up.ending(), x.dtype)
        inner = gate.stored.finished(scaled, gate.ending(self.activation, multiplier), x.dtype)
        down: QuantLinear = self.module.down_proj
        return down.forward(inner.view(*x.shape[:-1], -1), residual)


def replace_gated(model: nn.Module) -> dict[str, str]:
    """All gated products of a model whose Linears have kernels that do what follows them.

    Returns:
        A module's name → why it stays plain; empty if it does not.
    """
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        activation = activation_of(module)
        if activation is None or not all(fuses(getattr(module, part)) for part in PARTS - {"down_proj"}):
            continue
        gated = GatedProduct(module, activation)
        found[name] = _refusal(gated)
        if not found[name]:
            module.forward = gated.forward
    return found


def _refusal(gated: GatedProduct) -> str:
    """Why a module stays plain; empty if it does not."""
    module = gated.module
    if not isinstance(module.down_proj, QuantLinear):
        return f"down_proj is {type(module.down_proj).__name__}"
    try:
        expect_attributes(module)
    except Unknown as error:
        return str(error)
    return verdict(_difference(gated), bound(getattr(module, part) for part in PARTS))


def fuses(linear: object) -> bool:
    """Whether a Linear has a kernel that does what follows its product."""
    stored = linear.stored if isinstance(linear, QuantLinear) else None
    return isinstance(stored, QuantizedWeight) and stored.fused is not None


@torch.inference_mode()
def _difference(gated: GatedProduct) -> float:
    """From the plain forward, over each token's largest value; small and large tokens, with a residual and without."""
    gate = gated.module.gate_proj
    x = torch.randn(TRIED, gate.in_features, generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(-2, 2, TRIED).unsqueeze(1)
    x = x.to(gate.stored.packed[0].device)
    expected = gated.plain(x)
    largest = expected.abs().amax(1, keepdim=True).clamp(min=1e-9)
    residual = expected.roll(1, 1)
    worst = 0.0
    for found, wanted in ((gated.finished(x), expected), (gated.finished(x, residual), expected + residual)):
        if found.shape != wanted.shape:
            return torch.inf
        worst = max(worst, float(((found - wanted).abs() / largest).max()))
    return worst
