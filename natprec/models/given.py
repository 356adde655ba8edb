"""The files that a user's name of a model stands for, opened as far as headers tell what is in them.

A model of another tool's codes is unpacked as it is read, an adapter is merged into the model that it names, and the
parts of a GGUF file are one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from natprec.errors import ModelError
from natprec.models.adapters import base_of, merged
from natprec.models.already_quantized import refuse_quantized
from natprec.models.dequantized import Dequantized, dequantized
from natprec.models.gguf_files import GGUFHeader
from natprec.models.gguf_parts import check_parts
from natprec.models.headers import Header, read_headers
from natprec.models.hub import download
from natprec.models.model_files import hub_revision, weight_files
from natprec.models.places import local_path

MERGED = "LoRA adapter"


@dataclass(frozen=True)
class Given:
    """A model's files.

    Attributes:
        path: its folder, or its GGUF file.
        files: with its weights, and an adapter's.
        headers: its tensors, dense; none of a GGUF file.
        gguf: what a GGUF file says of itself.
        format: how it is quantized; empty: not at all.
        adapted: the model that an adapter is merged into; empty: there is none.
        revision: its commit on the hub; None: it is not from there.
    """

    path: Path
    files: tuple[Path, ...]
    headers: Mapping[str, Header]
    gguf: GGUFHeader | None = None
    format: str = ""
    adapted: str = ""
    revision: str | None = None

    @property
    def nbytes(self) -> int:
        """Of the files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def is_read_here(self) -> bool:
        """Whether its safetensors files hold other tensors than the model does, which transformers would not find."""
        return any(isinstance(header, Dequantized) for header in self.headers.values())

    @property
    def elements(self) -> int:
        """Numbers in its weights."""
        tensors = self.headers.values() if self.gguf is None else self.gguf.tensors
        return sum(tensor.elements for tensor in tensors)


def find(name: str) -> Given:
    """Look a model up, on this machine or on the hub.

    Raises:
        ModelError: not found, incomplete or damaged, or quantized in a way that natprec does not unpack.
    """
    path = local_path(name) or download(name)
    return _gguf(path) if path.is_file() else _folder(name, path)


def _gguf(file: Path) -> Given:
    header = check_parts(file)
    parts = tuple(dict.fromkeys((file, *(tensor.file for tensor in header.tensors))))
    return Given(file, parts, {}, header, header.quantized, revision=hub_revision(file.parent))


def _folder(name: str, folder: Path) -> Given:
    base = base_of(folder)
    if base is not None:
        return _adapted(name, folder, base)
    files = weight_files(folder)
    stored = read_headers(files)
    headers, kind = dequantized(folder, stored)
    refuse_quantized(name, folder, headers, unpacked=bool(kind))
    return Given(folder, tuple(files), headers, format=kind, revision=hub_revision(folder))


def _adapted(name: str, folder: Path, base: str) -> Given:
    place = folder / base if (folder / base).is_dir() else local_path(base) or download(base)
    if place.is_file() or base_of(place) is not None:
        what = "a GGUF file" if place.is_file() else "an adapter itself"
        raise ModelError(
            f"the adapter {name!r} belongs to {base!r}, {what}; merge it into a model in safetensors with peft "
            "(merge_and_unload()), and give that"
        )
    whole = _folder(base, place)
    kind = f"{MERGED} merged into {whole.format}" if whole.format else ""
    headers, files = merged(folder, whole.headers), (*whole.files, folder / "adapter_model.safetensors")
    return replace(whole, headers=headers, files=files, format=kind, adapted=base, revision=None)
