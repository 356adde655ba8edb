"""What a checkpoint calls the tensors of a model whose modules have other names, or whose experts were taken apart.

transformers stores some models under other names than its modules have (Mixtral's experts as
`block_sparse_moe.experts.0.w1`, GPT-NeoX's head as `embed_out`), and engines look for those. They follow from
transformers' own rules of conversion, tried backwards on stand-ins: numbered tensors of a few values that show where
each expert's part goes. Experts that are stored as one tensor have no names of their own; they get
`experts.0.gate_proj`, …, as llm-compressor writes them. Of models that see, files with either names are about, and
engines read both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from natprec.models.experts import Piece, pieces_of

PARTS = 12
"""Values of a stand-in, into which rules may take it apart."""


class DiskNames:
    """From names in the model to names in its checkpoint; the same ones for most models.

    Attributes:
        merged: whether transformers puts experts that are stored one by one together when it loads them.
    """

    def __init__(self, model: nn.Module) -> None:
        """Find out, without looking at any weight."""
        pieces = pieces_of(model)
        experts = _expert_names(model, pieces)
        renamed, joined = _renamed(model, [*model.state_dict()])
        known = pieces or not (joined or hasattr(getattr(model, "config", None), "vision_config"))
        self._stored = renamed | experts if known else {}
        self.merged = pieces.keys() == experts.keys()
        alike = {name: stored for name, stored in self._stored.items() if _leaf(name) == _leaf(stored)}
        self._modules = {_module(name): _module(stored) for name, stored in alike.items()}

    def tensor(self, name: str) -> str:
        """Of a parameter or buffer."""
        return self._stored.get(name, name)

    def module(self, name: str) -> str:
        """Of a module that owns tensors."""
        return self._modules.get(name, name)

    @functools.cached_property
    def _tensors(self) -> dict[str, str]:
        return {stored: name for name, stored in self._stored.items()}

    @functools.cached_property
    def in_model(self) -> dict[str, str]:
        """The other way: module in the checkpoint → module in the model, where they differ."""
        return {stored: name for name, stored in self._modules.items() if stored != name}

    def key_in_model(self, key: str) -> str:
        """The same of a tensor; one that belongs to a quantized weight goes with its module."""
        name = self._tensors.get(key)
        module, _, leaf = key.rpartition(".")
        return name or f"{self.in_model.get(module, module)}.{leaf}".removeprefix(".")


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _reverted(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What transformers would store for these, by the rules of a model that was not loaded: always the same ones."""
    from transformers.core_model_loading import revert_weight_conversion

    loaded = getattr(model, "_weight_conversions", None)
    model._weight_conversions = None
    try:
        return dict(revert_weight_conversion(model, dict(tensors)))
    except Exception:  # a rule that needs tensors of the real shape
        return {}
    finally:
        model._weight_conversions = loaded


def _renamed(model: Any, names: Sequence[str]) -> tuple[dict[str, str], bool]:
    """Of tensors that keep their values; and whether others are stored in another form, and keep their names."""
    numbered = dict(enumerate(names))
    found = _reverted(model, {name: torch.full((PARTS,), number) for number, name in numbered.items()})
    stored: dict[int, list[str]] = {}
    for name, value in found.items():
        if value.numel() == PARTS:
            stored.setdefault(int(value.flatten()[0]), []).append(name)
    named = {numbered[number]: names[0] for number, names in stored.items() if len(names) == 1}
    return named, not len(named) == len(found) == len(names)


def _expert_names(model: Any, pieces: Mapping[str, Piece]) -> dict[str, str]:
    """Of the weights and biases of experts, where transformers stores them one by one."""
    fused: dict[str, list[tuple[str, Piece]]] = {}
    for name, piece in pieces.items():
        fused.setdefault(piece.fused, []).append((name, piece))
    marks: dict[str, Tensor] = {}
    for name, members in fused.items():
        marks[name] = _marks(members, sum(mark.numel() for mark in marks.values()))
    by_values = {_values(value): name for name, value in _reverted(model, marks).items()}
    named: dict[str, str] = {}
    for whole, members in fused.items():
        wanted = {name: _values(piece.of(marks[whole][piece.expert])) for name, piece in members}
        if all(values in by_values for values in wanted.values()):
            named |= {name: by_values[values] for name, values in wanted.items()}
    return named


def _marks(members: list[tuple[str, Piece]], first: int) -> Tensor:
    """A small stand-in of a fused parameter: as many experts, two outputs and two inputs; its numbers are its own."""
    experts = 1 + max(piece.expert for _, piece in members)
    shape = (experts, 2) if members[0][0].endswith(".bias") else (experts, 2, 2)
    return torch.arange(first, first + math.prod(shape)).view(shape)


def _values(tensor: Tensor) -> frozenset[int]:
    return frozenset(tensor.flatten().tolist())
