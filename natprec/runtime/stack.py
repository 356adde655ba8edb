"""A decoder that reads one token: its embedding, all of its blocks in one call, its last norm; nothing else.

What transformers' forward does besides (masks, defaults, outputs to collect) costs more than a block. This one is used
for one token after others, and kept only if it gives the very same bits for one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from natprec.runtime.blocks import LeanBlock
from natprec.runtime.kernels.block import OneToken

if TYPE_CHECKING:
    from natprec.runtime.cache import Growing

CHILDREN = {"embed_tokens", "layers", "norm", "rotary_emb"}


def replace_stack(model: Any) -> str:
    """Of a causal model whose blocks have been replaced.

    Returns:
        Why it stays plain; empty if it does not.
    """
    decoder = next((module for module in model.modules() if {n for n, _ in module.named_children()} == CHILDREN), None)
    if decoder is None:
        return "there is no decoder with just an embedding, blocks, a norm and a rotary embedding"
    blocks = [getattr(layer.__dict__.get("forward"), "__self__", None) for layer in decoder.layers]
    if not blocks or not all(isinstance(block, LeanBlock) for block in blocks):
        return "some blocks stay plain"
    stack = Stack(decoder, blocks)  # type: ignore[arg-type]
    if not _agrees(model, stack):
        return "it computes something else"
    decoder.forward = stack.forward
    return ""


class Stack:
    """Instead of a decoder's forward."""

    def __init__(self, decoder: Any, blocks: list[LeanBlock]) -> None:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        from natprec.runtime.cache import growing

        self._all = OneToken([block.block for block in blocks])
        self.decoder, self.blocks, self._growing, self._output = decoder, blocks, growing, BaseModelOutputWithPast
        self.plain: Callable[..., Any] = functools.partial(type(decoder).forward, decoder)
        inside = [module for module in decoder.modules() if module is not decoder]
        self._hooks = [hooks for each in inside for hooks in (each._forward_hooks, each._forward_pre_hooks)]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden values of the last norm, and the cache."""
        given = (attention_mask, position_ids, inputs_embeds)
        if input_ids is not None and input_ids.shape == (1, 1) and use_cache and given == (None, None, None):
            layers = self._layers(past_key_values, kwargs)
            if layers:
                return self._output(last_hidden_state=self.step(input_ids, layers), past_key_values=past_key_values)
        return self.plain(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache, **kwargs,
        )  # fmt: skip

    def step(self, ids: Tensor, layers: list[Growing]) -> Tensor:
        """The token after those in the cache."""
        decoder = self.decoder
        x = decoder.embed_tokens(ids)
        cos, sin = decoder.rotary_emb(x, position_ids=torch.tensor([[layers[0].length]]))
        states = [layer.reserve(block.state) for block, layer in zip(self.blocks, layers, strict=True)]
        x = self._all(x.contiguous(), cos.contiguous(), sin.contiguous(), states, layers[0].length)
        for layer in layers:
            layer.length += 1
        return decoder.norm(x)

    def _layers(self, cache: Any, kwargs: dict[str, Any]) -> list[Growing]:
        """Of a cache that holds the tokens before; empty where this is for the plain forward."""
        config = self.decoder.config
        if (
            cache is None
            or any(self._hooks)
            or any(value for name, value in kwargs.items() if name != "return_dict")
            or kwargs.get("return_dict") is False
            or self.decoder.training
            or torch.compiler.is_compiling()
            or config.output_hidden_states
            or config.output_attentions
        ):
            return []
        layers = [layer for block in self.blocks if (layer := self._growing(cache, block.index)) is not None]
        same = len(layers) == len(self.blocks) and len({layer.length for layer in layers}) == 1
        return layers if same and layers[0].length else []


@torch.inference_mode()
def _agrees(model: Any, stack: Stack) -> bool:
    """Whether the second token's hidden values are the plain forward's, bit for bit."""
    first, second = torch.randint(
        model.config.get_text_config().vocab_size, (2, 1, 1), generator=torch.Generator().manual_seed(0)
    ).unbind()
    caches = [stack.plain(input_ids=first, use_cache=True).past_key_values for _ in range(2)]
    layers = stack._layers(caches[0], {})
    if not layers:
        return False
    expected = stack.plain(input_ids=second, past_key_values=caches[1], use_cache=True).last_hidden_state
    return torch.equal(stack.step(second, layers), expected)
