"""Weight files that natprec wrote carry a CRC-32 of every tensor, so that any flipped bit has a name.

The sums lie in the file's own metadata. What they do not cover is covered by what a header may say: every tensor has a
sum, every sum a tensor, and there is no metadata besides; other changes of a header leave it unreadable.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from natprec.errors import ModelError
from natprec.utils.json_text import from_json

CHECKSUMS = "crc32"
"""Key in the metadata of a safetensors file that natprec wrote: tensor name → CRC-32 of its bytes, as JSON."""

CARRIED = "carried"
"""Key in that metadata: names of tensors that are no part of the model, as JSON."""

_METADATA = {"format": "pt"}
"""All other metadata."""


def tensor_checksum(value: Tensor) -> int:
    """CRC-32 of a tensor's bytes, as a safetensors file holds them."""
    value = value.clone(memory_format=torch.contiguous_format)  # a single element may have any stride
    return zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data)


def refuse_damaged(files: Iterable[Path], ours: bool) -> None:
    """Read files whole and stop at the first tensor whose bits are not those that natprec wrote.

    Args:
        files: safetensors, whose headers can be read.
        ours: whether natprec wrote them all; files of others that carry no sums are passed over.
    Raises:
        ModelError: names file and tensor.
    """
    for file in files:
        found = _damage(file, ours)
        if found is not None:
            raise ModelError(f"{found}; download that file again, or quantize again")


def _damage(file: Path, ours: bool) -> str | None:
    """What is wrong with a file, if anything."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        size = int.from_bytes(mapped[:8], "little")
        header: dict[str, Any] = from_json(mapped[8 : 8 + size])
        metadata = header.pop("__metadata__", None) or {}
        sums = metadata.pop(CHECKSUMS, None)
        if sums is None and not ours:
            return None
        carried = from_json(metadata.pop(CARRIED, "[]"))
        if sums is None or metadata != _METADATA or not set(carried) <= header.keys():
            return f"weights file {str(file)!r} is damaged in its metadata"
        try:
            expected: dict[str, int] = {name: int(value) for name, value in from_json(sums).items()}
        except (ValueError, TypeError, AttributeError):
            return f"weights file {str(file)!r} is damaged in the checksums of its metadata"
        if other := sorted(header.keys() ^ expected.keys()):
            return (
                f"weights file {str(file)!r} is damaged in its header: tensor {other[0]!r} is not one that was written"
            )
        with memoryview(mapped) as content:
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                with content[8 + size + begin : 8 + size + end] as own:
                    actual = zlib.crc32(own)
                if actual != expected[name]:
                    return (
                        f"tensor {name!r} of {str(file)!r} is damaged: its CRC-32 is {actual:08x}, "
                        f"{expected[name]:08x} was written"
                    )
    return None
