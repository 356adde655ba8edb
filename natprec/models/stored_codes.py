"""What the tensors of a quantized weight hold, beside what config.json says of them: where they differ, both are named.

A config.json of another checkpoint passes for the right one as long as shapes happen to fit; codes read by another
width or another group size are noise. Types and shapes tell, so that only headers are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from natprec.errors import InputError, ModelError
from natprec.formats import Format, PerBlock
from natprec.formats.codebook import E2M1, E2M3, E4M3
from natprec.formats.format import WORD_BITS
from natprec.models.headers import FLOATS, Header, read_headers
from natprec.models.layers import layer_of
from natprec.models.stored_config import StoredConfig

Shape = tuple[int, int]

CODES = ("weight_packed", "weight")
"""Tensors that hold codes: words full of them, or each by itself."""

_HOLDS = {"I8": "integers of 8 bits", "U8": "bytes", "F8_E4M3": "floats of 8 bits (E4M3)", "F8_E5M2": "floats (E5M2)"}

_SCALES = {"U8": "scales that are powers of two", "F8_E4M3": "scales in floats of 8 bits (E4M3)"}


def refuse_other_formats(
    files: Mapping[str, Path], config: StoredConfig, model: nn.Module, called: Mapping[str, str] | None = None
) -> None:
    """Compare all weights of a checkpoint with the format that config.json gives them.

    Args:
        files: tensor → the file that holds it.
        model: whose weights they are; it may be empty.
        called: module in the files → its name in the model, by which config.json may call it.
    Raises:
        ModelError: names the module, and both formats.
    """
    modules: dict[str, dict[str, Header]] = {}
    for name, header in read_headers(set(files.values())).items():
        module, _, leaf = name.rpartition(".")
        if name in files:
            modules.setdefault(module, {})[leaf] = header
    shapes, in_model = _shapes(files), dict(model.named_modules())
    for module, own in modules.items():
        name = (called or {}).get(module, module)
        group = config.of(module, name, module=in_model.get(name))
        if group is None or "weight_scale" not in own or not own.keys() & set(CODES):
            continue
        try:
            fmt = group.format
        except InputError:
            continue  # of another program, whose library knows it
        layer = layer_of(in_model[name]) if name in in_model else None
        shape = shapes.get(module) or (own["weight"].shape if "weight" in own else layer.shape if layer else ())
        if len(shape) == 2:
            refuse_other_format(module, fmt, (shape[0], shape[1]), own)


def refuse_other_format(module: str, fmt: Format, shape: Shape, tensors: Mapping[str, Header]) -> None:
    """Compare the tensors of one weight with its format.

    Args:
        shape: rows and columns of the weight.
        tensors: codes and scales, by the last part of their names.
    Raises:
        ModelError: names the format of config.json and that of the tensors.
    """
    wanted = _stored(fmt, shape)
    for leaf in CODES:
        found, expected = tensors.get(leaf), wanted.get(leaf) or next(iter(wanted.values()), None)
        if found is not None and expected is not None and (leaf not in wanted or _is_other(found, expected)):
            raise _differs(module, leaf, fmt, found, _held(found, leaf, shape), expected)
    scale, groups = tensors.get("weight_scale"), fmt.groups(shape[1])
    if scale is None:
        return
    dtype, by = _scale_type(fmt), fmt.scaling.granularity
    rows = math.ceil(shape[0] / by.rows) if isinstance(by, PerBlock) else shape[0]
    if (scale.dtype != dtype) if dtype else (scale.dtype not in FLOATS):
        kind = _SCALES.get(scale.dtype, "other scales")
        raise _differs(module, "weight_scale", fmt, scale, kind, (dtype or "16 or 32 bits", (rows, groups)))
    if scale.elements != rows * groups and not (groups == 1 and scale.elements == 1):
        each, rest = divmod(scale.elements, shape[0])
        fits = each > 0 and rest == 0 and shape[1] % each == 0
        held = f"scales of groups of {shape[1] // each}" if fits else "other scales"
        raise _differs(module, "weight_scale", fmt, scale, held, (scale.dtype, (rows, groups)))


def _is_other(found: Header, expected: tuple[str, tuple[int, ...]]) -> bool:
    return (found.dtype, found.shape) != expected


def _scale_type(fmt: Format) -> str | None:
    """Of stored scales; None: floats of the model's dtype, or wider."""
    if fmt.scaling.dtype == "e8m0":
        return "U8"
    return "F8_E4M3" if fmt.scaling.dtype == E4M3 else None


def _stored(fmt: Format, shape: Shape) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor → type and shape, where codes of a format are in it; empty where that is not known here."""
    rows, columns = shape
    if fmt.codebook == E4M3:
        return {"weight": ("F8_E4M3", shape)}
    if fmt.codebook in (E2M1, E2M3):
        return {"weight_packed": ("U8", (rows, columns * fmt.bits // 8))}
    if fmt.floating:
        return {}
    return {"weight": ("I8", shape), "weight_packed": ("I32", (rows, math.ceil(columns * fmt.bits / WORD_BITS)))}


def _held(found: Header, leaf: str, shape: Shape) -> str:
    """What a tensor of codes holds, in words."""
    width = {"I32": WORD_BITS, "U8": 8}.get(found.dtype)
    if leaf == "weight_packed" and width and found.shape[:1] == shape[:1] and len(found.shape) == 2:
        return f"codes of {found.shape[1] * width // shape[1]} bits"
    return "weights that are not quantized" if found.dtype in FLOATS else _HOLDS.get(found.dtype, "something else")


def _differs(module: str, leaf: str, fmt: Format, found: Header, held: str, wanted: tuple[str, Any]) -> ModelError:
    return ModelError(
        f"config.json says {fmt.name} of {module!r}, and tensor '{module}.{leaf}' of {str(found.file)!r} holds {held}: "
        f"{found.dtype} {found.shape} in place of {wanted[0]} {wanted[1]}; "
        "put the config.json of these weights back, or quantize again"
    )


def _shapes(files: Mapping[str, Path]) -> dict[str, tuple[int, ...]]:
    """Module → rows and columns of its packed weight, as written beside it."""
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    for file in set(files.values()):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                if name.endswith(".weight_shape") and files.get(name) == file:
                    found[name.rpartition(".")[0]] = tuple(opened.get_tensor(name).tolist())
    return found


def in_library_order(zero_points: Tensor) -> Tensor:
    """Packed zero points in the memory order in which compressed-tensors unpacks short columns, too."""
    return zero_points.T.clone(memory_format=torch.contiguous_format).T
