"""The checkpoint as one GGUF file, with its tokenizer, for llama.cpp.

Weights that the plan quantizes are stored as blocks of their type, vectors (norms, biases) as float32, what else there
is in 16 bits. Names and metadata keys are those of the `gguf` package; what differs from architecture to
architecture is in `natprec.export.gguf_architectures`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from natprec.export.gguf_architectures import architecture_of, interleaved
from natprec.export.gguf_blocks import pack_blocks
from natprec.export.gguf_tokenizer import add_tokenizer, copied_fields
from natprec.quantizers import QuantizedTensor
from natprec.subject import Subject

FILE_NAME = "model.gguf"

MOSTLY_MIXED = 1024
"""llama.cpp's file type 'guessed': no one type stands for the file."""

ALIGNMENT = 32
"""Tensors begin at multiples of it."""


def write_gguf(folder: Path, subject: Subject, quantized: Mapping[str, QuantizedTensor]) -> None:
    """Write `model.gguf` into an existing folder; the subject's model holds what the sites do not.

    Args:
        quantized: site → codes on the grid of a `Format`.
    Raises:
        ModelError: an architecture or tokenizer that has no known form in GGUF.
    """
    writer = _described(folder, subject)
    try:
        for label, values, kind in _tensors(subject, quantized):
            writer.add_tensor(label, values, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def as_gguf(subject: Subject) -> Subject:
    """The subject with the bytes that all but its sites take in a GGUF file.

    Raises:
        ModelError: it cannot be written as GGUF; better known before measuring.
    """
    with tempfile.TemporaryDirectory(prefix="natprec-") as folder:
        writer = _described(Path(folder), subject)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
        finally:
            writer.close()
        carried = (Path(folder) / FILE_NAME).stat().st_size
    names = architecture_of(subject.model).tensor_names(subject.model)
    sites = {use + ".weight" for site in subject.sites for use in site.uses}
    others = 0
    for name, tensor in subject.model.state_dict().items():
        carried += 24 + len(names[name]) + 8 * tensor.dim() + ALIGNMENT // 2  # its line in the header, and padding
        if name not in sites:
            others += tensor.numel() * (4 if _in_float32(subject, name, tensor) else 2)
    return replace(subject, other_bytes=others, carried_bytes=carried)


def _in_float32(subject: Subject, name: str, tensor: Tensor) -> bool:
    """Whether a tensor that is not quantized is stored so: vectors always, matrices where their checkpoint does."""
    return tensor.dim() == 1 or subject.staged.weights.dtypes.get(name) in (torch.float32, torch.float64)


def _described(folder: Path, subject: Subject) -> Any:
    """A writer that has all but the tensors; a source that is GGUF itself describes model and tokenizer best."""
    from gguf import GGUFWriter

    known = architecture_of(subject.model)
    writer = GGUFWriter(folder / FILE_NAME, known.name)
    if subject.gguf is not None:
        for key, (value, kind, items) in copied_fields(subject.gguf).items():
            writer.add_key_value(key, value, kind, items)
    else:
        writer.add_name(subject.name)
        add_tokenizer(writer, subject.tokenizer, subject.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    writer.add_file_type(MOSTLY_MIXED)
    writer.add_quantization_version(2)
    known.add_hyperparameters(writer, subject.model)
    return writer


def _tensors(subject: Subject, quantized: Mapping[str, QuantizedTensor]) -> Iterator[tuple[str, npt.NDArray[Any], Any]]:
    """GGUF name, array as stored and type of every tensor; tied weights once."""
    from gguf import GGMLQuantizationType, quantize

    known = architecture_of(subject.model)
    names = known.tensor_names(subject.model)
    sixteen = GGMLQuantizationType.F16 if subject.storage_dtype == torch.float16 else GGMLQuantizationType.BF16
    stored: set[int] = set()
    for name, tensor in subject.model.state_dict(keep_vars=True).items():
        if id(tensor) in stored:
            continue
        stored.add(id(tensor))
        value = quantized.get(name.removesuffix(".weight"))
        if value is not None:
            kind, array = GGMLQuantizationType[value.format.name], pack_blocks(value)
        else:
            kind = GGMLQuantizationType.F32 if _in_float32(subject, name, tensor) else sixteen
            array = quantize(tensor.detach().float().cpu().numpy(), kind)
        yield names[name], np.ascontiguousarray(interleaved(array, known.heads(subject.model, name))), kind
