"""The checkpoint: a normal Hugging Face folder in compressed-tensors format.

One config group per format, its sites named one by one; `format` is set on every group, because
the library would otherwise guess. Packing is the library's (dense: 32 codes of b bits in b words).
Activations are described (`input_activations`, `kv_cache_scheme`); the engine rounds them while it runs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from natprec.checkpoints.packed_weights import packed
from natprec.formats import EngineProfile, Format, Integer
from natprec.formats.compressed_tensors import arguments, container
from natprec.models.checksums import CARRIED, CHECKSUMS, tensor_checksum
from natprec.models.disk_names import DiskNames
from natprec.models.weight_sites import Site
from natprec.quantizers import QuantizedTensor
from natprec.solver.choices import CacheChoice

Pack = Callable[[list[str], QuantizedTensor, bool, torch.dtype], dict[str, Tensor]]
"""Modules that use a weight, its codes, whether each takes a byte, dtype of scales → tensors by name."""


def write_settings(
    folder: Path,
    model: nn.Module,
    tokenizer: Any,
    scheme: dict[str, Any] | None,
    storage_dtype: torch.dtype,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write configuration, with its `quantization_config`, generation configuration and tokenizer.

    Args:
        scheme: None: nothing is quantized.
        more: of the configuration, said even where it is the default.
    """
    config = model.config.to_diff_dict() | {  # type: ignore[operator, union-attr]
        "architectures": [type(model).__name__],
        "dtype": str(storage_dtype).removeprefix("torch."),
        **({} if scheme is None else {"quantization_config": scheme}),
        **(more or {}),
    }
    (folder / "config.json").write_text(json.dumps(_as_json(config), indent=2, allow_nan=False) + "\n")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _as_json(value: Any) -> Any:
    """Numbers that JSON has no word for (Nemotron-H's limits are infinite) as transformers writes and reads them."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {key: _as_json(each) for key, each in value.items()}
    return [_as_json(each) for each in value] if isinstance(value, list | tuple) else value


def checkpoint_tensors(
    model: nn.Module,
    sites: list[Site],
    quantized: dict[str, QuantizedTensor],
    profile: EngineProfile,
    storage_dtype: torch.dtype,
    inputs: Mapping[str, Format] | None = None,
    among: Collection[int] | None = None,
    names: DiskNames | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
    pack: Pack = packed,
) -> dict[str, Tensor]:
    """All tensors of the checkpoint by name; tied weights once.

    Args:
        names: the model's, if they are known.
        among: identities of parameters and buffers; only of these.
        dtypes: of tensors that have another than `storage_dtype`.
        pack: what makes a weight's tensors of its codes.
    """
    names = names or DiskNames(model)
    replaced = {use + ".weight" for site in sites if site.name in quantized for use in site.uses}
    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in replaced or id(tensor) in stored or (among is not None and id(tensor) not in among):
            continue
        stored.add(id(tensor))
        dtype = (dtypes or {}).get(name, storage_dtype) if tensor.is_floating_point() else tensor.dtype
        tensors[names.tensor(name)] = tensor.detach().cpu().to(dtype).contiguous()
    for site in sites:
        if site.name in quantized:
            int8 = is_int8(site, quantized[site.name].format, profile, (inputs or {}).get(site.fused_group))
            owner_first = sorted(site.uses, key=lambda use: f"{use}.weight" in tied)  # loaders tie the others to it
            tensors |= pack([names.module(use) for use in owner_first], quantized[site.name], int8, storage_dtype)
    return tensors


def is_int8(site: Site, fmt: Format, profile: EngineProfile, inputs: Format | None) -> bool:
    """Whether codes are stored one to a byte: embeddings of some engines, weights of W8A8."""
    if not isinstance(fmt.codebook, Integer):
        return False
    if site.role == "embedding":
        return not profile.packs_embeddings
    return inputs is not None and fmt in profile.per_channel()


def quantization_config(
    sites: list[Site],
    formats: Mapping[str, Format],
    profile: EngineProfile,
    inputs: Mapping[str, Format] | None = None,
    cache: CacheChoice | None = None,
    names: DiskNames | None = None,
    routers: Collection[str] = (),
    classes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The `quantization_config` of config.json, validated by the compressed-tensors library.

    Args:
        names: of modules, in the checkpoint; default: those in the model.
        routers: modules that are no sites, which engines must be told to leave alone.
        classes: site → one more target, which an engine finds in the name of a class.
    """
    from compressed_tensors.quantization import QuantizationConfig

    def stored(name: str, expert: bool = False) -> str:
        if names is None or (profile.name == "transformers" and not expert):  # it looks for its own modules' names
            return name
        return names.module(name)

    targets: dict[tuple[Format, bool, Format | None], list[str]] = {}
    ignore = [stored(name) for name in sorted(routers)]
    whole = _whole_containers(sites, formats)
    for site in sites:
        if site.name in formats:
            fmt, rounded = formats[site.name], (inputs or {}).get(site.fused_group)
            key = (fmt, is_int8(site, fmt, profile, rounded), rounded)
            found = targets.setdefault(key, [])
            if site.experts in whole:
                pattern = _all_within(stored(site.name, expert=True), site)
                found.extend([pattern] if pattern not in found else [])
            else:
                found.extend(stored(use, bool(site.experts)) for use in site.uses)
                found.extend(use for use in site.uses if not site.experts and use not in found)  # for transformers
                found.extend([classes[site.name]] if classes and site.name in classes else [])
        else:
            ignore.extend(map(stored, site.uses))
    groups = {}
    for (fmt, int8, rounded), own in targets.items():
        groups[fmt.name + ("-int8" if int8 else "") + (f"-{rounded.name}" if rounded else "")] = {
            "targets": own,
            "format": container(fmt, int8),
            "weights": arguments(fmt),
            "input_activations": arguments(rounded) if rounded else None,
            "output_activations": None,
        }
    containers = {group["format"] for group in groups.values()}
    config = {
        "quant_method": "compressed-tensors",
        "format": containers.pop() if len(containers) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": dict(sorted(groups.items())),
    }
    if cache is not None:
        config["kv_cache_scheme"] = arguments(cache.format)
    QuantizationConfig.model_validate(config)
    return config


def _whole_containers(sites: list[Site], formats: Mapping[str, Format]) -> set[str]:
    """Modules all of whose experts have one format."""
    found: dict[str, set[Format | None]] = {}
    for site in sites:
        if site.experts:
            found.setdefault(site.experts, set()).add(formats.get(site.name))
    return {name for name, several in found.items() if len(several) == 1 and None not in several}


def _all_within(stored: str, site: Site) -> str:
    """A target for all experts of a layer: engines ask for `experts.0.gate_proj` even where the file says `w1`."""
    depth = site.name.removeprefix(site.experts).count(".")
    return "re:" + re.escape(stored.rsplit(".", depth)[0]) + r"\.\d+\..*"


def write_weights(
    folder: Path,
    tensors: dict[str, Tensor],
    shard_bytes: int,
    carried: Mapping[str, Tensor] | None = None,
    stem: str = "model",
) -> None:
    """One safetensors file, or shards and their index above a size.

    Args:
        carried: more tensors, which the file's metadata says are no part of the model.
        stem: what names of files begin with.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    carried = carried or {}
    tensors = {**carried, **tensors}
    pattern = stem + "{suffix}.safetensors"
    split = split_torch_state_dict_into_shards(tensors, filename_pattern=pattern, max_shard_size=shard_bytes)
    for filename, names in split.filename_to_tensors.items():
        sums = json.dumps({name: tensor_checksum(tensors[name]) for name in sorted(names)})
        metadata = {"format": "pt", CHECKSUMS: sums}
        own = sorted(carried.keys() & set(names))
        if own:
            metadata[CARRIED] = json.dumps(own)
        save_file({name: tensors[name] for name in names}, folder / filename, metadata=metadata)
        _order_metadata(folder / filename)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _order_metadata(file: Path) -> None:
    """Sort a safetensors file's metadata, whose order the library draws anew each time: same model, same bytes."""
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # else it was written in another way, and stays as it is
            opened.seek(8)
            opened.write(text.ljust(size))
