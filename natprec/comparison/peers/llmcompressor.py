"""llm-compressor: round to nearest, GPTQ, AWQ and SmoothQuant with GPTQ; and its own floating-point presets.

Its recipes are those of its examples, with one scheme for all: Linear weights of the blocks, asymmetric
integers in groups, `lm_head` left out. AWQ is its transform followed by round to nearest, as in its
example; SmoothQuant is followed by GPTQ, as in its example. Activations stay at 16 bits, or are rounded by token as
the model runs. A preset (FP8_DYNAMIC, NVFP4 …) is rounded to nearest, and its inputs as it says.

With `whole`, embedding and head are quantized too: written apart, in the widest integers that the bytes allow for all
weights. GPTQ leaves embeddings to rounding to nearest.
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
CALIBRATED = ("NVFP4",)
"""Presets with a scale of inputs that is fixed beforehand."""


def quantize(job: Any, model: Any, ids: Tensor) -> Any:
    """`oneshot` with the method's recipe, sequential; calibrates on exactly `ids`."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    if preset := job.settings.get("scheme"):
        recipe = QuantizationModifier(targets=["Linear"], scheme=preset, ignore=["lm_head"])
        oneshot(model=model, recipe=[recipe], **(_calibration(ids) if preset in CALIBRATED else {}))
        return model
    whole = job.settings.get("whole", False)
    bits = widest(job, model) if whole else job.bits
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=False, strategy="group", group_size=job.group_size)
    inputs = QuantizationArgs(num_bits=job.activations, type="int", symmetric=True, strategy="token", dynamic=True)
    group = QuantizationScheme(
        targets=["Linear"], weights=args, input_activations=None if job.activations == 16 else inputs
    )
    scheme = {
        "config_groups": {"group_0": group},
        "ignore": [] if whole else ["lm_head"],
    }
    embedding = []
    if whole:
        take_apart(model)
        rows = QuantizationScheme(targets=["Embedding"], weights=args)
        embedding = [QuantizationModifier(config_groups={"group_1": rows})]
    kind = job.settings["recipe"]
    recipes = {
        "rtn": lambda: [QuantizationModifier(**scheme)],
        "gptq": lambda: [GPTQModifier(**scheme), *embedding],
        "awq": lambda: [AWQModifier(), QuantizationModifier(**scheme)],
        "smoothquant": lambda: [SmoothQuantModifier(), GPTQModifier(**scheme)],
    }
    if kind == "awq":
        _keep_memory_pageable()
    oneshot(model=model, recipe=recipes[kind](), **({} if kind == "rtn" else _calibration(ids)))
    return model


def widest(job: Any, model: Any) -> int:
    """The most bits that all matrices can have within the bytes, each with a scale and a zero point per group.

    Raises:
        ValueError: not even two fit.
    """
    parameters = list(model.parameters())  # a tied weight once
    matrices = sum(each.numel() for each in parameters if each.ndim > 1) + model.get_output_embeddings().weight.numel()
    others = sum(2 * each.numel() for each in parameters if each.ndim == 1)
    for bits in range(8, 1, -1):
        if others + matrices * (bits + (16 + bits) / job.group_size) / 8 <= job.max_bytes:
            return bits
    raise ValueError(f"{job.max_bytes} bytes are too few for 2 bits everywhere")


def take_apart(model: Any) -> None:
    """A tied head gets a weight of its own."""
    model.config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def save(job: Any, done: Any, folder: Path) -> None:
    """Packed integers in compressed-tensors format."""
    done.save_pretrained(folder, save_compressed=True)
    job.tokenizer().save_pretrained(folder)


def dense(job: Any, done: Any, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the saved files, codes turned into floats by compressed-tensors.

    transformers 5.23 refuses packed zero points, so the folder cannot be loaded as a model. Presets are judged as they
    are stored.
    """
    if job is not None and job.settings.get("scheme"):
        return
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
