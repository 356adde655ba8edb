"""Tiny models of several families, quantized; what they compute with and without replaced forwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from natprec.formats import Format
from natprec.measurement.subject import Subject
from natprec.runtime.load import Runnable
from tests.arrange import tokens
from tests.runtime.test_load import written

IDS = tokens(1, 24).ids
INPUTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
"""As config.json says that activations are rounded to int8."""
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
}


def qwen2() -> Any:
    """Biases of query, key and value; one head of keys for four."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=1))
    for layer in model.model.layers:
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            torch.nn.init.normal_(linear.bias)
    return model


def qwen3() -> Any:
    """Norms over heads of query and key; heads of another size than hidden / heads."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=32))
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_norm.weight)
        torch.nn.init.normal_(layer.self_attn.k_norm.weight)
    return model


def mistral() -> Any:
    """A sliding window of 8: the cache and the mask are its own."""
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8))


def granite() -> Any:
    """A llama, but for factors at residuals, embedding and logits."""
    from transformers import GraniteConfig, GraniteForCausalLM

    return GraniteForCausalLM(GraniteConfig(**SIZES, num_key_value_heads=2, residual_multiplier=0.5))


def gelu() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, hidden_act="gelu"))


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4))


def saved(folder: Path, model: Any, tokenizer: Any, fmt: Format, engine: str = "natprec") -> Path:
    """Quantized, with weights large enough to matter."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                module.weight.mul_(4)
    return written(folder, Subject.in_memory(model.eval(), tokenizer, "small"), fmt, engine)


@contextlib.contextmanager
def plain(runnable: Runnable) -> Iterator[None]:
    """All forwards are transformers' own."""
    kept = [(m, m.__dict__.pop("forward")) for m in runnable.model.modules() if "forward" in m.__dict__]
    yield
    for module, forward in kept:
        module.forward = forward


@torch.inference_mode()
def logits(runnable: Runnable, ids: Tensor = IDS, first: int = 20) -> Tensor:
    """Of the prompt's tokens, then of others one by one, so that a replaced block has a cache to go on from."""
    output = runnable(input_ids=ids[:, :first], use_cache=True)
    found = [output.logits]
    for at in range(first, ids.shape[1]):
        output = runnable(input_ids=ids[:, at : at + 1], past_key_values=output.past_key_values, use_cache=True)
        found.append(output.logits)
    return torch.cat(found, 1)


def errors(runnable: Runnable, ids: Tensor = IDS) -> Tensor:
    """Largest difference of a logit from the plain modules', over the largest logit: [tokens]."""
    found = logits(runnable, ids)
    with plain(runnable):
        expected = logits(runnable, ids)
    return (found - expected).abs().amax((0, 2)) / expected.abs().max()


def error(runnable: Runnable, ids: Tensor = IDS) -> float:
    """The largest of all tokens."""
    return float(errors(runnable, ids).max())
