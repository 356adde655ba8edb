"""Defects of a GGUF file, named from its header before transformers reads it.

The header lists metadata, then each tensor's name, shape, type and place; it is read here without the values (the
`gguf` package takes seconds to parse them all).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from natprec.errors import ModelError
from natprec.models.bounds import refuse_counts, refuse_many_tensors

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the metadata's scalars, by type."""
_INTEGERS = {4: "I", 5: "i", 10: "Q", 11: "q"}
_STRING, _ARRAY = 8, 9


def check_gguf(file: Path) -> None:
    """Refuse a file that is cut off or has tensors of a type that nothing here can read.

    Raises:
        ModelError: names the file, the tensor and its type.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        try:
            tensors, start = _header(opened)
        except (struct.error, ValueError, OverflowError, MemoryError) as error:
            raise ModelError(
                f"{str(file)!r} ({size} bytes) has no whole GGUF header ({error}); download it again"
            ) from error
    for name, elements, kind, offset, _ in tensors:
        if start + offset + _stored(file, name, kind, elements) > size:
            raise ModelError(f"{str(file)!r} ({size} bytes) is cut off before tensor {name!r} ends; download it again")


def gguf_architecture(file: Path) -> str | None:
    """What a GGUF file says its architecture is; None where it says nothing, or is none."""
    with file.open("rb") as opened:
        try:
            if opened.read(4) != b"GGUF":
                return None
            _, _, pairs = struct.unpack("<IQQ", opened.read(20))
            for _ in range(min(pairs, 1000)):
                key = _text(opened)
                (kind,) = struct.unpack("<I", opened.read(4))
                if key == "general.architecture" and kind == _STRING:
                    return _text(opened)
                _skip(opened, kind)
        except (struct.error, ValueError, OverflowError, MemoryError):
            return None
    return None


def gguf_sizes(file: Path) -> list[tuple[int, int, int]]:
    """Elements, stored bytes and dimensions of each tensor.

    Raises:
        ModelError: the file is damaged, or has a type that nothing here can read.
    """
    check_gguf(file)
    with file.open("rb") as opened:
        tensors, _ = _header(opened)
    return [(count, _stored(file, name, kind, count), dimensions) for name, count, kind, _, dimensions in tensors]


def _stored(file: Path, name: str, kind: int, elements: int) -> int:
    """Bytes of a tensor.

    Raises:
        ModelError: its type is unknown.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import _type_traits

    readable = {*_type_traits, GGMLQuantizationType.F32, GGMLQuantizationType.F16}
    known = {int(each): each for each in GGML_QUANT_SIZES}
    if known.get(kind) not in readable:
        label = known[kind].name if kind in known else "a newer one, or damage"
        raise ModelError(
            f"tensor {name!r} of {str(file)!r} has GGUF type {kind} ({label}), which the gguf package cannot unpack; "
            "update it (pip install -U gguf), or use a file with other types"
        )
    block, stored = GGML_QUANT_SIZES[known[kind]]
    return elements // block * stored


def _header(file: BinaryIO) -> tuple[list[tuple[str, int, int, int, int]], int]:
    """Name, number of values, type, offset and dimensions of each tensor, and where in the file the offsets begin."""
    if file.read(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version, count, pairs = struct.unpack("<IQQ", file.read(20))
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    refuse_many_tensors(max(count, pairs), Path(file.name))
    alignment, tensors = 32, []
    for _ in range(pairs):
        key = _text(file)
        (kind,) = struct.unpack("<I", file.read(4))
        if key == "general.alignment":
            (alignment,) = struct.unpack("<I", file.read(4))
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
        elements = 1
        for length in shape:
            elements *= length
        tensors.append((name, elements, kind, offset, dimensions))
    return tensors, -(-file.tell() // max(1, alignment)) * alignment


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
