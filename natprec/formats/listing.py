"""What a checkpoint spends on naming its tensors: the header of a safetensors file, and the quantization_config.

A tenth of a percent of a small model; without it a folder would exceed the size that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable

TENSORS = {"compressed-tensors": 4, "sdnq": 4, "bitsandbytes": 6, "gguf": 0}
"""Container → tensors that hold one weight, at most: codes, scales, zero points, tables. A GGUF file has one, which
`natprec.checkpoints.gguf` counts with the other tensors."""

ENTRY = 92
"""Bytes of a tensor's entry beside its name, which stands there twice: dtype, shape, place and checksum."""

ENDING = 16
"""Characters of a tensor's name after its module's: `.weight_packed`, `.weight_scale`."""

TARGET = 24
"""Bytes of a weight's line in the `quantization_config`, beside its name."""


def entry_bytes(tensors: Iterable[str]) -> int:
    """Bytes that a header spends on tensors of these names."""
    return sum(2 * len(name) + ENTRY for name in tensors)


def naming_bytes(container: str, modules: Iterable[str]) -> int:
    """Bytes that header and configuration spend on weights, at most, each with a quantized one's tensors."""
    count = TENSORS[container]
    return sum(count * (2 * (len(name) + ENDING) + ENTRY) + len(name) + TARGET for name in modules) if count else 0
