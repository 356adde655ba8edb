"""A tiny model with random weights of every family that transformers can build; used by `families.py`.

A family's config says what it needs by the names of its arguments, and families agree on most of them: `SIZES` has a
small value for each. What a family calls otherwise, or wants to fit together, is in `SPECIAL`.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto import configuration_auto, modeling_auto

VOCABULARY, LENGTH, LARGEST = 384, 32, 20_000_000

WIDTH, WIDE, LAYERS, HEADS = 64, 128, 2, 4
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "n_vocab", "src_vocab_size"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "embed_dim", "dim", "emb_dim"), WIDTH),
    **dict.fromkeys(("lru_width", "attention_hidden_size", "d_embed", "input_hidden_size"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim"), WIDE),
    **dict.fromkeys(("d_inner", "feed_forward_size", "ffn_hidden_size", "dim_ff", "dff", "hidden_dim"), WIDE),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers", "num_encoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "num_decoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_encoder_attention_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "dim_head", "v_head_dim", "qk_nope_head_dim", "linear_key_head_dim"), 16),
    **dict.fromkeys(("linear_value_head_dim", "kv_channels", "attention_head_dim", "global_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim", "time_step_rank", "laurel_rank", "altup_num_inputs"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"), 512),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank"), 32),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k", "num_experts_per_token", "moe_k", "topk"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("shared_intermediate_size", "expert_intermediate_size", "hidden_size_per_layer_input"), 32),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_expert_size"), 32),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_state_dim"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("sliding_window", "attention_window_size", "attention_chunk_size", "local_attention"), 16),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "chunk_len"), 16),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "num_kv_shared_layers"), 1),
    "linear_num_value_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "type_vocab_size": 2,
    "is_decoder": True,
    "use_cache": True,
    "num_nextn_predict_layers": 0,
}
"""Argument of a config → its value here; those that a config does not take are left out."""

_LATENT = {"num_key_value_heads": HEADS}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16}
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), _LATENT),
    **dict.fromkeys(("glm_moe_dsa", "minicpm3", "youtu", "esmc", "bailing_hybrid", "kimi_linear"), _LATENT),
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    "gemma4_text": {"num_kv_shared_layers": 0},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"num_key_value_heads": HEADS, "head_dim": 8, "qk_head_dim": 24},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 32], "attn_layers": ["local", "lsh"],
        "attention_head_size": 16, "local_attn_chunk_length": 16, "lsh_attn_chunk_length": 16, "num_buckets": 4,
    },
    "xlstm": {"head_dim": 16, "num_heads": 4, "embedding_dim": WIDTH, "num_blocks": LAYERS},
    "zamba": {"layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 2, "attention_head_dim": 32},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 8, "num_mem_blocks": 1},
    "zaya": {"num_experts_per_tok": 1},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_head": 16},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 16},
}  # fmt: skip
"""Model type → what else its config is given."""

ENCODERS = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def families() -> dict[str, str]:
    """Model type → 'causal' or 'encoder': what transformers maps to a head for next, or for masked, tokens."""
    kinds = dict.fromkeys(CAUSAL, "causal")
    return kinds | {name: "encoder" for name in ENCODERS if name in modeling_auto.MODEL_MAPPING_NAMES}


def config_of(family: str, encoder: bool) -> Any:
    """Its config, small.

    Raises:
        Exception: whatever the config's own checks raise.
    """
    kind = getattr(transformers, configuration_auto.CONFIG_MAPPING_NAMES[family])
    known = inspect.signature(kind.__init__).parameters
    values = {name: value for name, value in SIZES.items() if name in known}
    if encoder:
        values.pop("is_decoder", None)
    values |= SPECIAL.get(family, {})
    if "layer_types" in known and "layer_types" not in values:
        values |= _layer_types(kind, known)
    return kind(**values)


def _layer_types(kind: Any, known: Iterable[str]) -> dict[str, Any]:
    """One layer of each type that the family mixes, so that all of them are tried."""
    default = kind()
    found = {}
    for name in ("layer_types", "mlp_layer_types"):
        if name in known and (types := getattr(default, name, None)):
            found[name] = list(dict.fromkeys(types))
    count = max([LAYERS, *map(len, found.values())])
    repeated = {name: list(itertools.islice(itertools.cycle(types), count)) for name, types in found.items()}
    return {**repeated, "num_hidden_layers": count} if found else {}


def written(family: str, encoder: bool, folder: Path, tokenizer: Any) -> Any:
    """Make the model, look whether it runs, and write it with a tokenizer.

    Raises:
        Exception: it cannot be built, it is too large, or it does not run on plain text.
    """
    config = config_of(family, encoder)
    auto = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in auto.from_config(config, trust_remote_code=False).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million weights")
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
            elif "norm" not in name.lower() and not parameter.any():
                parameter.normal_(0, 0.02)
    values = output(model, torch.randint(3, VOCABULARY, (1, LENGTH)))
    if not values.isfinite().all():
        raise ValueError("what it puts out is not finite")
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def output(model: Any, ids: Tensor) -> Tensor:
    """Logits, or the last hidden states: (batch, time, size)."""
    with torch.no_grad():
        found = model(input_ids=ids)
    value: Tensor = found.logits if hasattr(found, "logits") else found.last_hidden_state
    return value.float()
