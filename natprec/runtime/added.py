"""Residuals of decoder blocks, added inside the kernels of the products before them.

A block's forward is replaced, not the block: what it adds to its input is then finished by the last Linear of its
attention and by the last of its gated product, where these have kernels that do what follows a product. Attention stays
the model's own. A block is recognised by its parts, then compared with its plain forward inside the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from natprec.runtime.compare import bound, differences, verdict
from natprec.runtime.gated import GatedProduct, fuses
from natprec.runtime.kernels.linear import QuantLinear
from natprec.runtime.match_block import CHILDREN, Unknown, decoder_blocks, expect_attributes, expect_children


class Adding:
    """Instead of a Linear's forward, until `stop`: adds what it was given for its next call."""

    def __init__(self, linear: QuantLinear) -> None:
        self.linear = linear
        self.residual: Tensor | None = None
        linear.forward = self.forward  # type: ignore[method-assign, assignment]

    def stop(self) -> None:
        """The Linear's own again."""
        del self.linear.forward

    def forward(self, x: Tensor) -> Tensor:
        """(…, columns) to (…, rows)."""
        residual, self.residual = self.residual, None
        return QuantLinear.forward(self.linear, x, residual)


class AddingBlock:
    """Instead of a block's forward."""

    def __init__(self, layer: Any) -> None:
        expect_children(layer, CHILDREN)
        expect_attributes(layer)
        output, gated = getattr(layer.self_attn, "o_proj", None), getattr(layer.mlp.forward, "__self__", None)
        self.layer = layer
        self.output = Adding(output) if isinstance(output, QuantLinear) and fuses(output) else None
        self.gated = gated if isinstance(gated, GatedProduct) else None
        if self.output is None and self.gated is None:
            raise Unknown("no kernel of its last products adds a residual")
        self.plain: Callable[..., Any] = functools.partial(type(layer).forward, layer)
        self.bound = bound(module for module in layer.modules() if isinstance(module, QuantLinear))
        inside = [module for module in layer.modules() if module is not layer]
        self._hooks = [hooks for each in inside for hooks in (each._forward_hooks, each._forward_pre_hooks)]

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(batch, time, hidden) to the same."""
        x = hidden_states
        if args or any(self._hooks) or x.requires_grad or self.layer.training or torch.compiler.is_compiling():
            return self.plain(x, *args, **kwargs)
        return self._run(x, **kwargs)

    def tried(self, x: Tensor, cache: Any, kwargs: dict[str, Any]) -> Tensor | None:
        """What it computes of a call; None where its parts answer otherwise."""
        y = self._run(x, past_key_values=cache, **kwargs)
        return y if isinstance(y, Tensor) else None

    def _run(self, x: Tensor, **kwargs: Any) -> Any:
        layer = self.layer
        left: Tensor | None = x
        try:
            if self.output is not None:
                self.output.residual = x
            y: Tensor = layer.self_attn(hidden_states=layer.input_layernorm(x), **kwargs)[0]
        finally:
            if self.output is not None:
                left, self.output.residual = self.output.residual, None
        if left is not None:
            y = left + y
        normed = layer.post_attention_layernorm(y)
        if self.gated is not None:
            return self.gated.finished(normed, y)
        z = layer.mlp(normed)
        return y + z if isinstance(z, Tensor) else z


def replace_residuals(model: Any) -> dict[str, str]:
    """Every decoder block of a causal model, after its gated products.

    Returns:
        Its name → why it stays plain; empty if it does not.
    """
    found: dict[str, str] = {}
    adding: dict[str, AddingBlock] = {}
    for name, layer in decoder_blocks(model).items():
        try:
            adding[name] = AddingBlock(layer)
        except Unknown as error:
            found[name] = str(error)
    if adding:
        layers = {name: block.layer for name, block in adding.items()}
        worst = differences(model, layers, lambda name, *given: adding[name].tried(*given))
        found |= {name: verdict(worst[name], block.bound) for name, block in adding.items()}
    for name, block in adding.items():
        if not found[name]:
            block.layer.forward = block.forward
        elif block.output is not None:
            block.output.stop()
    return found
