"""The header of a GGUF file: defects named before transformers reads it, and where its tensors lie.

The header lists metadata, then each tensor's name, shape, type and place; it is read here without the values (the
`gguf` package takes seconds to parse them all).
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from natprec.errors import ModelError
from natprec.models.bounds import refuse_counts, refuse_many_tensors

if TYPE_CHECKING:
    from torch import nn

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the metadata's scalars, by type."""
_INTEGERS = {4: "I", 5: "i", 10: "Q", 11: "q"}
_UINT16, _STRING, _ARRAY = 2, 8, 9
_FLOAT32 = 0
"""Type of a tensor."""

ROTARY = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""What rotary frequencies are divided by (Llama 3.1 and later, Phi-3); where they are not all 1, they change the
function."""


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of a file.

    Attributes:
        shape: as torch has it; in the file it stands the other way round.
        kind: number of its type.
        offset: in the file.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def type(self) -> Any:
        """The `gguf` package's type.

        Raises:
            ModelError: nothing here can unpack it.
        """
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import _type_traits

        readable = {*_type_traits, GGMLQuantizationType.F32, GGMLQuantizationType.F16}
        known = {int(each): each for each in GGML_QUANT_SIZES}
        if known.get(self.kind) not in readable:
            label = known[self.kind].name if self.kind in known else "a newer one, or damage"
            raise ModelError(
                f"tensor {self.name!r} of {str(self.file)!r} has GGUF type {self.kind} ({label}), which the gguf "
                "package cannot unpack; update it (pip install -U gguf), or use a file with other types"
            )
        return known[self.kind]

    @property
    def nbytes(self) -> int:
        """What it takes in the file."""
        from gguf import GGML_QUANT_SIZES

        block, stored = GGML_QUANT_SIZES[self.type]
        return self.elements // block * stored


@dataclass(frozen=True)
class GGUFHeader:
    """What a file says of itself.

    Attributes:
        architecture: as GGUF spells it; empty where it says none.
        parts: files that it was cut into; see `natprec.models.gguf_parts`.
    """

    architecture: str
    tensors: tuple[GGUFTensor, ...]
    parts: int = 1

    @property
    def quantized(self) -> str:
        """The type of most weights, such as Q4_1; empty where they are floats."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors:
            counts[tensor.type.name] += tensor.elements
        ((most, _),) = counts.most_common(1) or [("F32", 0)]
        return "" if most in ("F32", "F16", "BF16", "F64") else most


def check_gguf(file: Path) -> GGUFHeader:
    """Refuse a file that is cut off or has tensors of a type that nothing here can read.

    Returns:
        What is in it.
    Raises:
        ModelError: names the file, the tensor and its type.
    """
    size = file.stat().st_size
    header = read_gguf(file)
    for tensor in header.tensors:
        if tensor.offset + tensor.nbytes > size:
            raise ModelError(
                f"{str(file)!r} ({size} bytes) is cut off before tensor {tensor.name!r} ends; download it again"
            )
    return header


def gguf_architecture(file: Path) -> str | None:
    """What a GGUF file says its architecture is; None where it says nothing, or is none."""
    try:
        return read_gguf(file).architecture or None
    except ModelError:
        return None


def gguf_sizes(file: Path) -> list[tuple[int, int, int]]:
    """Elements, stored bytes and dimensions of each tensor.

    Raises:
        ModelError: the file is damaged, or has a type that nothing here can read.
    """
    return [(each.elements, each.nbytes, len(each.shape)) for each in check_gguf(file).tensors]


def read_gguf(file: Path) -> GGUFHeader:
    """The header of a file.

    Raises:
        ModelError: it has none, or not a whole one.
    """
    with file.open("rb") as opened:
        try:
            return _header(opened)
        except (struct.error, ValueError, OverflowError, MemoryError, RecursionError, OSError) as error:
            raise ModelError(
                f"{str(file)!r} ({file.stat().st_size} bytes) has no whole GGUF header ({error}); download it again"
            ) from error


def expert_size(header: GGUFHeader) -> int | None:
    """Inner size of experts, which transformers does not read; None: there are none."""
    return next((each.shape[1] for each in header.tensors if each.name.endswith("ffn_up_exps.weight")), None)


def passed_over(header: GGUFHeader, model: nn.Module) -> tuple[str, ...]:
    """Tensors of a file that transformers does not read into this model, which it has just made of it.

    Raises:
        ModelError: the model computes something else without them.
    """
    config: Any = model.config
    rotary = getattr(config, "rope_parameters", None) or {}
    lost = [each for each in header.tensors if each.name in ROTARY and not _all_one(each)]
    if lost and rotary.get("rope_type", "default") == "default":
        raise ModelError(
            f"tensor {lost[0].name!r} of {str(lost[0].file)!r} scales the rotary frequencies, which transformers does "
            "not read from GGUF: the model would be another one; use the original checkpoint, in safetensors"
        )
    read = _read_names(header.architecture, model)
    names = (each.name for each in header.tensors)
    return tuple(name for name in names if name in ROTARY or (read and name not in read))


def _read_names(architecture: str, model: Any) -> Sequence[str]:
    """GGUF's names of what transformers reads; none where it does not tell."""
    try:
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )

        processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
        return list(get_gguf_hf_weights_map(model, processor))
    except Exception:  # a part of transformers that other versions may not have
        return []


def _all_one(tensor: GGUFTensor) -> bool:
    """Whether each value is 1, as far as that is known."""
    if tensor.kind != _FLOAT32:
        return False
    return bool((np.fromfile(tensor.file, "<f4", tensor.elements, offset=tensor.offset) == 1).all())


def _header(file: BinaryIO) -> GGUFHeader:
    if file.read(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version, count, pairs = struct.unpack("<IQQ", file.read(20))
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    refuse_many_tensors(max(count, pairs), Path(file.name))
    alignment, architecture, parts, found = 32, "", 1, list[tuple[str, tuple[int, ...], int, int]]()
    for _ in range(pairs):
        key = _text(file)
        (kind,) = struct.unpack("<I", file.read(4))
        if key == "general.alignment":
            (alignment,) = struct.unpack("<I", file.read(4))
        elif key == "general.architecture" and kind == _STRING:
            architecture = _text(file)
        elif key == "split.count" and kind == _UINT16:
            (parts,) = struct.unpack("<H", file.read(2))
        elif kind in _INTEGERS:
            (number,) = struct.unpack(f"<{_INTEGERS[kind]}", file.read(_WIDTHS[kind]))
            refuse_counts({key: number}, file.name)
        else:
            _skip(file, kind)
    for _ in range(count):
        name = _text(file)
        (dimensions,) = struct.unpack("<I", file.read(4))
        if dimensions > 8:
            raise ValueError(f"tensor of {dimensions} dimensions")
        *shape, kind, offset = struct.unpack(f"<{dimensions}QIQ", file.read(8 * dimensions + 12))
        found.append((name, tuple(reversed(shape)), kind, offset))
    start = -(-file.tell() // max(1, alignment)) * alignment
    path = Path(file.name)
    tensors = (GGUFTensor(path, name, shape, kind, start + offset) for name, shape, kind, offset in found)
    return GGUFHeader(architecture, tuple(tensors), parts)


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    found = file.read(length)
    if len(found) != length:
        raise ValueError("it ends within a name")
    return found.decode("utf-8")


def _skip(file: BinaryIO, kind: int) -> None:
    """Step over one value of the metadata."""
    if kind == _STRING:
        (length,) = struct.unpack("<Q", file.read(8))
        file.seek(length, 1)
    elif kind == _ARRAY:
        items, count = struct.unpack("<IQ", file.read(12))
        if items in _WIDTHS:
            file.seek(_WIDTHS[items] * count, 1)
            return
        for _ in range(count):
            _skip(file, items)
    elif kind in _WIDTHS:
        file.seek(_WIDTHS[kind], 1)
    else:
        raise ValueError(f"metadata of type {kind}")
