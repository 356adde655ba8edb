"""Opening a checkpoint that natprec wrote, as its engine would see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from natprec.activation_sites import round_input, round_states
from natprec.checkpoints import auto_class, model_kind
from natprec.errors import InputError, ModelError
from natprec.export.gguf import FILE_NAME
from natprec.formats.activation_format import TOKEN, ActivationFormat
from natprec.models import load_model, quiet
from natprec.stored import stored_names


def load_quantized(folder: Path) -> nn.Module:
    """The checkpoint's model in float32, with reconstructed weights; activations are rounded as it runs.

    Plain transformers loads it, a GGUF file too; where transformers cannot (zero points or packed embeddings, from
    the `natprec` engine), the codes are unpacked here with the compressed-tensors library.

    Raises:
        InputError: the folder is no checkpoint.
        ModelError: it cannot be loaded; says what transformers said.
    """
    if (folder / FILE_NAME).is_file():
        return load_model(str(folder / FILE_NAME)).model
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise InputError(f"{str(folder)!r} is no checkpoint: it has no config.json; give the --out folder of quantize")
    try:
        config = json.loads(config_file.read_text())
        groups = config["quantization_config"]["config_groups"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{str(config_file)!r} describes no quantized checkpoint ({error!r}); quantize again"
        ) from error
    try:
        with quiet(stderr=True):  # the libraries' own bars cannot be switched off
            if not _needs_unpacking(folder, groups):
                return _plain(folder)
            return _rounding(_unpacked(folder, groups), config["quantization_config"])
    except Exception as error:
        raise ModelError(f"checkpoint {str(folder)!r} cannot be loaded ({error}); quantize again") from error


def _plain(folder: Path) -> nn.Module:
    from transformers import AutoConfig

    kind = model_kind(str(folder), AutoConfig.from_pretrained(folder))
    model = auto_class(kind).from_pretrained(folder, dtype=torch.float32)
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
    packed = (name.split(".")[-2] for name in _tensor_files(folder) if name.endswith(".weight_packed"))
    return any("embed" in module for module in packed)  # embed_tokens, embed_in, word_embeddings


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name → the file that holds it."""
    return {name: file for file in sorted(folder.glob("*.safetensors")) for name in stored_names(file)}


def _unpacked(folder: Path, groups: dict[str, Any]) -> nn.Module:
    """The dense model, filled by unpacking every module's tensors."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from safetensors import safe_open
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = auto_class(model_kind(str(folder), config)).from_config(config, dtype=torch.float32)
    state: dict[str, torch.Tensor] = {}
    for name, file in _tensor_files(folder).items():
        with safe_open(file, "pt") as opened:
            state[name] = opened.get_tensor(name)
    for group in groups.values():
        scheme = QuantizationScheme.model_validate(group)
        compressor = BaseCompressor.get_value_from_registry(group["format"])
        for module in group["targets"]:
            prefix = module + ".weight"  # a bias stays as it is
            own = {key.removeprefix(module + "."): state.pop(key) for key in list(state) if key.startswith(prefix)}
            if "weight_scale" not in own or not own.keys() & {"weight_packed", "weight"}:
                continue  # the second use of a tied weight
            own["weight_scale"] = own["weight_scale"].float()
            if "weight_zero_point" in own:  # the library unpacks short columns only in this memory order
                zero = own["weight_zero_point"]
                own["weight_zero_point"] = zero.T.clone(memory_format=torch.contiguous_format).T
            state[module + ".weight"] = compressor.decompress(own, scheme)["weight"]
    missing, unexpected = model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    model.tie_weights()
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    if unexpected or set(missing) - tied:
        raise ValueError(f"missing {sorted(set(missing) - tied)[:3]}, unexpected {sorted(unexpected)[:3]}")
    return model.eval().requires_grad_(False)
