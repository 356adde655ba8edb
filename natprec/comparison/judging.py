"""The judge of all methods: the weights that a checkpoint reconstructs, in one float32 model.

A method's process leaves its weights dequantized, so that every row is computed by the same code and
differs from the reference in nothing but the weights, and the rounding of activations if that is asked for: by token,
as the recipes of others have it, or as the plan of natprec says.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from natprec.checkpoints.dense_reader import load_quantized
from natprec.errors import ModelError
from natprec.evaluation.running import inputs_that_run
from natprec.evaluation.verification import compare
from natprec.formats import Format, activation
from natprec.formats.gpus import ANY, generation
from natprec.measurement.subject import Subject
from natprec.models.activation_sites import round_inputs
from natprec.solver import Plan
from natprec.tasks import Samples
from natprec.utils.hooks import attached

WEIGHT_FILES = (".safetensors", ".bin", ".pt")
FLOATS = ("F16", "BF16", "F32", "F64")
UNROUNDED = 16
"""Bits of activations that are left alone."""


def judged_model(subject: Subject, dense: Path) -> nn.Module:
    """A copy of the reference with a method's weights.

    Raises:
        ModelError: tensors are missing, unknown or not finite.
    """
    model = copy.deepcopy(subject.model)
    state = load_file(dense)
    _take_apart(model, state)
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ModelError(f"{len(bad)} tensors of the checkpoint hold NaN or Inf, the first is {bad[0]!r}")
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ModelError(
            f"the checkpoint's weights do not fit the model: {str(error).splitlines()[-1].strip()}"
        ) from error
    tensors = model.state_dict(keep_vars=True)
    loaded = {id(tensors[name]) for name in state if name in tensors}
    lacking = [name for name in missing if id(tensors[name]) not in loaded]  # a tied head is loaded with its twin
    if lacking or unexpected:
        raise ModelError(f"the checkpoint lacks {lacking[:2]} and has unknown {unexpected[:2]}")
    return model


def _take_apart(model: Any, state: Mapping[str, Tensor]) -> None:
    """Give a tied head a weight of its own where a method wrote another one than the embedding's."""
    tensors = model.state_dict(keep_vars=True)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for name, tensor in state.items():
        twins = [other for other in state if other != name and tensors.get(other) is tensors.get(name)]
        if head is not None and tensors.get(name) is head.weight and twins and not tensor.equal(state[twins[0]]):
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
            return


def stored_model(subject: Subject, checkpoint: Path, gpu: str | None) -> nn.Module:
    """A checkpoint as natprec reads it, with the inputs that it says, or that vLLM rounds on a GPU.

    Raises:
        ModelError, InputError: it cannot be read, or its formats do not run there.
    """
    running = inputs_that_run(checkpoint, "vllm", None if gpu in (None, ANY) else generation(gpu))
    return load_quantized(checkpoint, trust_remote_code=subject.trusted, running=running)


AS_THEY_ARE: Mapping[str, Format] = {}
"""No input is rounded."""


def rounded_inputs(subject: Subject, activations: int, plan: Path | None) -> Mapping[str, Format]:
    """The formats of a row's activations: its plan's if it has one, else by token.

    Args:
        activations: bits; of 16 nothing is rounded.
        plan: the file of natprec's own plan.
    """
    if activations >= UNROUNDED:
        return AS_THEY_ARE
    if plan is not None:
        return Plan.load(plan).rounded_inputs
    return {site.fused_group: activation(activations) for site in subject.activations if site.role == "linear"}


def judge(
    subject: Subject,
    model: nn.Module,
    held_out: Samples,
    seed: int,
    inputs: Mapping[str, Format] = AS_THEY_ARE,
) -> dict[str, Any]:
    """KL (or the distortion that suits the model), perplexity and agreement on held-out samples.

    Args:
        inputs: fused group of a Linear → how its input is rounded while the model runs.
    Raises:
        ModelError: predictions are NaN or Inf.
    """
    with attached(round_inputs(model, subject.activations, inputs)):
        comparison = compare(
            subject.segmented.output, lambda batch: subject.distortion.output(model, batch), held_out,
            distortion=subject.distortion,
        )  # fmt: skip
    summary = comparison.summary(seed)
    if not math.isfinite(summary["kl_mean"]):
        raise ModelError("its predictions are NaN or Inf")
    return {
        "kl_mean": summary["kl_mean"],
        "kl_ci95": list(summary["kl_ci95"]),
        "kl_p99": summary["kl_p99"],
        "kl_samples": comparison.kl.mean(1).tolist(),
        "perplexity": summary["perplexity_quantized"],
        "perplexity_reference": summary["perplexity_reference"],
        "top1_agreement": summary["top1_agreement"],
    }


def sizes(checkpoint: Path, reference: nn.Module) -> dict[str, Any]:
    """Bytes of the weight files on disk, and bits per quantized weight.

    A tensor is unquantized if the reference has it under that name, in that shape, and it is stored as floats;
    all others store quantized weights: codes, scales, zero points.

    Raises:
        ModelError: no weight files.
    """
    files = [file for file in checkpoint.rglob("*") if file.suffix in WEIGHT_FILES]
    if not files:
        raise ModelError(f"{str(checkpoint)!r} holds no weight files")
    originals = dict(reference.named_parameters())
    unquantized: set[str] = set()
    quantized_bytes = 0
    headers: dict[str, Any] = {}
    for file in (each for each in files if each.suffix == ".safetensors"):
        headers |= _header(file)
    for name, entry in headers.items():
        original = originals.get(name)
        if original is not None and entry["dtype"] in FLOATS and list(original.shape) == entry["shape"]:
            unquantized.add(name)
        else:
            quantized_bytes += entry["data_offsets"][1] - entry["data_offsets"][0]
    weights = sum(tensor.numel() for name, tensor in originals.items() if name not in unquantized and tensor.ndim > 1)
    weights += _apart(reference, headers)
    return {
        "stored_bytes": sum(file.stat().st_size for file in files),
        "bits_per_weight": 8 * quantized_bytes / weights if weights else None,
    }


def _apart(reference: Any, headers: Mapping[str, Any]) -> int:
    """Weights of a tied head whose codes are in the files beside those of the embedding."""
    head = reference.get_output_embeddings()
    shared = head is not None and head.weight is reference.get_input_embeddings().weight
    own = [name for name, module in reference.named_modules() if module is head]
    stored = shared and any(name.startswith(f"{own[0]}.") and name != f"{own[0]}.weight" for name in headers)
    return int(head.weight.numel()) if stored else 0


def _header(file: Path) -> dict[str, Any]:
    """Name → dtype, shape and place of each tensor of a safetensors file."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header: dict[str, Any] = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return header
