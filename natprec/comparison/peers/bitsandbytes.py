"""bitsandbytes through transformers: NF4 (QLoRA's, groups of 64) and LLM.int8 (one scale per row).

Both quantize on loading and need no text. LLM.int8 also rounds activations, except outlier columns; the
comparison is of weights, so only its weights are judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

PACKAGES = {"bitsandbytes": "bitsandbytes"}


def quantize(job: Any, model: Any, ids: Tensor) -> Any:
    """Load the reference again, quantized; the time is that of loading."""
    import torch
    from transformers import BitsAndBytesConfig

    if job.settings["kind"] == "nf4":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    else:
        config = BitsAndBytesConfig(load_in_8bit=True)
    return job.load(quantization_config=config, device_map="cpu")


def save(job: Any, done: Any, folder: Path) -> None:
    """Save as transformers does."""
    done.save_pretrained(folder)
    job.tokenizer().save_pretrained(folder)


def dense(job: Any, done: Any, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Linear weights dequantized by bitsandbytes; the rest as stored."""
    import bitsandbytes as bnb

    linear = {}
    for name, module in done.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            linear[name] = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
            linear[name] = module.weight.data.float() * (scales.float() / 127).unsqueeze(1)
        elif isinstance(module, nn.Linear | nn.Embedding) or next(module.parameters(False), None) is not None:
            for own, parameter in module.named_parameters(recurse=False):
                yield f"{name}.{own}", parameter.data.to(job.dtype)
    for name, weight in linear.items():
        yield f"{name}.weight", weight
        bias = done.get_submodule(name).bias
        if bias is not None:
            yield f"{name}.bias", bias.data.to(job.dtype)
