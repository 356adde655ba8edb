"""Opening a checkpoint that natprec wrote, as its engine would see it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from natprec.errors import InputError, ModelError
from natprec.export.gguf import FILE_NAME
from natprec.export.trial import unlike
from natprec.formats.activation_format import TOKEN, ActivationFormat
from natprec.models.checkpoints import Kind, auto_class, first_line, model_kind
from natprec.models.disk_names import DiskNames
from natprec.models.encoders import drop_missing_pooler
from natprec.models.experts import take_apart
from natprec.models.loading import load_model
from natprec.models.stored import empty_model, hollowed, read_stored, stored_names
from natprec.models.surroundings import quiet
from natprec.sites import round_input, round_states
from natprec.staged.blocks import StagedModel

UNPACKED = "transformers does not load such a checkpoint ({}), so natprec judges it by unpacking the codes itself"

STATE_SCALES = (".k_scale", ".v_scale")
"""Tensors of the cache, which are no part of a model."""


def load_quantized(
    folder: Path, engine: str = "vllm", tried: bool = True, note: Callable[[str], None] = lambda line: None
) -> nn.Module:
    """The checkpoint's model in float32, with reconstructed weights; activations are rounded as it runs.

    Plain transformers loads it, a GGUF file too; where transformers cannot (zero points or packed embeddings, from
    the `natprec` engine; experts of several formats), the codes are unpacked here with the compressed-tensors library.
    So are all experts, which transformers would round to 16 bits once more, and what it turns out not to load. Where it
    is the engine, it must load everything.

    Args:
        tried: whether transformers is asked at all, unless it is the engine.
        note: told if it was asked and failed.
    Raises:
        InputError: the folder is no checkpoint.
        ModelError: it cannot be loaded; says what transformers said.
    """
    if (folder / FILE_NAME).is_file():
        return load_model(str(folder / FILE_NAME)).model
    scheme = _scheme(folder)
    why: str | None = None
    with _explained(folder), quiet(stderr=True):  # the libraries' own bars cannot be switched off
        if engine == "transformers":
            return _plain(folder)
        if tried and not _needs_unpacking(folder, scheme["config_groups"]):
            try:
                return _plain(folder)
            except Exception as error:  # whatever a model's own code raises
                why = first_line(error)
        model = _rounding(_unpacked(folder, scheme["config_groups"]), scheme)
    if why is not None:
        note(UNPACKED.format(why))
    return model


def open_quantized(folder: Path, original: StagedModel, device: torch.device) -> StagedModel:
    """The checkpoint's model with its codes left on disk: each weight is reconstructed when its stage runs.

    Args:
        original: the model that was quantized, whose distortion is taken.
    Raises:
        InputError: the folder is no checkpoint.
        ModelError: it cannot be loaded.
    """
    scheme = _scheme(folder)
    with _explained(folder), quiet(stderr=True):
        config, kind = _dense_config(folder)
        model = empty_model(config, kind)
        model.tie_weights()
        take_apart(model)
        stored = Unpacked(folder, scheme["config_groups"], DiskNames(model))
        missing = _lacking(model, stored.names)
        weights = hollowed(model, stored, missing, device)
        model.eval().requires_grad_(False)
        return StagedModel(model, torch.zeros(1, 1, dtype=torch.int64, device=device), original.distortion, weights)


def _scheme(folder: Path) -> dict[str, Any]:
    """The folder's quantization_config."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise InputError(f"{str(folder)!r} is no checkpoint: it has no config.json; give the --out folder of quantize")
    try:
        scheme: dict[str, Any] = json.loads(config_file.read_text())["quantization_config"]
        scheme["config_groups"].values()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{str(config_file)!r} describes no quantized checkpoint ({error!r}); quantize again"
        ) from error
    return scheme


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ModelError(f"checkpoint {str(folder)!r} cannot be loaded ({error}); quantize again") from error


def _plain(folder: Path) -> nn.Module:
    from transformers import AutoConfig

    kind = model_kind(str(folder), AutoConfig.from_pretrained(folder))
    model, report = auto_class(kind).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    missing = report["missing_keys"]
    if missing and kind == "encoder" and drop_missing_pooler(model, missing):
        report = {**report, "missing_keys": ()}
    wrong = unlike(report, empty_model(*_dense_config(folder)))
    if wrong is not None:
        raise ValueError(f"transformers has tensors {wrong}")
    model(input_ids=torch.zeros(1, 1, dtype=torch.int64))  # the first forward decompresses
    return model.eval().requires_grad_(False)


def _rounding(model: nn.Module, scheme: dict[str, Any]) -> nn.Module:
    """The model with activations, keys and values rounded as a quantization_config says, by hooks."""

    def described(arguments: dict[str, Any]) -> ActivationFormat:
        return ActivationFormat(arguments["num_bits"], arguments["group_size"] or TOKEN)

    for group in scheme["config_groups"].values():
        if group["input_activations"]:
            for name in group["targets"]:
                round_input(model.get_submodule(name), described(group["input_activations"]))
    if scheme.get("kv_cache_scheme"):
        for module in model.modules():  # only those that compute attention will ask
            round_states(module, described(scheme["kv_cache_scheme"]))
    return model


def _needs_unpacking(folder: Path, groups: dict[str, Any]) -> bool:
    """Whether plain transformers would refuse it."""
    if any(not group["weights"]["symmetric"] for group in groups.values()):
        return True
    packed = [name.split(".") for name in _tensor_files(folder) if name.endswith(".weight_packed")]
    # embed_tokens, embed_in, word_embeddings; experts
    return any("embed" in name[-2] or "experts" in name for name in packed)


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name → the file that holds it."""
    return {name: file for file in sorted(folder.glob("*.safetensors")) for name in stored_names(file)}


class Unpacked:
    """A compressed-tensors checkpoint as dense weights, which the library reconstructs one at a time.

    Attributes:
        names: of the tensors, in the model.
    """

    def __init__(self, folder: Path, groups: dict[str, Any], names: DiskNames) -> None:
        """Read the headers.

        Args:
            names: of the model that is to be filled.
        """
        in_model = names.in_model
        modules: dict[str, dict[str, Path]] = {}
        self._packed: dict[str, tuple[dict[str, Any], str, dict[str, Path]]] = {}
        self._plain: dict[str, tuple[str, Path]] = {}
        for key, file in _tensor_files(folder).items():
            module, _, leaf = key.rpartition(".")
            modules.setdefault(module, {})[leaf] = file
        for module, own in modules.items():
            name = in_model.get(module, module)
            group = _group_of(module, groups) or _group_of(name, groups)
            weight = {leaf: own.pop(leaf) for leaf in list(own) if group is not None and leaf.startswith("weight")}
            if group is not None and "weight_scale" in weight and weight.keys() & {"weight_packed", "weight"}:
                self._packed[f"{name}.weight"] = (group, module, weight)  # else the second use of a tied one
            self._plain |= {
                f"{name}.{leaf}".removeprefix("."): (f"{module}.{leaf}", file) for leaf, file in own.items()
            }
        self.names = [*self._plain, *self._packed]

    def tensor(self, name: str) -> torch.Tensor:
        """One dense tensor."""
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme

        if name in self._plain:
            key, file = self._plain[name]
            return read_stored(file, key)
        group, module, files = self._packed[name]
        own = {leaf: read_stored(file, f"{module}.{leaf}") for leaf, file in files.items()}
        own["weight_scale"] = own["weight_scale"].float()
        if "weight_zero_point" in own:  # the library unpacks short columns only in this memory order
            zero = own["weight_zero_point"]
            own["weight_zero_point"] = zero.T.clone(memory_format=torch.contiguous_format).T
        compressor = BaseCompressor.get_value_from_registry(group["format"])
        dense: torch.Tensor = compressor.decompress(own, QuantizationScheme.model_validate(group))["weight"]
        return dense


def _group_of(module: str, groups: dict[str, Any]) -> dict[str, Any] | None:
    """The scheme that names a module; single names before regular expressions."""
    for group in groups.values():
        if module in group["targets"]:
            return group
    for group in groups.values():
        patterns = (target.removeprefix("re:") for target in group["targets"] if target.startswith("re:"))
        if any(re.match(pattern, module) for pattern in patterns):
            return group
    return None


def _dense_config(folder: Path) -> tuple[Any, Kind]:
    """The configuration of the model as if it were not quantized, and its kind."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    return config, model_kind(str(folder), config)


def _unpacked(folder: Path, groups: dict[str, Any]) -> nn.Module:
    """The dense model, filled by unpacking every module's tensors."""
    config, kind = _dense_config(folder)
    model = auto_class(kind).from_config(config, dtype=torch.float32)
    take_apart(model)
    stored = Unpacked(folder, groups, DiskNames(model))
    model.load_state_dict({name: stored.tensor(name).float() for name in stored.names}, strict=False)
    model.tie_weights()
    _lacking(model, stored.names)
    return model.eval().requires_grad_(False)


def _lacking(model: nn.Module, names: Collection[str]) -> set[str]:
    """Tensors of the model that only tied ones stand for.

    Raises:
        ValueError: others are missing, or some of the checkpoint's have no place.
    """
    wanted = set(model.state_dict())
    missing, tied = wanted - set(names), set(getattr(model, "all_tied_weights_keys", None) or {})
    unexpected = {name for name in names if name not in wanted and not name.endswith(STATE_SCALES)}
    if unexpected or missing - tied:
        raise ValueError(f"missing {sorted(missing - tied)[:3]}, unexpected {sorted(unexpected)[:3]}")
    return missing
