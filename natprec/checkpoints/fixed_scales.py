"""Scales of what flows, where they are fixed: as a checkpoint stores them, and read back.

k_scale, v_scale      of an attention module, the model's dtype     float8 keys and values, (1,) or (heads, 1, 1)
input_scale           of a Linear, the model's dtype, (1,)          float8 inputs by tensor
input_global_scale    of a Linear, float32, (1,)                    NVFP4's inputs: the reciprocal of the outer scale
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from natprec.errors import ModelError
from natprec.formats import Format, PerHead, PerTensor
from natprec.models.disk_names import DiskNames
from natprec.models.weight_sites import Site
from natprec.quantizers.activations import fixed_scale, flowing_scale
from natprec.solver.choices import CacheChoice

STATES = {"key": ".k_scale", "value": ".v_scale"}
"""What the cache holds → ending of the tensor with its fixed scale, which is no part of a model."""

INPUT, INPUT_OUTER = "input_scale", "input_global_scale"


def cache_scales(cache: CacheChoice | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """`k_scale` and `v_scale` of each attention module, where they are fixed."""
    if cache is None or cache.format.scaling.dynamic:
        return {}
    scales = {}
    for name in cache.largest:
        module, _, kind = name.rpartition(":")
        found = flowing_scale(cache.format, torch.tensor(cache.reach(name)).reshape(-1))
        by_head = cache.format.scaling.granularity == PerHead()
        scales[f"{module}.{kind[0]}_scale"] = (found.view(-1, 1, 1) if by_head else found).to(dtype)
    return scales


def input_scales(
    sites: Iterable[Site],
    inputs: Mapping[str, Format],
    largest: Mapping[str, float | None],
    dtype: torch.dtype,
    names: DiskNames,
) -> dict[str, Tensor]:
    """The fixed scales, outer ones included, of the inputs of Linears.

    Args:
        sites: weights.
        inputs: fused group → format of its input.
        largest: fused group → the largest magnitude measured there.
        dtype: of scales in the model's dtype.
    """
    scales = {}
    for site in sites:
        fmt = inputs.get(site.fused_group)
        if site.role != "linear" or fmt is None or not fmt.fixed:
            continue
        reach = largest[site.fused_group]
        assert reach is not None, f"{site.fused_group} has a fixed scale, and nothing was measured there"
        scale = fixed_scale(fmt, torch.tensor([reach]))
        for use in map(names.module, site.uses):
            if fmt.dynamic:
                scales[f"{use}.{INPUT_OUTER}"] = (1.0 / scale).float().reshape(1)
            else:
                scales[f"{use}.{INPUT}"] = scale.to(dtype).reshape(1)
    return scales


def stored_input_scale(module: str, fmt: Format, find: Callable[[str], Tensor | None]) -> Tensor | None:
    """The fixed scale of a module's input, (), float32; None if the checkpoint fixes none.

    Args:
        module: as `find` calls it.
        find: a tensor of the checkpoint by its name; None: there is none.
    Raises:
        ModelError: it is not there, or no positive number; or natprec does not read such scales.
    """
    if not fmt.fixed:
        return None
    if not fmt.dynamic and fmt.scaling.granularity != PerTensor():
        raise ModelError(f"inputs of {module!r} have fixed scales ({fmt.name}), which natprec does not read")
    name = f"{module}.{INPUT_OUTER if fmt.dynamic else INPUT}"
    value = find(name)
    if value is None:
        raise ModelError(
            f"config.json says {fmt.name} of the inputs of {module!r}, and the checkpoint has no tensor {name!r} with "
            "their scale; quantize again"
        )
    value = value.float()
    if value.numel() != 1 or not bool(torch.isfinite(value).all() and (value > 0).all()):
        raise ModelError(
            f"tensor {name!r} is {value.flatten()[:3].tolist()}, and must be one positive number, the scale of inputs "
            f"in {fmt.name}; quantize again"
        )
    return (1.0 / value if fmt.dynamic else value).reshape(())
