"""Quantizers of any torch module that need no data: SDNQ, bitsandbytes, torchao, and llama.cpp's formats of GGUF.

Each stores what it quantizes in codes and scales, whose bytes are counted, and leaves the rest at 16 bits. sdnq is
GPL-3.0 and runs in this process alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

GROUP = 32
"""Numbers that share a scale in torchao's and GGUF's formats; SDNQ chooses its own, NF4 has 64."""

GGUF = {4: "Q4_0", 5: "Q5_0", 8: "Q8_0"}
"""Of so many bits and a scale; `Q4_1` and `Q5_1` have a least value as well."""

Found = dict[str, tuple[Tensor, int]]
"""Weight → what it is reconstructed as, and its bytes."""


def packages(job: Any) -> dict[str, str]:
    """What is imported before time counts."""
    os.environ.setdefault("SDNQ_USE_TORCH_COMPILE", "0")
    return {job.settings["package"]: job.settings["package"]}


def quantize(job: Any, model: Any, ids: Any) -> tuple[dict[str, Tensor], Found]:
    """The model's tensors as they were, and what the peer makes of some of them."""
    model.to(job.dtype).requires_grad_(False)
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        return before, globals()[f"by_{job.settings['package']}"](job, model)


def save(job: Any, done: Any, folder: Path) -> None:
    """Nothing: torchao pickles, GGUF knows no such models; what a checkpoint would hold is counted."""


def dense(job: Any, done: Any, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors; what was quantized as it is reconstructed."""
    before, found = done
    for name, tensor in before.items():
        yield name, found[name][0].reshape(tensor.shape).detach() if name in found else tensor


def report(job: Any, done: Any) -> dict[str, Any]:
    """Bytes of the model: of codes and scales, and 2 of each number that has none."""
    before, found = done
    codes = sum(count for _, count in found.values())
    elements = sum(before[name].numel() for name in found)
    if not found:
        raise ValueError("it quantizes no layer of this model")
    return {
        "stored_bytes": codes + 2 * (job.settings["elements"] - elements),
        "bits_per_weight": 8 * codes / elements,
        "weights_in_codes": len(found),
    }


def by_sdnq(job: Any, model: nn.Module) -> Found:
    """Its own choice of layers and groups."""
    from sdnq import sdnq_post_load_quant

    options = {"weights_dtype": f"uint{job.bits}", **job.settings["options"]}
    made = sdnq_post_load_quant(model, torch_dtype=job.dtype, **options)
    found = {}
    for place, each in made.named_modules():
        if not hasattr(each, "sdnq_dequantizer"):
            continue
        stored = {key: getattr(each, key, None) for key in ("weight", "scale", "zero_point", "svd_up", "svd_down")}
        whole = each.sdnq_dequantizer(
            stored["weight"], stored["scale"], zero_point=stored["zero_point"], svd_up=stored["svd_up"],
            svd_down=stored["svd_down"], skip_compile=True,
        )  # fmt: skip
        found[f"{place}.weight"] = whole, bytes_of(*stored.values())
    return found


def by_bitsandbytes(job: Any, model: nn.Module) -> Found:
    """NF4 in blocks of 64, as diffusers and transformers load it."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    found = {}
    for place, weight in linears(model):
        codes, state = quantize_4bit(weight.data, blocksize=64, quant_type="nf4")
        found[place] = dequantize_4bit(codes, state), bytes_of(codes, state.absmax)
    return found


def by_torchao(job: Any, model: nn.Module) -> Found:
    """Its integers of weights alone: 4 bits in groups, or 8 with a scale for each row."""
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    if job.bits not in (4, 8):
        raise ValueError(f"torchao has no integers of {job.bits} bits for weights alone; 4 and 8 are compared")
    four: Any = torch  # whose int4 its own stubs leave out
    quantize_(model, IntxWeightOnlyConfig(four.int4, PerGroup(GROUP)) if job.bits == 4 else Int8WeightOnlyConfig())
    found = {}
    for place, weight in linears(model):
        codes: Any = weight  # which holds four bits in a byte each until it packs them for a kernel
        found[place] = codes.dequantize(), codes.qdata.numel() * job.bits // 8 + bytes_of(codes.scale)
    return found


def by_gguf(job: Any, model: nn.Module) -> Found:
    """What llama.cpp's Python package makes of it."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    if job.bits not in GGUF:
        raise ValueError(f"GGUF has no such format of {job.bits} bits; 4, 5 and 8 are compared")
    kind, found = GGMLQuantizationType[GGUF[job.bits]], {}
    for place, weight in linears(model):
        codes = quantize(weight.detach().float().numpy(), kind)
        found[place] = torch.from_numpy(dequantize(codes, kind)), codes.nbytes
    return found


def linears(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Weights whose rows `GROUP` divides; all but SDNQ leave the others, and convolutions."""
    return [
        (f"{place}.weight", each.weight)
        for place, each in model.named_modules()
        if isinstance(each, nn.Linear) and each.in_features % GROUP == 0
    ]


def bytes_of(*tensors: Tensor | None) -> int:
    """Of those that are there."""
    return sum(each.numel() * each.element_size() for each in tensors if each is not None)
