"""Any checkpoint as a model to judge: another quantizer's, as transformers loads it, or a GGUF file.

The base model is the reference. What the folder's own quantizer promised is not known; its KL can be measured like that
of natprec's checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from natprec.checkpoints.dense_reader import load_quantized
from natprec.checkpoints.int32_packed import container_of, load_packed
from natprec.errors import InputError, ModelError, NatprecError, first_line
from natprec.evaluation.conclude import Expected, Judging, conclude
from natprec.evaluation.running import inputs_that_run
from natprec.evaluation.verdict import HeldOutText
from natprec.evaluation.verification import Comparison, Verification, compare, of_all
from natprec.measurement.subject import Subject
from natprec.models.config_file import METHOD, quantization_of, read_config
from natprec.models.devices import quiet
from natprec.models.gguf_files import gguf_sizes
from natprec.models.headers import read_headers
from natprec.models.hidden_states import passed
from natprec.models.loading import load_model
from natprec.models.model_files import weight_files
from natprec.models.shares import Share
from natprec.models.trust import model_of
from natprec.tasks import Samples
from natprec.utils.atomic_files import folder_bytes
from natprec.utils.digests import checkpoint_digests
from natprec.utils.progress import Stages

UNKNOWN = "unknown"


def verify_foreign(
    path: Path,
    subject: Subject,
    texts: Sequence[HeldOutText],
    eps: float | None,
    how: Judging,
    stages: Stages,
    gpu: str | None = None,
) -> Verification:
    """Judge a checkpoint that natprec did not write.

    Args:
        path: a folder, or a .gguf file.
        subject: the original model.
        eps: the tolerance to judge by; None: only figures are wanted.
        gpu: a generation, whose arithmetic in vLLM is judged; None: as the checkpoint says.
    Raises:
        InputError: it is no checkpoint, or not of this model; or a GPU is named, and what runs there is not known.
        ModelError: transformers cannot load it.
    """
    device = next(subject.model.parameters()).device
    with stages.stage("load checkpoint"):
        judged = checkpoint_digests(gguf_of(path) or path)
        expected = replace(described(path, subject, eps), gpu=gpu)
        model = loaded(path, subject, gpu).to(device)
        _refuse_other(path, model, subject)

    def on(samples: Samples, number: int) -> Comparison:
        samples = samples.to(device)
        share = Share.of(samples, subject.segmented.workers)
        own, distortion = share.take(samples), subject.distortion
        with stages.stage("verify", len(share.batches) * (len(subject.segmented.blocks) + 1)) as advance, \
                torch.no_grad(), passed(subject.segmented, samples, advance, share=share) as reference:  # fmt: skip
            other = lambda batch: distortion.output(model, batch)  # noqa: E731
            found = compare(reference, other, own, advance, distortion) if len(own) else None
        return of_all(share.workers, found, distortion)

    return replace(conclude(on, texts, expected, how, str(path)), files=judged)


def described(path: Path, subject: Subject, eps: float | None) -> Expected:
    """Reads sizes from the files: bits of the weights that have less than 16, and of all."""
    file = gguf_of(path)
    elements, stored, quantized, packed = _gguf_sizes(file) if file else _sizes(path, subject)
    if not elements:
        raise InputError(f"checkpoint {str(path)!r} holds none of the weights of {subject.name!r}; check --model")
    reference = subject.other_bytes + subject.carried_bytes + 2 * sum(site.elements for site in subject.sites)
    bits_total = 8 * stored / elements
    return Expected(
        eps=eps,
        promise=eps,
        distortion=subject.distortion.name,
        kl_predicted=None,
        stored_bytes=path.stat().st_size if path.is_file() else folder_bytes(path),
        stored_bytes_reference=reference,
        bits_per_weight=8 * packed / quantized if quantized else bits_total,
        bits_per_weight_total=bits_total,
        rounding=UNKNOWN,
    )


def gguf_of(path: Path) -> Path | None:
    """The GGUF file that a path stands for."""
    if path.is_file():
        return path
    files = sorted(path.glob("*.gguf"))
    if (path / "config.json").is_file() or not files:
        return None
    if len(files) > 1:
        raise InputError(f"folder {str(path)!r} holds {len(files)} GGUF files; give one: {files[0]}")
    return files[0]


def _gguf_sizes(file: Path) -> tuple[int, int, int, int]:
    """Elements and bytes of all matrices, and of those of less than 16 bits."""
    sizes = [(count, stored) for count, stored, dimensions in gguf_sizes(file) if dimensions > 1]
    narrow = [(count, stored) for count, stored in sizes if stored < 2 * count]
    return tuple(sum(each[at] for each in several) for several in (sizes, narrow) for at in (0, 1))  # type: ignore[return-value]


def _sizes(folder: Path, subject: Subject) -> tuple[int, int, int, int]:
    """The same of a folder, by the names of the original's weights."""
    headers = read_headers(weight_files(folder))
    under: dict[str, int] = {}
    for name, header in headers.items():
        module = name.partition(".weight.")[0] if ".weight." in name else name.rpartition(".")[0]
        if not name.endswith(".bias"):
            under[module] = under.get(module, 0) + header.nbytes
    rows = [(site.elements, under[site.name]) for site in subject.sites if site.name in under]
    narrow = [(count, stored) for count, stored in rows if stored < 2 * count]
    return tuple(sum(each[at] for each in several) for several in (rows, narrow) for at in (0, 1))  # type: ignore[return-value]


def loaded(path: Path, subject: Subject, gpu: str | None = None) -> nn.Module:
    """The checkpoint in float32, by natprec's reader of compressed-tensors or by plain transformers."""
    file = gguf_of(path)
    described = {"quant_method": "gguf"} if file is not None else _described(path)
    method = described.get("quant_method")
    if method == METHOD:
        running = inputs_that_run(path, "vllm", gpu)
        return load_quantized(path, trust_remote_code=subject.trusted, running=running)
    if gpu is not None:
        raise InputError(
            f"gpu {gpu!r}: checkpoint {str(path)!r} is {method or 'not quantized'}; what a GPU runs is judged of "
            f"{METHOD} alone; leave out --gpu"
        )
    if file is not None:
        return load_model(str(file)).model
    if container_of(described) is not None:
        return load_packed(path, described, subject.task, subject.trusted)
    try:
        with quiet(stderr=True):
            model, report = model_of(path, subject.task, subject.trusted, output_loading_info=True)
    except NatprecError:
        raise
    except Exception as error:  # whatever another quantizer's code raises
        raise ModelError(
            f"transformers cannot load checkpoint {str(path)!r} ({method or 'not quantized'}: {first_line(error)}); "
            "install what that quantizer needs, or judge another format of it"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"transformers finds no {missing[0]!r} in checkpoint {str(path)!r} ({method or 'not quantized'}) and would "
            "draw random numbers; install what that quantizer needs, or judge another format of it"
        )
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded


def _described(folder: Path) -> dict[str, Any]:
    """The `quantization_config` of a folder's config.json; empty where there is none."""
    return quantization_of(read_config(folder, "give a folder with config.json and weights, or a .gguf file")) or {}


def _refuse_other(path: Path, model: nn.Module, subject: Subject) -> None:
    """Two models can be compared if they predict the same vocabulary."""
    ours, theirs = (each.get_input_embeddings().weight.shape[0] for each in (subject.model, model))  # type: ignore[operator]
    if ours != theirs:
        raise InputError(
            f"checkpoint {str(path)!r} has a vocabulary of {theirs}, and {subject.name!r} one of {ours}: it is of "
            "another model; name its original with --model"
        )
