"""A compressed-tensors folder as dense weights, which the library reconstructs one at a time: the judge's reading."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import nn

from natprec.checkpoints.fixed_scales import INPUT, INPUT_OUTER, STATES
from natprec.checkpoints.library import dense_weight
from natprec.checkpoints.packed_weights import stored_scales
from natprec.errors import InputError
from natprec.models.disk_names import DiskNames
from natprec.models.headers import read_stored
from natprec.models.layers import known_layer
from natprec.models.stored import stored_names
from natprec.models.stored_codes import refuse_other_formats
from natprec.models.stored_config import Group, StoredConfig


class Unpacked:
    """A compressed-tensors checkpoint as dense weights, which the library reconstructs one at a time.

    Attributes:
        names: of the tensors, in the model.
    """

    def __init__(self, config: StoredConfig, model: nn.Module) -> None:
        """Read the headers.

        Args:
            model: that is to be filled, whose layers say in which form their weights are wanted.
        """
        self._model, self._folder, names = model, config.folder, DiskNames(model)
        modules: dict[str, dict[str, Path]] = {}
        self._packed: dict[str, tuple[Group, str, dict[str, Path]]] = {}
        self._plain: dict[str, tuple[str, Path]] = {}
        layers = dict(model.named_modules())
        refuse_other_formats(config.files, config, model, names.in_model)
        for key, file in config.files.items():
            module, _, leaf = key.rpartition(".")
            modules.setdefault(module, {})[leaf] = file
        for module, own in modules.items():
            name = names.in_model.get(module, module)
            group = config.of(module, name, module=layers.get(name))  # one for transformers has the model's names
            weight = {leaf: own.pop(leaf) for leaf in list(own) if group is not None and leaf.startswith("weight")}
            if group is not None:
                own = {leaf: file for leaf, file in own.items() if leaf not in (INPUT, INPUT_OUTER)}
            if group is not None and "weight_scale" in weight and weight.keys() & {"weight_packed", "weight"}:
                self._packed[f"{name}.weight"] = (group, module, weight)  # else the second use of a tied one
            keys = {f"{module}.{leaf}".removeprefix("."): file for leaf, file in own.items()}
            self._plain |= {names.key_in_model(key): (key, file) for key, file in keys.items()}
        self.names = [*self._plain, *self._packed]

    def tensor(self, name: str) -> torch.Tensor:
        """One dense tensor."""
        if name in self._plain:
            key, file = self._plain[name]
            return read_stored(file, key)
        group, module, files = self._packed[name]
        own = {leaf: read_stored(file, f"{module}.{leaf}") for leaf, file in files.items()}
        refuse_bad_scales(group, module, own, self._folder)
        dense = dense_weight(group, own)
        layer = known_layer(self._model.get_submodule(name.removesuffix(".weight")))
        return layer.kind.stored(dense, layer.weight.shape, layer.groups)


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name → the file that holds it, without those that are carried along and no part of the model."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: file for file in files for name in stored_names(file, carried=False)}


def lacking(model: nn.Module, names: Collection[str]) -> set[str]:
    """Tensors of the model that only tied ones stand for.

    Raises:
        ValueError: others are missing, or some of the checkpoint's have no place.
    """
    wanted = set(model.state_dict())
    missing, tied = wanted - set(names), set(getattr(model, "all_tied_weights_keys", None) or {})
    unexpected = {name for name in names if name not in wanted and not name.endswith(tuple(STATES.values()))}
    if unexpected or missing - tied:
        raise ValueError(f"missing {sorted(missing - tied)[:3]}, unexpected {sorted(unexpected)[:3]}")
    return missing


def refuse_bad_scales(group: Group, module: str, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Refuse scales of floats that are no positive numbers, as far as natprec knows the format."""
    with contextlib.suppress(InputError):
        if group.format.floating:
            stored_scales(group.format, tensors, f"{module!r} in {str(folder)!r}")
