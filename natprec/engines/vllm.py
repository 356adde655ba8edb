"""What vLLM runs of a layer: `_get_scheme_from_parts` of its compressed-tensors reader, then the lists of kernels.

Sources: `layers/quantization/compressed_tensors/compressed_tensors.py` (which scheme), `schemes/`, `_embedding.py`,
`utils/humming/schema.py` (`check_and_fallback_input_schema`) of vLLM, `schema/humming.py`
(`is_humming_schema_compatible`) of humming-kernels 0.1.20; the lists are in `natprec.engines.vllm_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from natprec.engines.layers import UNQUANTIZED, Layer, Operand, Run, pair
from natprec.engines.vllm_experts import VERSION as EXPERTS_READ
from natprec.engines.vllm_experts import run_experts
from natprec.engines.vllm_rules import ALL, Kernel, Rules

LEAST_CAPABILITY, MICRO_CAPABILITY, FLOAT8_CAPABILITY = 75, 80, 89
"""Of integers and others, of MXFP4, and of products of float8 with float8."""

EMBEDDING_WIDTHS = (2, 4, 8)
"""Those whose codes fill words in every packing."""


class _Refused(Exception):
    """The layer cannot run; says why."""


def run(layer: Layer, capability: int, rules: Rules) -> Run:
    """The kernel and the arithmetic of one layer.

    Args:
        capability: of the GPU, ten times.
    """
    if layer.wrong:
        return Run(None, None, layer.wrong)
    if layer.weight is None:
        return Run(UNQUANTIZED, "Unquantized")
    if layer.role == "experts" and rules.version != EXPERTS_READ:
        return Run(layer.says, "FusedMoE", f"natprec has read which kernels experts have in vLLM {EXPERTS_READ} alone")
    try:
        if layer.role == "experts":
            return _experts(layer, layer.weight, capability)
        if layer.role == "embedding":
            return _embedding(layer, layer.weight)
        return _linear(layer, layer.weight, capability, rules)
    except _Refused as refused:
        return Run(None, None, str(refused))


def _experts(layer: Layer, weight: Operand, capability: int) -> Run:
    if capability < LEAST_CAPABILITY:
        raise _Refused(f"needs sm{LEAST_CAPABILITY}")
    found = run_experts(layer, weight, capability)
    if isinstance(found, str):
        raise _Refused(found)
    return found


def _embedding(layer: Layer, weight: Operand) -> Run:
    if weight.type != "int" or layer.inputs is not None or weight.strategy not in ("group", "channel"):
        raise _Refused("embeddings are read as integers in groups or rows alone")
    if layer.container != "pack-quantized":
        raise _Refused(f"embeddings are read packed, not as {layer.container}")
    if weight.zeros:
        raise _Refused("zero points of an embedding are not read: the codes would be decoded as symmetric ones")
    if weight.bits not in EMBEDDING_WIDTHS:
        raise _Refused(f"its loader expects {32 // weight.bits} codes in a word; {weight.bits} bits are packed dense")
    return Run(weight.name, "DequantGatherTriton")


def _linear(layer: Layer, weight: Operand, capability: int, rules: Rules) -> Run:
    inputs = layer.inputs
    if capability < LEAST_CAPABILITY:
        raise _Refused(f"needs sm{LEAST_CAPABILITY}")
    if weight.group is not None and layer.columns % weight.group:
        raise _Refused(f"rows of {layer.columns} are no whole groups of {weight.group}")
    if weight.nvfp4:
        return _nvfp4(layer, weight, capability, rules)
    if weight.micro(4):
        if capability < MICRO_CAPABILITY:
            raise _Refused(f"vLLM runs MXFP4 from sm{MICRO_CAPABILITY} on")
        kernel = _first(layer, weight, rules.mxfp4, capability, rules)
        return _run(layer, weight, kernel, "mxfp4", capability, rules)
    if weight.micro(8) and str(weight.scale_dtype).endswith("uint8"):
        kernel = _first(layer, weight, rules.mxfp8, capability, rules)
        return _run(layer, weight, kernel, "mxfp8", capability, rules)
    if inputs is not None and _w4afp8(weight, inputs):
        if capability != 90:
            raise _Refused("vLLM multiplies 4-bit integers with float8 on sm90 alone")
        kernel = _first(layer, weight, rules.w4afp8, capability, rules)
        return _run(layer, weight, kernel, "fp8-token", capability, rules)
    if weight.type == "int" and layer.container == "pack-quantized":
        return _packed(layer, weight, capability, rules)
    if weight.type == "float" and layer.container in ("float-quantized", "naive-quantized") and not weight.zeros:
        return _float8(layer, weight, capability, rules)
    if inputs is not None and weight.type == inputs.type == "int" and layer.container == "int-quantized":
        return _int8(layer, weight, inputs, capability)
    raise _Refused(f"vLLM {rules.version} has no scheme for {layer.says} stored as {layer.container or 'nothing'}")


def _w4afp8(weight: Operand, inputs: Operand) -> bool:
    plain = (weight.type, weight.bits, weight.strategy, weight.zeros) == ("int", 4, "group", False)
    return plain and (inputs.type, inputs.bits, inputs.strategy, inputs.dynamic) == ("float", 8, "token", True)


def _nvfp4(layer: Layer, weight: Operand, capability: int, rules: Rules) -> Run:
    if layer.inputs is not None and not layer.inputs.nvfp4:
        raise _Refused("beside NVFP4 weights, inputs are NVFP4 or not rounded")
    kernels = rules.nvfp4_alone if layer.inputs is None else rules.nvfp4
    kernel = _first(layer, weight, kernels, capability, rules)
    return _run(layer, weight, kernel, "nvfp4", capability, rules)


def _packed(layer: Layer, weight: Operand, capability: int, rules: Rules) -> Run:
    inputs = layer.inputs
    if weight.actorder in ("group", "dynamic") and rules.version != "0.25.1":
        raise _Refused(f"permuted groups (actorder {weight.actorder!r}) are not read")
    if weight.strategy not in ("group", "channel") or weight.bits not in ALL:
        raise _Refused(f"vLLM {rules.version} has no scheme for packed {layer.says}")
    if weight.zeros and weight.bits not in rules.zero_widths:
        raise _Refused(f"vLLM {rules.version} has no scheme for {weight.bits} bits with zero points")
    if inputs is not None:
        rounds = inputs.type == "int" and inputs.dynamic and not inputs.zeros
        if not rounds or inputs.bits not in rules.rounds_integers or inputs.strategy not in ("token", "group"):
            raise _Refused(f"vLLM {rules.version} has no scheme for packed {layer.says}")
    if layer.role == "head":
        if weight.bits not in rules.head_widths:
            raise _Refused(f"vLLM {rules.version} cannot hand a head of {weight.bits} bits to Humming")
        if weight.zeros and layer.rows[0] * weight.bits % 32:
            raise _Refused(f"the zero points of {layer.rows[0]} rows do not fill whole words, which its loader asserts")
    kernel = _first(layer, weight, rules.mixed, capability, rules)
    return _run(layer, weight, kernel, None if inputs is None else inputs.name, capability, rules)


def _float8(layer: Layer, weight: Operand, capability: int, rules: Rules) -> Run:
    if weight.bits != 8 or weight.strategy not in ("tensor", "channel", "block"):
        raise _Refused(f"vLLM {rules.version} has no scheme for {layer.says}")
    inputs = layer.inputs
    blocks = weight.block if weight.strategy == "block" else None
    if blocks is not None and any(rows % blocks[0] for rows in layer.rows[:-1]):
        raise _Refused(f"weights of {' and '.join(map(str, layer.rows))} rows are joined, and blocks have {blocks[0]}")
    static = inputs is not None and not inputs.dynamic
    if inputs is None or inputs.type != "float" or (static and inputs.strategy != "tensor"):
        if inputs is not None and inputs.type != "float":
            raise _Refused(f"vLLM {rules.version} has no scheme for {layer.says}")
        kernel = _first(layer, weight, rules.fp8_alone, capability, rules)
        return _run(layer, weight, kernel, None, capability, rules)
    if capability < FLOAT8_CAPABILITY:
        kernel = _first(layer, weight, rules.fp8_alone, capability, rules)
        return _run(layer, weight, kernel, None, capability, rules)
    rounded = f"fp8-g{blocks[1]}" if blocks else "fp8-tensor" if static else "fp8-token"
    tensors = static and weight.strategy == "tensor"
    kernels = rules.fp8_block if blocks else rules.fp8 if tensors else rules.fp8[1:]
    kernel = _first(layer, weight, kernels, capability, rules)
    return _run(layer, weight, kernel, rounded, capability, rules)


def _int8(layer: Layer, weight: Operand, inputs: Operand, capability: int) -> Run:
    fits = weight.bits == inputs.bits == 8 and weight.strategy in ("channel", "tensor") and not weight.zeros
    known = (inputs.strategy == "token" and inputs.dynamic) or (inputs.strategy == "tensor" and not inputs.dynamic)
    if not fits or not known:
        raise _Refused(f"vLLM has no scheme for {layer.says} stored as {layer.container}")
    if capability >= 100:
        raise _Refused("vLLM chooses CutlassInt8ScaledMM, which fails from sm100 on: 'Int8 not supported'")
    return Run(layer.says, "CutlassInt8ScaledMM")


def _first(layer: Layer, weight: Operand, kernels: Sequence[Kernel], capability: int, rules: Rules) -> Kernel:
    """The first kernel of a list that takes a layer."""
    kernels = list(kernels)
    places = {name: next((i for i, each in enumerate(kernels) if name in each.name), None) for name in _RIVALS}
    humming, marlin = (places[name] for name in _RIVALS)
    if capability in rules.humming_first and humming is not None and marlin is not None and marlin < humming:
        kernels.insert(marlin, kernels.pop(humming))
    for kernel in kernels:
        if _takes(kernel, layer, weight, capability):
            return kernel
    raise _Refused(
        f"none of vLLM {rules.version}'s kernels takes {layer.says} of {sum(layer.rows)} x {layer.columns} on "
        f"sm{capability}: {', '.join(kernel.name for kernel in kernels)}"
    )


_RIVALS = ("Humming", "Marlin")


def _takes(kernel: Kernel, layer: Layer, weight: Operand, capability: int) -> bool:
    rows, low, high = sum(layer.rows), *kernel.gpus
    if not low <= capability <= high or (kernel.half and layer.dtype != "float16"):
        return False
    if weight.type == "int":
        if weight.bits not in (kernel.zeros if weight.zeros else kernel.symmetric):
            return False
        if kernel.half and weight.group is None:
            return False
        if kernel.groups is not None and (weight.group or -1) not in kernel.groups:
            return False
    return not (rows % kernel.rows or layer.columns % kernel.columns or min(rows, layer.columns) < kernel.least)


def _run(layer: Layer, weight: Operand, kernel: Kernel, rounded: str | None, capability: int, rules: Rules) -> Run:
    """What a chosen kernel makes of its inputs, and a note where the file says otherwise."""
    if kernel.inputs == "humming":
        rounded = _humming(layer, weight, rounded, capability, rules)
    elif kernel.inputs == "16":
        rounded = None
    runs = pair(weight.name, rounded)
    note = "" if runs == layer.says else _NOTES["16" if rounded is None else "other"](layer.says, rounded)
    if "DeepGEMM" in kernel.name and capability >= 100:
        note = "; ".join(filter(None, (note, "DeepGEMM rounds the scales up to powers of two on this GPU")))
    return Run(runs, kernel.name, note)


_NOTES: dict[str, Callable[[str, str | None], str]] = {
    "16": lambda says, rounded: "its inputs stay at 16 bits",
    "other": lambda says, rounded: f"its inputs are rounded as {rounded}",
}


def _humming(layer: Layer, weight: Operand, rounded: str | None, capability: int, rules: Rules) -> str | None:
    """The inputs that Humming multiplies with, of those that the file asks for.

    Raises:
        _Refused: weights in smaller groups than it has, or zero points where both widths are equal.
    """
    if weight.group is not None and weight.group < 16:
        raise _Refused(f"Humming has no groups of {weight.group}; 16 are the fewest")
    if rounded is None:
        return None
    asked = layer.inputs
    ten = 100 <= capability < 120
    if rounded == "mxfp4":  # weights of MXFP4: vLLM always asks for such inputs
        return "fp8-token" if FLOAT8_CAPABILITY <= capability < 100 else None
    if rounded in ("nvfp4", "mxfp8") or asked is None:
        return None
    if weight.zeros and weight.bits == asked.bits:
        raise _Refused(f"Humming multiplies no zero points where both operands have {asked.bits} bits")
    if ten:
        return None
    grouped = weight.group is not None or asked.group is not None
    if asked.bits == 8:
        return None if rules.groups_as_16 and grouped else rounded
    small = (weight.group or 64) < 64 or (asked.group or 64) < 64
    if weight.bits <= 4 and not small and capability < 90:
        return rounded
    return None if (weight.group or 32) < 32 or (weight.bits == 8 and weight.zeros) else "a8-token"
