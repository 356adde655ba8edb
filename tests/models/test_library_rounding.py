"""With `--engine transformers` nothing is planned that its library would round otherwise, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from natprec.errors import ModelError
from natprec.measurement.subject import Subject
from tests.arrange import experts, subject
from tests.models.test_blocks import built
from tests.run_command import SMALL, natprec


@pytest.mark.parametrize("family", ["llama", "Mixtral", "Qwen3Moe"])
def test_what_the_library_rounds_as_planned_passes(family: str) -> None:
    made = subject() if family == "llama" else Subject.in_memory(experts(family), None, "small")
    made.refuse_rounded_otherwise("transformers", inputs=True, cache=True)


def test_a_shared_expert_gets_tokens_without_sequences() -> None:
    made = Subject.in_memory(experts("Qwen2Moe"), None, "small")
    with pytest.raises(
        ModelError, match=r"inputs of '.*shared_expert.*' would be rounded with one scale for all tokens"
    ):
        made.refuse_rounded_otherwise("transformers", inputs=True, cache=False)
    made.refuse_rounded_otherwise("transformers", inputs=False, cache=True)
    made.refuse_rounded_otherwise("vllm", inputs=True, cache=True)


@pytest.mark.parametrize("family", ["gpt-neox"])
def test_attention_that_the_library_does_not_know(
    family: str, tmp_path: Path, tiny_tokenizer: Any, text_file: Path
) -> None:
    model = tmp_path / "m"
    built(family).save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    result = natprec(
        "quantize", "--model", model, "--data", text_file, *SMALL, "--eps", "1e-2", "--engine", "transformers",
        "--kv", "8", "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 2
    assert "GPTNeoXAttention) would stay as they are in transformers" in result.reason
    Subject.in_memory(built(family), None).refuse_rounded_otherwise("natprec", inputs=True, cache=True)


def test_a_cache_of_more_than_keys_and_values() -> None:
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.MiniMaxConfig(
        **sizes, num_key_value_heads=2, head_dim=16, vocab_size=96, num_local_experts=2, num_experts_per_tok=1,
        block_size=8, layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    made = Subject.in_memory(transformers.MiniMaxForCausalLM(config).eval(), None, "small")
    with pytest.raises(ModelError, match="keeps its state in a MiniMaxCache"):
        made.refuse_rounded_otherwise("transformers", inputs=False, cache=True)


def test_attention_with_a_scale_of_its_own() -> None:
    made = subject()
    made.model.get_submodule("model.layers.1.self_attn").v_scale = 0.5
    with pytest.raises(ModelError, match=r"'model.layers.1.self_attn' \(LlamaAttention\) has something of its own"):
        made.refuse_rounded_otherwise("transformers", inputs=False, cache=True)


def test_heads_that_the_library_cannot_count() -> None:
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BioGptConfig(**sizes, vocab_size=96, max_position_embeddings=64)
    made = Subject.in_memory(transformers.BioGptForCausalLM(config).eval(), None, "small")
    with pytest.raises(ModelError, match="BioGptConfig has no num_key_value_heads, by which"):
        made.refuse_rounded_otherwise("transformers", inputs=False, cache=True)
    made.refuse_rounded_otherwise("natprec", inputs=False, cache=True)


def test_heads_that_differ_from_layer_to_layer() -> None:
    """Gemma 4 has wider ones where a layer looks at all tokens; its config refuses to name one size."""
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Gemma4TextConfig(
        **sizes, num_key_value_heads=1, head_dim=8, global_head_dim=16, vocab_size=96, vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8, layer_types=["sliding_attention", "full_attention"], num_kv_shared_layers=0,
    )  # fmt: skip
    made = Subject.in_memory(transformers.Gemma4ForCausalLM(config).eval(), None, "small")
    with pytest.raises(ModelError, match="Gemma4TextConfig has no head_dim for all layers, by which"):
        made.refuse_rounded_otherwise("transformers", inputs=False, cache=True)
