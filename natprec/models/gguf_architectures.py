"""The models that GGUF has a form for, and what each needs there.

Names of tensors come from the `gguf` package's own table. llama.cpp rotates neighbouring pairs of a llama's query and
key rows, transformers rows that are half a head apart: rows are reordered on the way, whole rows, so that their blocks
stay as they are. For qwen2, qwen3, phi3 and gemma3 both rotate alike. A gemma's norms multiply by 1 + weight in
transformers, and by the stored weight in llama.cpp. The experts of a layer are one tensor in GGUF, (experts, rows,
columns).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from natprec.errors import ModelError

_NUMBERED = re.compile(r"experts\.\d+\.")


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's.

    Attributes:
        name: as GGUF spells it.
        paired: whether query and key rows are reordered into neighbouring pairs.
        head_size: whether the size of a head is written even where it is hidden size over heads.
        added_to_norms: what is added to the weights of norms.
        windowed: whether the size of the window that attention sees is written, 0 for none.
        experts: whether layers have experts; natprec itself reads no such file, transformers does.
    """

    name: str
    paired: bool = False
    head_size: bool = False
    added_to_norms: float = 0.0
    windowed: bool = False
    experts: bool = False

    def tensor_names(self, model: nn.Module) -> dict[str, str]:
        """Key of the state dict → GGUF name; the experts of a layer share one, and lie there by their numbers.

        Raises:
            ModelError: a tensor has none.
        """
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

        kind: MODEL_ARCH = next(key for key, label in MODEL_ARCH_NAMES.items() if label == self.name)
        config: Any = model.config
        known = get_tensor_name_map(kind, config.num_hidden_layers)
        names = {}
        for key in model.state_dict():
            module, _, parameter = key.rpartition(".")
            found = known.get_name(_NUMBERED.sub("experts.", module) if self.experts else module)
            if found is None:
                raise ModelError(f"tensor {key!r} has no place in a GGUF file of {self.name!r}; use another --engine")
            names[key] = f"{found}.{parameter}"
        return names

    def heads(self, model: nn.Module, key: str) -> int:
        """Heads whose rows are reordered in this tensor; 0 for none."""
        config: Any = model.config
        counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        return counts.get(key.split(".")[-2], 0) if self.paired else 0

    def stored(self, key: str, tensor: Tensor) -> Tensor:
        """A tensor that is not quantized, as the file has it."""
        value = tensor.detach().float().cpu()
        return value + self.added_to_norms if key.endswith("norm.weight") else value

    def in_model(self, key: str, values: npt.NDArray[Any], model: nn.Module) -> npt.NDArray[Any]:
        """Values of a tensor in the file, as the model has them."""
        values = halved(values, self.heads(model, key))
        return values - np.float32(self.added_to_norms) if key.endswith("norm.weight") else values

    def add_hyperparameters(self, writer: Any, model: nn.Module) -> None:
        """The architecture's metadata."""
        config: Any = model.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        rope = _rope(config)
        writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        if self.windowed:
            writer.add_sliding_window(config.sliding_window or 0)
        if self.experts:
            writer.add_expert_count(config.num_experts)
            writer.add_expert_used_count(config.num_experts_per_tok)
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        if self.head_size or head * config.num_attention_heads != config.hidden_size:
            writer.add_key_length(head)
            writer.add_value_length(head)


ARCHITECTURES = {
    "llama": Architecture("llama", paired=True),
    "mistral": Architecture("llama", paired=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", head_size=True),
    "phi3": Architecture("phi3", windowed=True),
    "qwen3_moe": Architecture("qwen3moe", head_size=True, experts=True),
    "gemma3_text": Architecture("gemma3", head_size=True, added_to_norms=1.0, windowed=True),
}
"""`model_type` in transformers → in GGUF; each was read back by transformers, and run in llama.cpp where that is
installed (tests/checkpoints/test_gguf.py)."""

LOCAL_THETA, PATTERN = 10_000.0, 6
"""Of a gemma3, what llama.cpp supposes: the base of rotations within a window, and one layer of six without it."""


def architecture_of(model: nn.Module) -> Architecture:
    """The form that a model takes in GGUF.

    Raises:
        ModelError: natprec knows none, or it rotates positions in a way that is not written yet.
    """
    config: Any = model.config
    known = ARCHITECTURES.get(config.model_type)
    if known is None:
        raise ModelError(
            f"model type {config.model_type!r} cannot be written as GGUF yet, only {', '.join(ARCHITECTURES)}; "
            "use another --engine"
        )
    rope = _rope(config).get("rope_type", "default")
    if known.name == "gemma3":
        _refuse_unusual_gemma(config)
    if known.experts:
        _refuse_unusual_experts(config)
    if rope != "default":
        raise ModelError(f"positions scaled by {rope!r} cannot be written as GGUF yet; use another --engine")
    if known.name == "llama" and (getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)):
        raise ModelError("a llama with biases cannot be read back from GGUF by transformers; use another --engine")
    return known


def halved(values: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """The inverse of `interleaved`."""
    if not heads:
        return values
    shape = values.shape
    return values.reshape(heads, -1, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _rope(config: Any) -> dict[str, Any]:
    """How positions are rotated; where layers differ, in those that see everything."""
    rope: dict[str, Any] = config.rope_parameters
    return rope.get("full_attention", rope)


def _refuse_unusual_gemma(config: Any) -> None:
    """llama.cpp supposes of a gemma3 what its files do not say.

    Raises:
        ModelError: this one differs.
    """
    local = config.rope_parameters.get("sliding_attention", {})
    full = ["full_attention" if (at + 1) % PATTERN == 0 else "sliding_attention"
            for at in range(config.num_hidden_layers)]  # fmt: skip
    head = config.head_dim
    for what, same in (
        ("layers with a window", list(config.layer_types) == full),
        ("rotations within the window", local.get("rope_theta", LOCAL_THETA) == LOCAL_THETA),
        ("a scale of attention", config.query_pre_attn_scalar == head),
        ("a soft cap", not getattr(config, "final_logit_softcapping", None)),
    ):
        if not same:
            raise ModelError(f"this gemma3 has {what} that llama.cpp does not suppose; use another --engine")


def _refuse_unusual_experts(config: Any) -> None:
    """llama.cpp supposes experts in every layer, and weights of those chosen that add up to 1.

    Raises:
        ModelError: this model differs.
    """
    for what, same in (
        ("layers without experts", config.decoder_sparse_step == 1 and not config.mlp_only_layers),
        ("weights of experts that do not add up to 1", config.norm_topk_prob),
    ):
        if not same:
            raise ModelError(
                f"this {config.model_type} has {what}, which llama.cpp does not suppose; use another --engine"
            )


def interleaved(values: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Rows of each head in the order 0, n/2, 1, n/2 + 1, …; as they are for 0 heads."""
    if not heads:
        return values
    order = np.arange(len(values)).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    return values[order]
