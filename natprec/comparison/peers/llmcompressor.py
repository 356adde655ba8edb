"""llm-compressor: round to nearest, GPTQ, AWQ and SmoothQuant with GPTQ.

Its recipes are those of its examples, with one scheme for all: Linear weights of the blocks, asymmetric
integers in groups, `lm_head` left out. AWQ is its transform followed by round to nearest, as in its
example; SmoothQuant is followed by GPTQ, as in its example. Activations stay at 16 bits, or are rounded by token as
the model runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PACKAGES = {"llmcompressor": "llmcompressor", "compressed-tensors": "compressed_tensors"}
HALF = r"\.weight_scale$"


def quantize(job: Any, model: Any, ids: Tensor) -> Any:
    """`oneshot` with the method's recipe, sequential; calibrates on exactly `ids`."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    args = QuantizationArgs(num_bits=job.bits, type="int", symmetric=False, strategy="group", group_size=job.group_size)
    inputs = QuantizationArgs(num_bits=job.activations, type="int", symmetric=True, strategy="token", dynamic=True)
    group = QuantizationScheme(
        targets=["Linear"], weights=args, input_activations=None if job.activations == 16 else inputs
    )
    scheme = {
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    kind = job.settings["recipe"]
    recipes = {
        "rtn": lambda: [QuantizationModifier(**scheme)],
        "gptq": lambda: [GPTQModifier(**scheme)],
        "awq": lambda: [AWQModifier(), QuantizationModifier(**scheme)],
        "smoothquant": lambda: [SmoothQuantModifier(), GPTQModifier(**scheme)],
    }
    if kind == "awq":
        _keep_memory_pageable()
    oneshot(model=model, recipe=recipes[kind](), **({} if kind == "rtn" else _calibration(ids)))
    return model


def save(job: Any, done: Any, folder: Path) -> None:
    """Packed integers in compressed-tensors format."""
    done.save_pretrained(folder, save_compressed=True)
    job.tokenizer().save_pretrained(folder)


def dense(job: Any, done: Any, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the saved files, codes turned into floats by compressed-tensors.

    transformers 5.23 refuses packed zero points, so the folder cannot be loaded as a model.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from safetensors.torch import load_file

    group = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    compressor = BaseCompressor.get_value_from_registry(group["format"])
    scheme = QuantizationScheme.model_validate(group)
    tensors = {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
    packed = group["format"] == "pack-quantized"  # beside rounded activations each code has a byte
    for module in [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]:
        own = {
            name.removeprefix(module + "."): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(module + ".weight")
        }
        own["weight_scale"] = own["weight_scale"].float()
        if packed:
            zero = own["weight_zero_point"]  # the library unpacks short columns only in this memory order
            own["weight_zero_point"] = zero.T.clone(memory_format=torch.contiguous_format).T
        yield module + ".weight", compressor.decompress(own, scheme)["weight"]
    yield from tensors.items()


def _calibration(ids: Tensor) -> dict[str, Any]:
    from datasets import Dataset

    rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    count, length = ids.shape
    return {"dataset": Dataset.from_dict(rows), "num_calibration_samples": count, "max_seq_length": length}


def _keep_memory_pageable() -> None:
    """AWQ in 0.14 pins its cache for copies to an accelerator and fails where there is none."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda self, *_: None
