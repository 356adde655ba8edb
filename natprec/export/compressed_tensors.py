"""The checkpoint: a normal Hugging Face folder in compressed-tensors format.

One config group per format, its sites named one by one; `format` is set on every group, because
the library would otherwise guess. Packing is the library's (dense: 32 codes of b bits in b words).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from natprec.formats import EngineProfile, NumberFormat
from natprec.formats.number_format import CHANNEL
from natprec.quantizers import QuantizedTensor
from natprec.sites import Site

SHARD_BYTES = 5_000_000_000


def write_checkpoint(
    folder: Path,
    model: nn.Module,
    tokenizer: Any,
    sites: list[Site],
    quantized: dict[str, QuantizedTensor],
    profile: EngineProfile,
    storage_dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write weights, configuration, generation configuration and tokenizer into an existing folder."""
    write_weights(folder, checkpoint_tensors(model, sites, quantized, profile, storage_dtype), shard_bytes)
    config = model.config.to_diff_dict() | {  # type: ignore[operator, union-attr]
        "architectures": [type(model).__name__],
        "dtype": str(storage_dtype).removeprefix("torch."),
        "quantization_config": quantization_config(sites, quantized, profile),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def checkpoint_tensors(
    model: nn.Module,
    sites: list[Site],
    quantized: dict[str, QuantizedTensor],
    profile: EngineProfile,
    storage_dtype: torch.dtype,
) -> dict[str, Tensor]:
    """All tensors of the checkpoint by name; tied weights once."""
    replaced = {use + ".weight" for site in sites if site.name in quantized for use in site.uses}
    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in replaced or id(tensor) in stored:
            continue
        stored.add(id(tensor))
        dtype = storage_dtype if tensor.is_floating_point() else tensor.dtype
        tensors[name] = tensor.detach().cpu().to(dtype).contiguous()
    for site in sites:
        if site.name in quantized:
            tensors |= _packed(site, quantized[site.name], profile, storage_dtype)
    return tensors


def _packed(site: Site, value: QuantizedTensor, profile: EngineProfile, dtype: torch.dtype) -> dict[str, Tensor]:
    """One site's tensors: codes, scales, zero points."""
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    value = value.to("cpu")
    scale = value.scale.to(dtype).contiguous()
    if _is_int8(site, profile):
        tensors = {f"{site.name}.weight": value.codes.contiguous()}
        return tensors | {f"{use}.weight_scale": scale.clone() for use in site.uses}
    tensors = {
        f"{site.name}.weight_packed": pack_to_int32(value.codes, value.format.bits).contiguous(),
        f"{site.name}.weight_scale": scale,
        f"{site.name}.weight_shape": torch.tensor(value.codes.shape),
    }
    if value.zero_point is not None:
        zeros = pack_to_int32(value.zero_point, value.format.bits, packed_dim=0)
        tensors[f"{site.name}.weight_zero_point"] = zeros.contiguous()
    return tensors


def _is_int8(site: Site, profile: EngineProfile) -> bool:
    """Whether codes are stored one to a byte (see `natprec.formats.engines`)."""
    return site.role == "embedding" and not profile.dense_embedding


def quantization_config(
    sites: list[Site], quantized: dict[str, QuantizedTensor], profile: EngineProfile
) -> dict[str, Any]:
    """The `quantization_config` of config.json, validated by the compressed-tensors library."""
    from compressed_tensors.quantization import QuantizationConfig

    targets: dict[tuple[NumberFormat, bool], list[str]] = {}
    ignore: list[str] = []
    for site in sites:
        if site.name in quantized:
            key = (quantized[site.name].format, _is_int8(site, profile))
            targets.setdefault(key, []).extend(site.uses)
        else:
            ignore.extend(site.uses)
    groups = {}
    for (fmt, int8), names in sorted(targets.items(), key=lambda item: (item[0][0].name, item[0][1])):
        groups[fmt.name + ("-int8" if int8 else "")] = {
            "targets": names,
            "format": "int-quantized" if int8 else "pack-quantized",
            "weights": _weight_arguments(fmt),
            "input_activations": None,
            "output_activations": None,
        }
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if len({group["format"] for group in groups.values()}) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": groups,
    }
    QuantizationConfig.model_validate(config)
    return config


def _weight_arguments(fmt: NumberFormat) -> dict[str, Any]:
    """compressed-tensors' description of a format."""
    return {
        "num_bits": fmt.bits,
        "type": "int",
        "symmetric": fmt.symmetric,
        "strategy": "channel" if fmt.group_size == CHANNEL else "group",
        "group_size": None if fmt.group_size == CHANNEL else fmt.group_size,
        "dynamic": False,
    }


def write_weights(folder: Path, tensors: dict[str, Tensor], shard_bytes: int) -> None:
    """One safetensors file, or shards and their index above a size."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    split = split_torch_state_dict_into_shards(tensors, max_shard_size=shard_bytes)
    for filename, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / filename, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
