"""Rounds the activations of a checkpoint's model by its config.json and its fixed scales on disk, without a plan.

compressed-tensors' description leaves one thing out: what the largest magnitude of a token is scaled to. That is the
engine's, so hooks round as its profile says; transformers' library is let round by itself where it can load the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from natprec.checkpoints.fixed_scales import STATES, stored_input_scale
from natprec.errors import ModelError
from natprec.formats import EngineProfile, Format, PerHead
from natprec.formats.compressed_tensors import activation_format
from natprec.models.activation_sites import round_input, round_states
from natprec.models.attention import AttentionHook
from natprec.models.disk_names import DiskNames
from natprec.models.headers import read_stored
from natprec.models.layers import multiplies
from natprec.models.stored_config import StoredConfig


def round_as_written(
    model: nn.Module,
    config: StoredConfig,
    files: Mapping[str, Path],
    profile: EngineProfile,
    running: Mapping[str, Format | None] | None = None,
) -> list[Any]:
    """Round inputs of Linears, keys and values from now on; returns the hooks, to remove.

    Args:
        files: tensor in the checkpoint → the file that holds it.
        profile: of the engine that is to run it.
        running: module in the checkpoint → the inputs that it has on a GPU, where config.json says otherwise.
    Raises:
        InputError: a format that natprec does not know, which is named.
        ModelError: a fixed scale is not there, or none that natprec reads.
    """
    names = DiskNames(model)

    def find(tensor: str) -> Tensor | None:
        return read_stored(files[tensor], tensor) if tensor in files else None

    hooks: list[Any] = []
    for name, module in model.named_modules():
        group = config.of(names.module(name), name, module=module) if multiplies(module) else None
        fmt = None if group is None else group.inputs(profile.full_range)
        fmt = (running or {}).get(names.module(name), fmt)
        if fmt is not None:
            hooks.append(round_input(module, fmt, stored_input_scale(names.module(name), fmt, find)))
    if config.cache:
        fmt = activation_format(config.cache, profile.full_range)
        for name, module in model.named_modules():  # only those that compute attention will ask
            hooks += _states(names.module(name), module, fmt, files)
    return hooks


def _states(name: str, module: nn.Module, fmt: Format, files: Mapping[str, Path]) -> list[Any]:
    """Hooks for the keys and values of a module, which the checkpoint calls `name`."""
    if fmt.dynamic:
        return [round_states(module, fmt)]
    stored = {kind: name + ending for kind, ending in STATES.items()}
    if not all(scale in files for scale in stored.values()):

        def refuse(module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            raise ModelError(f"the checkpoint has no scales {sorted(stored.values())} of the cache; quantize again")

        return [AttentionHook(module, refuse)]
    shape = (-1, 1, 1) if fmt.scaling.granularity == PerHead() else ()
    scales = {kind: read_stored(files[scale], scale).float().reshape(shape) for kind, scale in stored.items()}
    return [round_states(module, fmt, (kind,), scale) for kind, scale in scales.items()]


def weights_only(scheme: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the `quantization_config` that rounds nothing but weights."""
    groups = {name: {**group, "input_activations": None} for name, group in scheme["config_groups"].items()}
    return {**{name: value for name, value in scheme.items() if name != "kv_cache_scheme"}, "config_groups": groups}
