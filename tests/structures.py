"""Tiny models of families whose structure is unlike a llama's; weights large enough to matter, none of them zero."""

from __future__ import annotations

from typing import Any

import torch

from natprec.measurement.subject import Subject

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


def deberta() -> Any:
    """Blocks return two values; relative positions are read of an embedding that is never called."""
    import transformers

    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 64}
    sizes = SIZES | {"pad_token_id": 0}
    return transformers.DebertaV2Model(transformers.DebertaV2Config(**sizes, **relative, position_biased_input=False))


def mpnet() -> Any:
    """Blocks are given one bias of positions."""
    import transformers

    return transformers.MPNetModel(transformers.MPNetConfig(**SIZES | {"pad_token_id": 0}))


def albert() -> Any:
    """One block at all depths."""
    import transformers

    sizes = {**SIZES, "num_hidden_layers": 3, "pad_token_id": 0}
    return transformers.AlbertModel(transformers.AlbertConfig(**sizes, embedding_size=32))


def gpt2() -> Any:
    """Matrices that are stored the other way round (Conv1D), queries, keys and values in one."""
    import transformers

    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=512, bos_token_id=0, eos_token_id=1
        )
    )


def zamba2(**changes: Any) -> Any:
    """A block that two layers share, and small matrices of each of them."""
    import transformers

    return transformers.Zamba2ForCausalLM(
        transformers.Zamba2Config(
            vocab_size=96, hidden_size=64, num_hidden_layers=4, mamba_d_state=16, mamba_ngroups=1, n_mamba_heads=8,
            layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], mamba_headdim=16, chunk_size=16,
            intermediate_size=128, num_attention_heads=4, num_mem_blocks=1, bos_token_id=0, eos_token_id=1,
            pad_token_id=None, **changes,
        )
    )  # fmt: skip


def qwen3_next() -> Any:
    """Linear attention, whose norm is given a gate."""
    import transformers

    return transformers.Qwen3NextForCausalLM(
        transformers.Qwen3NextConfig(
            **SIZES | {"num_hidden_layers": 2}, num_key_value_heads=2, head_dim=16, linear_num_value_heads=4,
            linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16, num_experts=4,
            num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32,
            layer_types=["linear_attention", "full_attention"],
        )
    )  # fmt: skip


def mamba2() -> Any:
    """A norm that may be given a gate."""
    import transformers

    return transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(
            vocab_size=96, hidden_size=64, num_hidden_layers=2, state_size=16, num_heads=8, head_dim=16, n_groups=1,
            chunk_size=16, bos_token_id=0, eos_token_id=1, pad_token_id=None, tie_word_embeddings=True,
        )
    )  # fmt: skip


def mamba() -> Any:
    """A Linear of 8 inputs whose weight is read, and which is never called."""
    import transformers

    return transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=96, hidden_size=64, num_hidden_layers=2, state_size=8, time_step_rank=8, bos_token_id=0,
            eos_token_id=1, pad_token_id=None,
        )
    )  # fmt: skip


def jamba() -> Any:
    """The same, of 24 inputs, beside attention."""
    import transformers

    return transformers.JambaForCausalLM(
        transformers.JambaConfig(
            **SIZES, num_key_value_heads=2, num_experts=1, attn_layer_period=2, attn_layer_offset=1,
            expert_layer_period=2, expert_layer_offset=1, mamba_d_state=8, mamba_dt_rank=24,
        )
    )  # fmt: skip


def gemma3n() -> Any:
    """Several hidden states beside each other, and matrices of 2 inputs."""
    import transformers

    return transformers.Gemma3nForCausalLM(
        transformers.Gemma3nTextConfig(
            **SIZES | {"num_hidden_layers": 4, "intermediate_size": [128] * 4}, vocab_size_per_layer_input=96,
            hidden_size_per_layer_input=16, num_key_value_heads=2, head_dim=16, sliding_window=16,
            layer_types=["sliding_attention", "full_attention"] * 2, altup_num_inputs=2, num_kv_shared_layers=2,
            laurel_rank=8, activation_sparsity_pattern=[0.0] * 4,
        )
    )  # fmt: skip


def deepseek(version: int = 3, **changes: Any) -> Any:
    """Latent attention: keys of 24, values of 16, both from a small norm."""
    import transformers

    sizes = {
        **SIZES, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "first_k_dense_replace": 2, "kv_lora_rank": 32, "q_lora_rank": 32,
        "qk_rope_head_dim": 8, "v_head_dim": 16, "qk_nope_head_dim": 16, "n_group": 2, "topk_group": 1, **changes,
    }  # fmt: skip
    config = getattr(transformers, f"DeepseekV{version}Config")(**sizes)
    return getattr(transformers, f"DeepseekV{version}ForCausalLM")(config)


def made(build: Any, tokenizer: Any = None, **changes: Any) -> Subject:
    """Ready to measure."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(**changes).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(torch.randn_like(parameter) * 0.1)
    return Subject.in_memory(model, tokenizer, "small")
