"""The tensors of a model's safetensors files, by the names that transformers gives them in the model.

Only headers are read when a checkpoint is opened; a tensor is mapped from its file when it is asked for. Names, and
tensors that transformers puts together from several (the experts of a layer), follow transformers' own rules of
conversion, so that a block is loaded as `from_pretrained` would load it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from natprec.models.checksums import CARRIED
from natprec.models.experts import Piece, pieces_of, take_apart
from natprec.models.headers import Header
from natprec.models.model_files import read_generation_config
from natprec.models.trust import unfilled_model
from natprec.models.weights import OnDisk, Stored, wrong_shape
from natprec.tasks import Task
from natprec.utils.json_text import from_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Found = TypeVar("Found")

Part = tuple[Header, str, str | None]
"""A stored tensor that makes up one of the model's, or a piece of it: header, key, pattern of its converter."""


def placed(headers: Mapping[str, Header], model: Any) -> tuple[dict[str, list[Part]], list[str], dict[str, Any]]:
    """Which stored tensors make up which of the model's, by transformers' own rules.

    Returns:
        Name in the model → its parts; names in the files that are part of nothing; converters by their patterns.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    parts: dict[str, list[Part]] = {}
    unused = []
    wanted = model.state_dict()
    for key in sorted(headers, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = key, None
        if name in wanted:
            parts.setdefault(name, []).append((headers[key], key, pattern))
        else:
            unused.append(key)
    return parts, unused, {pattern: rule for rule in converters for pattern in rule.source_patterns}


def same_tensors(model: Any, parts: Mapping[str, Found]) -> dict[str, Found]:
    """For all names of each of a tied model's tensors what one of them has in `parts`."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    firsts = [(same, next((name for name in same if name in parts), None)) for same in names.values()]
    return {name: parts[first] for same, first in firsts if first is not None for name in same}


class StoredTensors:
    """A model's parameters and buffers as they lie in its files.

    Attributes:
        parts: name in the model → what makes it up.
        missing: names in the model that the files have nothing for.
        unused: names in the files that the model has no place for.
    """

    def __init__(self, headers: Mapping[str, Header], model: Any) -> None:
        """Find out what is where; `model` may be on the meta device and is tied as the files say.

        Raises:
            ModelError: a tensor has another shape than the model's.
        """
        self._model = model
        self.parts, self.unused, self._converters = placed(headers, model)
        wanted = model.state_dict()
        for name, parts in self.parts.items():
            shape = parts[0][0].shape
            if len(parts) == 1 and parts[0][2] is None and shape != tuple(wanted[name].shape):
                raise wrong_shape(name, shape, tuple(wanted[name].shape))
        self.missing = wanted.keys() - self.parts.keys()
        self._tie()

    def _tie(self) -> None:
        """Tie the model's weights as `from_pretrained` would: also where the files hold one tensor twice."""
        for one, other in (getattr(self._model, "all_tied_weights_keys", None) or {}).items():
            if {one, other} <= self.parts.keys() and torch.equal(self.tensor(one), self.tensor(other)):
                self.missing.add(one)
        self._model.tie_weights(missing_keys=self.missing, recompute_mapping=False)
        self.parts |= same_tensors(self._model, self.parts)

    def tensor(self, name: str) -> Tensor:
        """One tensor in its stored dtype: a view of its file, or put together from several.

        Raises:
            ModelError: a file has gone or changed since it was opened.
        """
        parts = self.parts[name]
        if len(parts) == 1 and parts[0][2] is None:
            return parts[0][0].read(parts[0][1])
        return self._converted(name, parts)

    def expert(self, name: str, number: int, experts: int) -> Tensor:
        """What a tensor that holds all experts of a layer holds of one; no other expert's is read where that can be.

        Raises:
            ModelError: a file has gone or changed since it was opened.
        """
        parts = self.parts[name]
        if len(parts) == 1 and parts[0][2] is None:
            return parts[0][0].read(parts[0][1], number)
        by_pattern: dict[str | None, list[Part]] = {}
        for part in parts:
            by_pattern.setdefault(part[2], []).append(part)
        if all(len(several) == experts for several in by_pattern.values()):
            return self._converted(name, [several[number] for several in by_pattern.values()])[0]
        return self.tensor(name)[number]

    def _converted(self, name: str, parts: Sequence[Part]) -> Tensor:
        """As transformers puts them together."""
        converter: Any = copy.deepcopy(self._converters[parts[0][2]])  # type: ignore[index]
        for header, key, pattern in parts:
            converter.add_tensor(name, key, pattern, header.read(key))
        value = converter.convert(name, model=self._model, config=self._model.config)[name]
        return value[0] if isinstance(value, list) else value


class StoredExperts:
    """The tensors of a model whose experts were taken apart after its files were opened."""

    def __init__(self, stored: StoredTensors, pieces: dict[str, Piece]) -> None:
        self._stored, self._pieces = stored, pieces
        self._experts = {piece.fused: 1 + piece.expert for piece in pieces.values()}

    def tensor(self, name: str) -> Tensor:
        """One tensor in its stored dtype."""
        if name not in self._pieces:
            return self._stored.tensor(name)
        piece = self._pieces[name]
        return piece.of(self._stored.expert(piece.fused, piece.expert, self._experts[piece.fused]))


def hollow_model(
    headers: Mapping[str, Header], where: str, config: PreTrainedConfig, task: Task, device: torch.device, trust: bool
) -> tuple[PreTrainedModel, OnDisk, StoredTensors]:
    """The model of a checkpoint with its weights left on disk, and what its files hold."""
    model = empty_model(config, task, trust)
    stored = StoredTensors(headers, model)
    take_apart(model)
    weights = hollowed(model, StoredExperts(stored, pieces_of(model)), stored.missing, device)
    read_generation_config(model, where)
    return model, weights, stored


def filled_model(
    headers: Mapping[str, Header], where: str, config: PreTrainedConfig, task: Task, trust: bool
) -> tuple[PreTrainedModel, StoredTensors]:
    """The model of a checkpoint in memory, its weights read one by one, and what its files hold.

    What they lack keeps its first, random values.
    """
    model = unfilled_model(config, task, trust)
    stored = StoredTensors(headers, model)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if name in stored.parts:
                value.copy_(stored.tensor(name))
    take_apart(model)
    read_generation_config(model, where)
    return model, stored


def empty_model(config: PreTrainedConfig, task: Task, trust: bool) -> PreTrainedModel:
    """A model whose parameters have no values yet."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = unfilled_model(config, task, trust)
        return model


def hollowed(model: PreTrainedModel, stored: Stored, missing: Collection[str], device: torch.device) -> OnDisk:
    """Make an empty, tied model read its weights when they are needed, and its buffers now."""
    for name, buffer in model.named_buffers():
        if name in model.state_dict() and name not in missing:
            buffer.copy_(stored.tensor(name))
    weights = OnDisk(model, stored, device)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    return weights


def stored_names(file: Path, carried: bool = True) -> list[str]:
    """The keys of a safetensors file; or without those that natprec carried over into it."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        others = [] if carried else from_json((opened.metadata() or {}).get(CARRIED, "[]"))
        return [key for key in opened.keys() if key not in others]  # noqa: SIM118 - not a dict
