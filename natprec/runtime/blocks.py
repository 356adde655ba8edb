"""Decoder blocks as few calls: one for one token (native/block.c), a dozen for many, instead of some sixty.

Only what a block does is replaced, not the module: its forward. A block is recognised by its structure, then compared
with its plain forward inside the model, on some tokens; where it differs it stays plain. It also runs plain whenever it
is called in a way that its few calls do not know: a mask, gradients, hooks on what is inside, a cache of another kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import natprec.runtime.kernels.decoder_ops  # noqa: F401  (registers the operations)
from natprec import native
from natprec.runtime.compare import bound, differences, verdict
from natprec.runtime.kernels.block import Block, OneToken, refusal
from natprec.runtime.match_block import Unknown, decoder_blocks, read_block

if TYPE_CHECKING:
    from natprec.runtime.cache import Growing


def replace_blocks(model: nn.Module) -> dict[str, str]:
    """Every decoder block of a causal model on the CPU.

    Returns:
        Its name → why it stays plain; empty if it does not.
    """
    layers = decoder_blocks(model)
    if native.library()[0] is None:
        return dict.fromkeys(layers, native.library()[1])
    found: dict[str, str] = {}
    lean: dict[str, LeanBlock] = {}
    for name, layer in layers.items():
        try:
            lean[name] = LeanBlock(layer, read_block(layer))
            found[name] = ""
        except Unknown as error:
            found[name] = str(error)
    if not lean:
        return found
    worst = differences(
        model, {name: block.layer for name, block in lean.items()}, lambda name, *given: lean[name].tried(*given)
    )
    for name, block in lean.items():
        found[name] = verdict(worst[name], block.bound)
        if not found[name]:
            block.layer.forward = block.forward
    return found


class LeanBlock:
    """Instead of a block's forward."""

    def __init__(self, layer: nn.Module, block: Block) -> None:
        from natprec.runtime.cache import growing

        self.layer, self.block, self._growing = layer, block, growing
        self.plain: Callable[..., Tensor] = functools.partial(type(layer).forward, layer)
        linears = (*block.states, block.output, *block.gate_up, block.down)
        for linear in linears:
            if cause := refusal(linear):
                raise Unknown(cause)
        self.bound = bound(linears)
        self.index = int(layer.self_attn.layer_idx)  # type: ignore[union-attr, arg-type]
        self.one = OneToken([block])
        self.state = torch.empty(1, block.key_heads, 1, block.size)
        inside = [module for module in layer.modules() if module is not layer]
        self._hooks = [hooks for each in inside for hooks in (each._forward_hooks, each._forward_pre_hooks)]

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(batch, time, hidden) to the same."""
        y = None
        if attention_mask is None and position_embeddings is not None and self._knows(hidden_states, kwargs):
            y = self._run(hidden_states, past_key_values, *position_embeddings)
        if y is not None:
            return y
        return self.plain(
            hidden_states, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
            use_cache=use_cache, position_embeddings=position_embeddings, **kwargs,
        )  # fmt: skip

    def tried(self, x: Tensor, cache: Any, kwargs: dict[str, Any]) -> Tensor | None:
        """What it computes of a call; None where that is for the plain forward."""
        if kwargs.get("attention_mask") is not None or kwargs.get("position_embeddings") is None:
            return None
        return self._run(x, cache, *kwargs["position_embeddings"])

    def _knows(self, x: Tensor, kwargs: dict[str, Any]) -> bool:
        return not (
            x.dtype != torch.float32
            or x.device.type != "cpu"
            or any(self._hooks)
            or x.requires_grad
            or torch.compiler.is_compiling()
            or self.layer.training
            or kwargs.get("output_attentions")
        )

    def _run(self, x: Tensor, cache: Any, cos: Tensor, sin: Tensor) -> Tensor | None:
        """None where this is for the plain forward."""
        batch, time, hidden = x.shape
        if cos.dtype != torch.float32 or cos.shape != (1, time, self.block.size) or hidden != self.block.hidden:
            return None
        past = self._growing(cache, self.index)
        if past is None and cache is not None:
            return None
        if past is None or time > 1:
            return None if past is not None and past.length else self._many(x, cache, cos[0], sin[0])
        return self.step(x.contiguous(), cos.contiguous(), sin.contiguous(), past) if batch == 1 else None

    def step(self, x: Tensor, cos: Tensor, sin: Tensor, past: Growing) -> Tensor:
        """One token, x (1, 1, hidden) to the same, with cos and sin of its position; it is added to the cache."""
        past.start(x)
        y = self.one(x, cos, sin, [past.reserve(self.state)], past.length)
        past.length += 1
        return y

    def _many(self, x: Tensor, cache: Any, cos: Tensor, sin: Tensor) -> Tensor:
        block, (batch, time, hidden) = self.block, x.shape
        size, turned = block.size, block.heads + block.key_heads
        x = x.reshape(-1, hidden)
        states = _side_by_side(block.states, torch.ops.natprec.rms_norm(x, block.before.weight, block.before.eps))
        heads = states.view(batch * time, -1, size)
        for norm, part in ((block.of_query, slice(block.heads)), (block.of_key, slice(block.heads, turned))):
            if norm is not None:
                normed = torch.ops.natprec.rms_norm(heads[:, part].reshape(-1, size), norm.weight, norm.eps)
                heads[:, part] = normed.view(batch * time, -1, size)
        torch.ops.natprec.rotate_(states, cos, sin, turned)
        query, key, value = (
            part.transpose(1, 2)
            for part in states.view(batch, time, -1, size).split([block.heads, block.key_heads, block.key_heads], 2)
        )
        if cache is not None:
            key, value = cache.update(key, value, self.index)
        mixed = torch.ops.natprec.attention(query, key, value, block.scaling)
        y = block.output(mixed.view(batch * time, -1)).add_(x)
        gate_up = _side_by_side(block.gate_up, torch.ops.natprec.rms_norm(y, block.between.weight, block.between.eps))
        product = block.down(torch.ops.natprec.gate(*gate_up.chunk(2, 1)))
        return product.add_(y).view(batch, time, hidden)


def _side_by_side(linears: tuple[Any, ...], x: Tensor) -> Tensor:
    return linears[0](x) if len(linears) == 1 else torch.cat([linear(x) for linear in linears], 1)
