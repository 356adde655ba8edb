"""Formats as compressed-tensors describes them in config.json, both ways: `Format` ↔ its `QuantizationArgs`.

The one place where a scheme of a checkpoint is written or understood. What a format is follows from `num_bits`, `type`,
`strategy` and the dtype of the scales; what natprec has no format for is refused by name, never taken for another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from natprec.errors import InputError
from natprec.formats.codebook import E2M1, E2M3, E4M3, Float, Integer
from natprec.formats.format import Format
from natprec.formats.presets import FLOAT_ACTIVATIONS, FLOAT_WEIGHTS, activation, integer
from natprec.formats.scaling import (
    Granularity,
    PerBlock,
    PerChannel,
    PerFeature,
    PerGroup,
    PerHead,
    PerTensor,
    PerToken,
)

FLOATS = {8: E4M3, 6: E2M3, 4: E2M1}
"""What the library means by a float of so many bits; MXFP6 is E2M3 since 0.20 brought it, never OCP's E3M2."""

SCALE_DTYPES: dict[Any, str] = {E4M3: "torch.float8_e4m3fn", "e8m0": "torch.uint8"}
"""Scales that the library has to be told of; others have the model's dtype."""

_STRATEGIES: dict[type, str] = {
    PerTensor: "tensor", PerChannel: "channel", PerFeature: "channel", PerGroup: "group", PerBlock: "block",
    PerToken: "token", PerHead: "attn_head",
}  # fmt: skip


def arguments(fmt: Format) -> dict[str, Any]:
    """The description of a format.

    Raises:
        InputError: compressed-tensors has no words for it.
    """
    codebook, scaling = fmt.codebook, fmt.scaling
    known = codebook == Integer(fmt.bits) or FLOATS.get(fmt.bits) == codebook
    if not known or scaling.zero == "float" or isinstance(scaling.dtype, Integer):
        raise InputError(
            f"format {fmt.name} cannot be said in compressed-tensors; write it as GGUF (--engine llama.cpp)"
        )
    by = scaling.granularity
    nested = scaling.outer is not None
    described: dict[str, Any] = {
        "num_bits": fmt.bits,
        "type": "float" if isinstance(codebook, Float) else "int",
        "symmetric": fmt.symmetric,
        "strategy": "tensor_group" if nested else _STRATEGIES[type(by)],
        "group_size": fmt.group_size,
        "dynamic": "local" if nested and scaling.dynamic else scaling.dynamic,
    }
    if isinstance(by, PerBlock):
        described["block_structure"] = [by.rows, by.columns]
    if scaling.dtype in SCALE_DTYPES:
        described["scale_dtype"] = SCALE_DTYPES[scaling.dtype]
    return described


def container(fmt: Format, bytes_apart: bool = False) -> str:
    """How the library stores weights of a format: the `format` of a config group.

    Args:
        bytes_apart: integer codes are stored one to a byte.
    """
    if isinstance(fmt.codebook, Integer):
        return "int-quantized" if bytes_apart else "pack-quantized"
    micro = {E2M1: "mxfp4-pack-quantized", E2M3: "mxfp6-pack-quantized", E4M3: "mxfp8-quantized"}
    known = {(code, "e8m0"): name for code, name in micro.items()} | {
        (E2M1, E4M3): "nvfp4-pack-quantized",
        (E4M3, "model"): "float-quantized",
    }
    return known[fmt.codebook, fmt.scaling.dtype]  # type: ignore[index]


def weight_format(described: Mapping[str, Any]) -> Format:
    """The format of weights that a description means.

    Raises:
        InputError: natprec has none for it.
    """
    return _found(described, "weights", [*FLOAT_WEIGHTS.values(), *_integers(described)])


def activation_format(described: Mapping[str, Any], full_range: bool = False) -> Format:
    """The format of inputs, keys or values that a description means.

    Args:
        full_range: the rule by which the engine that runs them scales integers: a description leaves that out.
    Raises:
        InputError: natprec has none for it.
    """
    return _found(described, "activations", [*FLOAT_ACTIVATIONS.values(), *_integers(described, True, full_range)])


def _integers(described: Mapping[str, Any], flowing: bool = False, full_range: bool = False) -> list[Format]:
    """The integer formats that may be meant."""
    bits, strategy, size = described.get("num_bits"), described.get("strategy"), described.get("group_size")
    if not isinstance(bits, int) or not 1 <= bits <= 8 or not (size is None or (isinstance(size, int) and size > 0)):
        return []
    if flowing:
        flows: dict[str, Granularity] = {"token": PerToken(), "channel": PerFeature(), "group": PerGroup(size or 1)}
        return [activation(bits, flows[strategy], full_range)] if strategy in flows else []
    known: dict[str, Granularity] = {"channel": PerChannel(), "tensor": PerTensor(), "group": PerGroup(size or 1)}
    return [integer(bits, known[strategy], described.get("symmetric") is not False)] if strategy in known else []


def _implied(described: Mapping[str, Any]) -> str | None:
    """The dtype of scales where a description, of an older release, leaves it out: what the compressors then take."""
    if described.get("type") != "float":
        return None
    if described.get("strategy") == "tensor_group":
        return SCALE_DTYPES[E4M3]
    fixed_groups = described.get("strategy") == "group" and not described["dynamic"]
    return SCALE_DTYPES["e8m0"] if fixed_groups and described.get("num_bits") in (4, 6) else None


def _found(described: Mapping[str, Any], of: str, formats: list[Format]) -> Format:
    wanted = {"group_size": None, "dynamic": False, "symmetric": True} | dict(described)
    if wanted.get("scale_dtype") is None:
        wanted["scale_dtype"] = _implied(wanted)
    for fmt in formats:
        own = arguments(fmt)
        names = {*own, "block_structure", "scale_dtype"}
        if all(own.get(name) == wanted.get(name) for name in names):
            return fmt
    said = ", ".join(f"{name} {wanted[name]}" for name in sorted(wanted) if wanted[name] is not None)
    raise InputError(f"natprec has no format for {of} of {said}")
