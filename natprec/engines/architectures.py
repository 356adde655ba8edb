"""Which of vLLM's models hand their quantization config to the embedding, and to the head: read from vLLM 0.33.0.

`scripts/vllm_architectures.py` makes this table from vLLM's model files, and compares it with those of a later version.
An embedding that is given the config and its name (`prefix`) is matched like any layer. One that is given the config
alone has the empty name, which no target is or matches; there a target has to be a part of its class's name:
`Embedding`, of `VocabParallelEmbedding`. One that is given nothing reads a dense weight.
"""

from __future__ import annotations

from typing import Literal

VERSION = "0.33.0"
"""Of vLLM."""

CLASS_TARGET = "Embedding"
"""A target that vLLM finds in the name of its embedding's class, and in that of no Linear or head."""

_NAMED = """
    AXK1ForCausalLM BailingMoeForCausalLM BailingMoeV2ForCausalLM ChatGLMForConditionalGeneration ChatGLMModel
    DeepseekForCausalLM DeepseekV2ForCausalLM DeepseekV3ForCausalLM DomynEdgeForCausalLM Ernie4_5_MoeForCausalLM
    GPT2LMHeadModel Gemma3ForCausalLM Gemma3nForCausalLM Gemma4ForCausalLM Glm4MoeLiteForCausalLM HrmTextForCausalLM
    IQuestLoopCoderForCausalLM K2HorizonForCausalLM LagunaForCausalLM MiMoForCausalLM MiMoV2FlashForCausalLM
    MiMoV2ForCausalLM MiniMaxM2ForCausalLM MistralLarge3ForCausalLM NemotronHForCausalLM NemotronHPuzzleForCausalLM
    PanguEmbeddedForCausalLM PanguProMoEV2ForCausalLM PanguUltraMoEForCausalLM Param2MoEForCausalLM Qwen2ForCausalLM
    Qwen2MoeForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM Rnj1ForCausalLM SarvamMLAForCausalLM
    SarvamMoEForCausalLM StableLmForCausalLM
"""

_BY_CLASS = """
    ApertusForCausalLM DeciLMForCausalLM Ernie4_5ForCausalLM Exaone4ForCausalLM ExaoneForCausalLM
    ExaoneMoEForCausalLM ExaoneMoeForCausalLM Glm4ForCausalLM GraniteForCausalLM GraniteMoeSWAForCausalLM
    GraniteMoeSharedForCausalLM GraniteSWAForCausalLM HyperCLOVAXForCausalLM IQuestCoderForCausalLM
    InternLM3ForCausalLM LLaMAForCausalLM Llama4ForCausalLM LlamaForCausalLM Ministral3ForCausalLM
    MistralForCausalLM OlmoeForCausalLM Phi3ForCausalLM Step1ForCausalLM TeleChat2ForCausalLM TeleChat3ForCausalLM
    TeleFLMForCausalLM
"""

_DENSE_HEADS = """
    AliceAIForCausalLM BloomForCausalLM DoryForCausalLM FalconH1ForCausalLM FalconMambaForCausalLM GptOssForCausalLM
    JambaForCausalLM Mamba2ForCausalLM MambaForCausalLM OPTForCausalLM Plamo3ForCausalLM Qwen3NextForCausalLM
    Step3TextForCausalLM Zamba2ForCausalLM
"""

EMBEDDINGS: dict[str, Literal["named", "class"]] = {
    **dict.fromkeys(_NAMED.split(), "named"),
    **dict.fromkeys(_BY_CLASS.split(), "class"),
}
"""Class of a causal language model → how its packed embedding is matched."""

DENSE_HEADS = frozenset(_DENSE_HEADS.split())
"""Models that do not hand their quantization config to the output head."""


def takes_embedding(architecture: str) -> bool:
    """Whether vLLM reads packed codes of this model's embedding."""
    return architecture in EMBEDDINGS


def takes_head(architecture: str) -> bool:
    """Whether vLLM reads codes of this model's output head."""
    return architecture not in DENSE_HEADS
