"""Which bytes a checkpoint consists of: sha256 of the files that decide what a model computes.

A verification holds for these bytes and no others: whoever passes a checkpoint on can tell if they are still there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

PATTERNS = ("*.safetensors", "*.gguf", "*.safetensors.index.json", "config.json")
"""Files directly in a folder that decide what is computed from token ids; natprec's own lie in a folder of theirs."""

CHUNK = 1 << 22


def file_digest(path: Path) -> str:
    """64 hex digits of sha256 over a file's bytes, as the Hub and `sha256sum` give them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def deciding_files(checkpoint: Path) -> dict[str, Path]:
    """Name → file of all that decides what a checkpoint computes, sorted; of a single file that file."""
    if checkpoint.is_file():
        return {checkpoint.name: checkpoint}
    found = {file.name: file for pattern in PATTERNS for file in checkpoint.glob(pattern) if file.is_file()}
    return dict(sorted(found.items()))


def checkpoint_digests(checkpoint: Path) -> dict[str, str]:
    """Name → sha256 of each such file: see `deciding_files`."""
    return {name: file_digest(file) for name, file in deciding_files(checkpoint).items()}


def changed(judged: Mapping[str, str], checkpoint: Path) -> list[str]:
    """Names of files that are not those that were judged: others, missing ones and new ones."""
    now = checkpoint_digests(checkpoint)
    return sorted(name for name in judged.keys() | now.keys() if judged.get(name) != now.get(name))
