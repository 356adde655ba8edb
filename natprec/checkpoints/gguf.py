"""The checkpoint as one GGUF file, with its tokenizer, for llama.cpp.

Weights that the plan quantizes are stored as blocks of their type, vectors (norms, biases) as float32, what else there
is in 16 bits. Names and metadata keys are those of the `gguf` package; what differs from architecture to
architecture is in `natprec.models.gguf_architectures`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from natprec.checkpoints.gguf_blocks import pack_blocks
from natprec.checkpoints.gguf_tokenizer import add_tokenizer, copied_fields
from natprec.checkpoints.writer import CheckpointWriter
from natprec.measurement.subject import Subject
from natprec.models.gguf_architectures import architecture_of, interleaved
from natprec.quantizers import QuantizedTensor

FILE_NAME = "model.gguf"

MOSTLY_MIXED = 1024
"""llama.cpp's file type 'guessed': no one type stands for the file."""

ROUTER = "mlp.gate.weight"

ALIGNMENT = 32
"""Tensors begin at multiples of it."""


class GGUFCheckpoint(CheckpointWriter):
    """One file, `model.gguf`.

    Raises:
        ModelError: from `close`: an architecture or tokenizer that has no known form in GGUF.
    """

    def tensors(self, own: Collection[int], codes: dict[str, QuantizedTensor]) -> dict[str, Tensor]:
        """Arrays as GGUF stores them, by type and name in the file; tied weights once."""
        from gguf import GGMLQuantizationType, quantize

        subject, found, stored = self.subject, dict[str, Tensor](), set[int]()
        known = architecture_of(subject.model)
        names = known.tensor_names(subject.model)
        sixteen = GGMLQuantizationType.F16 if subject.storage_dtype == torch.float16 else GGMLQuantizationType.BF16
        experts: dict[str, list[np.ndarray]] = {}
        for name, tensor in subject.model.state_dict(keep_vars=True).items():
            if id(tensor) in stored or id(tensor) not in own:
                continue
            stored.add(id(tensor))
            value = codes.get(name.removesuffix(".weight"))
            if value is not None:
                kind, array = GGMLQuantizationType[value.format.name], pack_blocks(value)
            else:
                kind = GGMLQuantizationType.F32 if _in_float32(subject, name, tensor) else sixteen
                array = quantize(known.stored(name, tensor).numpy(), kind)
            array = np.ascontiguousarray(interleaved(array, known.heads(subject.model, name)))
            label = f"{kind.name} {names[name]}"
            if "_exps." in label:
                experts.setdefault(label, []).append(array)  # in the order of their numbers
            else:
                found[label] = torch.from_numpy(array)
        return found | {label: torch.from_numpy(np.stack(arrays)) for label, arrays in experts.items()}

    def close(self) -> None:
        """Write the file, its tensors in the model's order."""
        from gguf import GGMLQuantizationType

        pieces = {label.partition(" ")[2]: (label.partition(" ")[0], each) for label, each in self.pieces().items()}
        writer = _described(self.folder, self.subject)
        try:
            for label in dict.fromkeys(architecture_of(self.subject.model).tensor_names(self.subject.model).values()):
                if label in pieces:
                    kind, array = pieces[label]
                    writer.add_tensor(label, array.numpy(), raw_dtype=GGMLQuantizationType[kind])
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
    others, listed = 0, set[str]()
    for name, tensor in subject.model.state_dict().items():
        if names[name] not in listed:
            carried += 24 + len(names[name]) + 8 * tensor.dim() + ALIGNMENT // 2  # its line in the header, and padding
            listed.add(names[name])
        if name not in sites:
            others += tensor.numel() * (4 if _in_float32(subject, name, tensor) else 2)
    return replace(subject, other_bytes=others, carried_bytes=carried)


def _in_float32(subject: Subject, name: str, tensor: Tensor) -> bool:
    """Whether a tensor that is not quantized is stored so: vectors always, others where their checkpoint does.

    So are routers, which llama.cpp's own conversion leaves in float32.
    """
    return (
        tensor.dim() == 1
        or name.endswith(ROUTER)
        or subject.segmented.weights.dtypes.get(name) in (torch.float32, torch.float64)
    )


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
