"""Bytes of a checkpoint beside the codes of its sites: other tensors, and the files that are carried along."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from natprec.formats.listing import entry_bytes
from natprec.models.weight_sites import Site, site_layer
from natprec.utils.atomic_files import folder_bytes


def other_bytes(model: nn.Module, sites: list[Site], dtypes: Mapping[str, torch.dtype]) -> int:
    """Bytes of parameters and buffers that are no sites; `dtypes`: of those that are stored in another one."""
    tensors = {id(t): (t, dtypes.get(name)) for name, t in _others(model, sites).items()}
    return sum(t.numel() * (dtype.itemsize if dtype else 2 if t.is_floating_point() else t.element_size())
               for t, dtype in tensors.values())  # fmt: skip


def other_entries(model: nn.Module, sites: list[Site]) -> int:
    """Bytes that the header of a file spends on those."""
    return entry_bytes(_others(model, sites))


def _others(model: nn.Module, sites: list[Site]) -> dict[str, torch.Tensor]:
    in_sites = {id(site_layer(model, site).weight) for site in sites}
    return {name: t for name, t in model.state_dict(keep_vars=True).items() if id(t) not in in_sites}


def carried_bytes(model: nn.Module, tokenizer: Any, companions: Mapping[str, bytes]) -> int:
    """Measured by writing them once: code is written by transformers too, to the same place."""
    with tempfile.TemporaryDirectory(prefix="natprec-") as folder:
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(folder)  # type: ignore[union-attr, operator]
        written = folder_bytes(Path(folder))
        return written + sum(len(each) for name, each in companions.items() if not Path(folder, name).exists())
