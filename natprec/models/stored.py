"""The tensors of a model's safetensors files, by the names that transformers gives them in the model.

Only headers are read when a checkpoint is opened; a tensor is mapped from its file when it is asked for. Names, and
tensors that transformers puts together from several (the experts of a layer), follow transformers' own rules of
conversion, so that a block is loaded as `from_pretrained` would load it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from natprec.errors import ModelError
from natprec.models.checkpoints import Kind
from natprec.models.experts import Piece, pieces_of, take_apart
from natprec.models.trust import unfilled_model
from natprec.models.weights import OnDisk, Stored

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Part = tuple[Path, str, str | None]
"""A stored tensor that makes up one of the model's, or a piece of it: file, key, pattern of its converter."""


class StoredTensors:
    """A model's parameters and buffers as they lie in its files.

    Attributes:
        missing: names in the model that the files have nothing for.
    """

    def __init__(self, files: Sequence[Path], model: Any) -> None:
        """Find out what is where; `model` may be on the meta device and is tied as the files say."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._model = model
        self._converters = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        self._parts: dict[str, list[Part]] = {}
        wanted = model.state_dict()
        where = {key: file for file in files for key in stored_names(file)}
        for key in sorted(where, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
            if name not in wanted and key in wanted:
                name, pattern = key, None
            if name in wanted:
                self._parts.setdefault(name, []).append((where[key], key, pattern))
        self.missing = wanted.keys() - self._parts.keys()
        self._tie()

    def _tie(self) -> None:
        """Tie the model's weights as `from_pretrained` would: also where the files hold one tensor twice."""
        for one, other in (getattr(self._model, "all_tied_weights_keys", None) or {}).items():
            if {one, other} <= self._parts.keys() and torch.equal(self.tensor(one), self.tensor(other)):
                self.missing.add(one)
        self._model.tie_weights(missing_keys=self.missing, recompute_mapping=False)
        names: dict[int, list[str]] = {}
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            names.setdefault(id(tensor), []).append(name)
        for same in names.values():
            found = next((self._parts[name] for name in same if name in self._parts), None)
            if found is not None:
                self._parts |= dict.fromkeys(same, found)

    def tensor(self, name: str) -> Tensor:
        """One tensor in its stored dtype: a view of its file, or put together from several.

        Raises:
            ModelError: a file has gone or changed since it was opened.
        """
        parts = self._parts[name]
        if len(parts) == 1 and parts[0][2] is None:
            return read_stored(*parts[0][:2])
        return self._converted(name, parts)

    def expert(self, name: str, number: int, experts: int) -> Tensor:
        """What a tensor that holds all experts of a layer holds of one; no other expert's is read where that can be.

        Raises:
            ModelError: a file has gone or changed since it was opened.
        """
        parts = self._parts[name]
        if len(parts) == 1 and parts[0][2] is None:
            return read_stored(*parts[0][:2], row=number)
        by_pattern: dict[str | None, list[Part]] = {}
        for part in parts:
            by_pattern.setdefault(part[2], []).append(part)
        if all(len(several) == experts for several in by_pattern.values()):
            return self._converted(name, [several[number] for several in by_pattern.values()])[0]
        return self.tensor(name)[number]

    def _converted(self, name: str, parts: Sequence[Part]) -> Tensor:
        """As transformers puts them together."""
        converter: Any = copy.deepcopy(self._converters[parts[0][2]])  # type: ignore[index]
        for file, key, pattern in parts:
            converter.add_tensor(name, key, pattern, read_stored(file, key))
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
    files: Sequence[Path], where: str, config: PreTrainedConfig, kind: Kind, device: torch.device, trust: bool
) -> tuple[PreTrainedModel, OnDisk, set[str]]:
    """The model of a checkpoint with its weights left on disk, and the names of tensors that the files lack."""
    from transformers import GenerationConfig

    model = empty_model(config, kind, trust)
    stored = StoredTensors(files, model)
    take_apart(model)
    weights = hollowed(model, StoredExperts(stored, pieces_of(model)), stored.missing, device)
    if (Path(where) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(where)
    return model, weights, stored.missing


def empty_model(config: PreTrainedConfig, kind: Kind, trust: bool) -> PreTrainedModel:
    """A model whose parameters have no values yet."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = unfilled_model(config, kind, trust)
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


def stored_names(file: Path) -> list[str]:
    """The keys of a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def count_elements(file: Path) -> int:
    """Numbers in a safetensors file; only its header is read."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118 - not a dict


def read_stored(file: Path, key: str, row: int | None = None) -> Tensor:
    """One tensor of a safetensors file, mapped; or of its first dimension one entry.

    Raises:
        ModelError: the file has gone or changed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return opened.get_tensor(key) if row is None else opened.get_slice(key)[row]
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"weights file {str(file)!r} cannot be read any more ({error}); put it back and add --resume"
        ) from error
