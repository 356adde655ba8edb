"""A checkpoint that is quantized already, or that an adapter belongs to: refused from its headers, before it is loaded.

Only some tools say so in `quantization_config`: MLX writes `quantization`, Model Optimizer a file of its own, and a
checkpoint that was cut out of another may say nothing. Loaders then take codes for weights and drop the scales, so
the tensors' types and names count too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natprec.errors import ModelError
from natprec.models.config_file import FILE, found_object
from natprec.models.headers import Header

DESCRIPTIONS = ("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json")
"""Files of Model Optimizer, GPTQ, AWQ and HQQ, AutoRound."""

KEYS = ("quantization_config", "compression_config", "quantization")
"""In config.json or in one of its parts; the last is MLX's."""

ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapters.safetensors")
"""Files of PEFT and of MLX."""

BELONGS_TO_CODES = re.compile(
    r"(?:^|\.)(?:(?:weight|input|output|act|activation|[kv])_(?:(?:global_)?scale(?:_inv|_2|s)?|zero_point|packed|g_idx)"
    r"|qweight|qzeros|scales|g_idx|SCB|absmax|quant_map)$|(?:proj|weight)_(?:blocks|scales)$"
)
"""Names of scales, zero points and packed codes: compressed-tensors, GPTQ, AWQ, MLX, bitsandbytes, ModelOpt, MXFP4."""

MADE_OF_CODES = re.compile(r"weight|proj|codes|blocks")
"""In the last part of a name: what holds codes, where its type is an integer."""

OWNERS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Of those the ones that name no method → whose they are, where their tensors agree."""

INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32")
LORA = re.compile(r"(^|[._])lora_(a|b|embedding_a|embedding_b|magnitude_vector)([._]|$)", re.IGNORECASE)

UNPACKERS = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}
"""Method → the class of transformers that unpacks it: such checkpoints are often the only ones there are."""


@dataclass(frozen=True)
class Description:
    """What a folder says of its quantization: the method, where it says so, and all that it says."""

    method: str
    where: str
    content: Mapping[str, Any]


def refuse_quantized(name: str, folder: Path, headers: Mapping[str, Header], unpacked: bool = False) -> None:
    """Refuse a folder that anything says is quantized, and one with an adapter that would be left out.

    Args:
        unpacked: whether its codes are none any more, as far as they can be unpacked; only what is left counts.
    Raises:
        ModelError: names what says so.
    """
    found = None if unpacked else description_of(folder)
    if found is not None:
        method = found.method
        raise ModelError(f"model {name!r} is already quantized ({method}), says {found.where}; {_remedy(method)}")
    for key, header in headers.items():
        leaf = key.rpartition(".")[2]
        integer = header.dtype in INTEGERS and len(header.shape) in (2, 3) and MADE_OF_CODES.search(leaf)
        if integer or header.dtype.startswith(("F8", "F6", "F4")) or BELONGS_TO_CODES.search(key):
            raise ModelError(
                f"model {name!r} is already quantized (tensor {key!r} of type {header.dtype} holds codes or scales); "
                + _remedy("fp8" if header.dtype.startswith("F8") and key.endswith(("scale_inv", "weight")) else "")
            )
    adapter = next((file for file in ADAPTERS if (folder / file).is_file()), None)
    if adapter:
        raise ModelError(
            f"folder {str(folder)!r} holds an adapter ({adapter}) beside the model, which would be left out; merge it "
            "first (peft: PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(...)), or move "
            "it away"
        )


def refuse_unmerged(name: str, unused: Iterable[str]) -> None:
    """Refuse factors of an adapter among the tensors that the loader had no place for.

    Raises:
        ModelError: names the first.
    """
    factor = next((key for key in unused if LORA.search(key)), None)
    if factor is not None:
        raise ModelError(
            f"model {name!r} holds an adapter that is not merged (tensor {factor!r}), which would be left out; "
            "merge it first (merge_and_unload() of peft) and save that"
        )


def description_of(folder: Path) -> Description | None:
    """What a folder's files say of a quantization; None: nothing."""
    config = found_object(folder / FILE)
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in KEYS:
            if isinstance(part.get(key), dict) and part[key]:
                method = _method(part[key], "MLX" if isinstance(part.get("quantization"), dict) else "unknown")
                return Description(method, f"{key!r} in config.json", part[key])
    for file in DESCRIPTIONS:
        found = found_object(folder / file)
        inner = found["quantization"] if isinstance(found.get("quantization"), dict) else found
        if inner and any(inner.values()):
            return Description(_method(inner, OWNERS.get(file, "unknown")), file, inner)
    return None


def _method(description: Mapping[str, Any], otherwise: str) -> str:
    given = (description.get(key) for key in ("quant_method", "quant_algo", "kv_cache_quant_algo"))
    return str(next((each for each in given if each), otherwise))


def _remedy(method: str) -> str:
    original = "use the original checkpoint that it was made from, in 16 bits"
    if method == "MLX":
        return f"{original}, or unpack it with mlx_lm.convert --dequantize"
    if method in UNPACKERS:
        return (
            f"{original}; where there is none, unpack it: AutoModelForCausalLM.from_pretrained(..., "
            f"quantization_config={UNPACKERS[method]}(dequantize=True)).save_pretrained(...)"
        )
    return f"{original}; where there is none, unpack it with the library that packed it and save that"
