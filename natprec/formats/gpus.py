"""GPUs by generation, which is what engines choose kernels by: a compute capability, and the names people say.

Source: NVIDIA's table of compute capabilities (developer.nvidia.com/cuda-gpus). This module imports no torch.
"""

from __future__ import annotations

import difflib
import re

from natprec.errors import InputError

ANY = "any"
"""All of `EVERYWHERE`: what one file can rely on wherever it is run."""

NAMES: dict[int, tuple[str, ...]] = {
    75: ("t4", "rtx2060", "rtx2070", "rtx2080", "rtx2080ti"),
    80: ("a100", "a800", "a30"),
    86: ("a10", "a10g", "a16", "a40", "a6000", "rtxa6000", "rtx3060", "rtx3070", "rtx3080", "rtx3090"),
    89: ("l4", "l20", "l40", "l40s", "rtx4060", "rtx4070", "rtx4080", "rtx4090", "rtx6000ada"),
    90: ("h100", "h200", "h20", "h800", "gh200"),
    100: ("b200", "b100", "gb200"),
    103: ("b300", "gb300"),
    120: ("rtx5060", "rtx5070", "rtx5080", "rtx5090", "rtxpro6000"),
    121: ("gb10", "dgxspark"),
}
"""Compute capability, ten times → the GPUs that have it."""

EVERYWHERE = (80, 89, 90, 100, 120)
"""Generations that a plan for `any` GPU is for."""

_KNOWN = {f"sm{capability}": capability for capability in NAMES} | {
    name: capability for capability, names in NAMES.items() for name in names
}


def generation(name: str) -> str:
    """The generation of a GPU, `sm90`, or `any`.

    Args:
        name: of a generation or a GPU, as people write it: `H100`, `RTX 5090`, `sm_90`.
    Raises:
        InputError: it is unknown; the message suggests the nearest.
    """
    plain = re.sub(r"[\s_-]|nvidia|geforce|tesla", "", name.lower())
    if plain == ANY:
        return ANY
    if plain not in _KNOWN:
        near = difflib.get_close_matches(plain, _KNOWN, n=3, cutoff=0.4)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        known = ", ".join(f"sm{each}" for each in NAMES)
        raise InputError(f"unknown gpu {name!r}{hint}; give a generation ({known}), a GPU's name, or any")
    return f"sm{_KNOWN[plain]}"


def capabilities(gpu: str) -> tuple[int, ...]:
    """Compute capabilities, ten times, of a generation; of `any`, all that it stands for."""
    return EVERYWHERE if gpu == ANY else (int(gpu.removeprefix("sm")),)


def known(name: str, value: str | None) -> None:
    """The check of an option: raises InputError for an unknown GPU."""
    if value is not None:
        generation(value)
