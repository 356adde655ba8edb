"""What vLLM runs of the experts of a layer: one scheme for all of them, and lists of kernels of their own.

Sources, below `vllm/model_executor/layers/` of 0.33.0: `quantization/compressed_tensors/compressed_tensors_moe/` (which
scheme), `fused_moe/oracle/` (the kernels of each, in order) and `fused_moe/experts/` (what each takes). It is read, not
compared with vLLM's own choice. Read for one process, without expert parallelism, and for the shapes of whole layers.
"""

from __future__ import annotations

from natprec.engines.layers import Layer, Operand, Run, pair

VERSION = "0.33.0"
"""Of vLLM; those before have no such lists."""

MARLIN_GROUPS = (None, 32, 64, 128)
MARLIN_COLUMNS = 128
"""Features that a model's hidden states are a multiple of, for Marlin's experts."""


def run_experts(layer: Layer, weight: Operand, capability: int) -> Run | str:
    """The kernel and the arithmetic of a layer's experts, or why they cannot run.

    Args:
        capability: of the GPU, ten times.
    """
    inputs = layer.inputs
    if weight.micro(4):
        if inputs is not None and inputs.name == "fp8-token":
            return f"natprec has not read which kernel takes experts of {layer.says}"
        return _found(layer, "CutlassExpertsMxfp4", "mxfp4") if _ten(capability) else _found(layer, "MarlinExperts")
    if weight.micro(8):
        if _ten(capability):
            return _found(layer, "TrtLlmFp8Experts", "mxfp8")
        return _found(layer, _marlin_or_humming(capability))
    if weight.nvfp4:
        return _nvfp4(layer, capability)
    if weight.type == "int" and layer.container == "pack-quantized" and inputs is None:
        return _packed(layer, weight, capability)
    if weight.type == "float" and weight.bits == 8 and inputs is not None and inputs.type == "float":
        return _float8(layer, weight, inputs, capability)
    if weight.type == "int" and inputs is not None:
        return _integers(layer, weight, inputs, capability)
    return f"vLLM {VERSION} has no scheme for experts of {layer.says}: 'Unsupported FusedMoe scheme'"


def _found(layer: Layer, kernel: str, rounded: str | None = None) -> Run:
    assert layer.weight is not None
    runs = pair(layer.weight.name, rounded)
    told = "its inputs stay at 16 bits" if rounded is None else f"its inputs are rounded as {rounded}"
    return Run(runs, kernel, "" if runs == layer.says else told)


def _ten(capability: int) -> bool:
    """Data-centre Blackwell."""
    return 100 <= capability < 110


def _marlin_or_humming(capability: int) -> str:
    """Humming stands before Marlin on sm90 alone."""
    return "HummingExperts" if capability == 90 else "MarlinExperts"


def _nvfp4(layer: Layer, capability: int) -> Run | str:
    if layer.inputs is None:
        return _found(layer, _marlin_or_humming(capability))
    if not layer.inputs.nvfp4:
        return "beside NVFP4 weights, inputs of experts are NVFP4 or not rounded"
    if _ten(capability):
        return _found(layer, "TrtLlmNvFp4Experts", "nvfp4")
    if capability >= 100:
        return _found(layer, "FlashInferExperts" if capability >= 120 else "CutlassExpertsFp4", "nvfp4")
    return _found(layer, _marlin_or_humming(capability))


def _packed(layer: Layer, weight: Operand, capability: int) -> Run | str:
    """Integers beside 16-bit inputs."""
    if weight.strategy not in ("group", "channel") or weight.bits not in range(2, 9):
        return f"vLLM {VERSION} has no scheme for experts of packed {layer.says}"
    if _ten(capability) and (weight.bits, weight.group, weight.zeros) == (4, 32, False):
        return _found(layer, "TrtLlmMxint4Experts")
    grouped = weight.group is not None
    if capability == 90 and grouped:
        return _found(layer, "HummingExperts")
    widths = (4,) if weight.zeros else (4, 8)
    if weight.bits in widths and weight.group in MARLIN_GROUPS and _suits_marlin(layer, weight):
        return _found(layer, "MarlinExperts")
    if not grouped:
        return f"beside Marlin, which does not take {layer.says} here, vLLM {VERSION}'s experts are in groups alone"
    return _found(layer, "TritonWNA16Experts" if weight.bits in widths else "HummingExperts")


def _suits_marlin(layer: Layer, weight: Operand) -> bool:
    """Whether hidden states have whole tiles, and each expert's own features whole groups."""
    hidden, own = _sizes(layer)
    return hidden % MARLIN_COLUMNS == 0 and own % (weight.group or 1) == 0


def _sizes(layer: Layer) -> tuple[int, int]:
    """Features of hidden states, and those between an expert's two products."""
    last = ("down_proj", "w2")
    rows = dict(zip((name.rpartition(".")[2] for name in layer.members), layer.rows, strict=False))
    hidden = next((size for name, size in rows.items() if name in last), layer.columns)
    own = next((size for name, size in rows.items() if name not in last), layer.columns)
    return hidden, own


def _float8(layer: Layer, weight: Operand, inputs: Operand, capability: int) -> Run | str:
    if capability < 89:
        return _found(layer, "MarlinExperts")
    if weight.strategy == "block":
        if weight.block != (128, 128):
            return f"experts have float8 in blocks of 128 x 128 alone, not {weight.block}"
        return _found(layer, "TrtLlmFp8Experts" if _ten(capability) else "TritonExperts", "fp8-g128")
    if weight.strategy == "tensor" and not inputs.dynamic and inputs.strategy == "tensor":
        if _ten(capability):
            return _found(layer, "TrtLlmFp8Experts", "fp8-tensor")
        others = capability == 90 or capability >= 120
        return _found(layer, "FlashInferExperts" if others else "TritonExperts", "fp8-tensor")
    if weight.strategy == "channel" and inputs.dynamic and inputs.strategy == "token":
        cutlass = capability == 90 or _ten(capability)
        return _found(layer, "TritonOrCutlassExperts" if cutlass else "TritonExperts", "fp8-token")
    return f"vLLM {VERSION} has no scheme for experts of {layer.says}"


def _integers(layer: Layer, weight: Operand, inputs: Operand, capability: int) -> Run | str:
    if inputs.type == "float":
        fits = (weight.bits, weight.group, weight.zeros, capability) == (4, 128, False, 90)
        if fits and inputs.strategy == "token":
            return _found(layer, "CutlassExpertsW4A8Fp8", "fp8-token")
        return "vLLM multiplies experts of 4-bit integers in groups of 128 with float8, on sm90 alone"
    by_row = weight.bits == inputs.bits == 8 and weight.strategy == "channel" and layer.container == "int-quantized"
    if by_row and inputs.dynamic and inputs.strategy == "token" and not weight.zeros:
        return _found(layer, "TritonExperts", inputs.name)
    return f"vLLM {VERSION} has no scheme for experts of {layer.says}: 'Unsupported FusedMoe scheme', or one for CPUs"
