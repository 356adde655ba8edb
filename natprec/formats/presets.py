"""The formats that natprec knows, as data, and the names that measurements, plans and checkpoints give them.

    int4-g64  int8-channel  int4-g64-asym      weights, as compressed-tensors packs them
    Q4_K  Q6_K  Q8_0 …                         weights, as GGUF stores them (ggml-common.h)
    nvfp4  mxfp4  fp8-channel …                weights in floating point
    nf4-g64  nf4-g64-dq  fp4-g64 …             weights as bitsandbytes stores them: `natprec.formats.tables`
    a8-token  a4-g64  a8-channel  fp8-tensor   what flows: inputs of Linears, keys, values; `-full`: see `Scaling`

A block type of GGUF stores 32 weights under a float16 scale; Q4_1 and Q5_1 add a float16 offset (their 'minimum'). A K
type stores 256 weights as a super-block: the scale of each 16 or 32 of them, and the offset where there is one, is an
integer times a float16 of the super-block. IQ types take codes from tables of vectors and are no such grid.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from natprec.errors import InputError
from natprec.formats.codebook import E2M1, E2M3, E4M3, Integer
from natprec.formats.format import Format
from natprec.formats.scaling import (
    Granularity,
    PerBlock,
    PerChannel,
    PerFeature,
    PerGroup,
    PerHead,
    PerTensor,
    PerToken,
    Scaling,
)
from natprec.formats.tables import parse_four_bit

CHANNEL = -1
"""The group size that options and Python give for one scale per output channel."""

_WEIGHT = re.compile(
    r"int(?P<bits>[1-8])-(?:g(?P<group>[1-9]\d*)|channel|(?P<tensor>tensor))(?P<asym>-asym)?", re.ASCII
)
_FLOWING = re.compile(r"a(?P<bits>[1-8])-(?:token|(?P<channel>channel)|g(?P<group>[1-9]\d*))(?P<full>-full)?", re.ASCII)


def integer(bits: int, by: int | Granularity | None, symmetric: bool = True) -> Format:
    """An integer format for weights: two's complement codes, scales in 16 bits of the model's dtype.

    A symmetric one has no zero point; its scale may be negative, so that the one extra negative code can serve
    whichever side of the group reaches further.

    Args:
        bits: 1 to 8.
        by: what shares a scale; a number: so many weights of one row; None or `CHANNEL`: the whole row.
    Raises:
        InputError: other bits, or a group size below 1.
    """
    if by is None or isinstance(by, int):
        by = PerChannel() if by in (None, CHANNEL) else PerGroup(by or 0)
    name = f"int{bits}-{by.name}" + ("" if symmetric else "-asym")
    return Format(name, Integer(bits), Scaling(by, zero="none" if symmetric else "code"))


def activation(bits: int, by: int | Granularity = PerToken(), full_range: bool = False) -> Format:  # noqa: B008
    """An integer format for what flows: by token, by groups of its features (a number), or `PerFeature`, fixed."""
    by = PerGroup(by) if isinstance(by, int) else by
    name = "channel" if by == PerFeature() else by.name
    scaling = Scaling(by, "float32", dynamic=by != PerFeature(), full_range=full_range)
    return Format(f"a{bits}-{name}" + ("-full" if full_range else ""), Integer(bits), scaling)


_MICRO = Scaling(PerGroup(32), "e8m0")
_NVFP4 = Scaling(PerGroup(16), E4M3, outer=Scaling(PerTensor(), "float32"))
_WHILE_RUNNING = Scaling(PerToken(), "float32", dynamic=True)

FP8_TENSOR = Format("fp8-tensor", E4M3, Scaling(PerTensor()))
"""Float8 with one scale: of a weight, or of an activation on all text, fixed beforehand (as in vLLM's cache)."""

FLOAT_WEIGHTS = {
    fmt.name: fmt
    for fmt in (
        Format("nvfp4", E2M1, _NVFP4),
        Format("mxfp4", E2M1, _MICRO),
        Format("mxfp6", E2M3, _MICRO),
        FP8_TENSOR,
        Format("fp8-channel", E4M3, Scaling(PerChannel())),
        Format("fp8-block128", E4M3, Scaling(PerBlock(128, 128))),
        Format("mxfp8", E4M3, _MICRO),
    )
}
"""OCP's microscaling formats, NVIDIA's four bits, and float8."""

FLOAT_ACTIVATIONS = {
    fmt.name: fmt
    for fmt in (
        Format("nvfp4", E2M1, replace(_NVFP4, dynamic=True)),
        Format("mxfp4", E2M1, replace(_MICRO, dynamic=True)),
        FP8_TENSOR,
        Format("fp8-head", E4M3, Scaling(PerHead())),
        Format("fp8-token", E4M3, _WHILE_RUNNING),
        Format("fp8-g128", E4M3, replace(_WHILE_RUNNING, granularity=PerGroup(128))),
        Format("mxfp8", E4M3, replace(_MICRO, dynamic=True)),
    )
}
"""The same of what flows."""


def _block(label: str, bits: int, zero: Literal["none", "float"] = "none", *, balanced: bool = False) -> Format:
    codebook = Integer(bits, signed=zero == "none", balanced=balanced)
    return Format(label, codebook, Scaling(PerGroup(32), "float16", zero))


def _super_block(label: str, bits: int, group: int, scales: Integer, zero: Literal["none", "float"]) -> Format:
    outer = Scaling(PerGroup(256), "float16", zero)
    return Format(label, Integer(bits, signed=zero == "none"), Scaling(PerGroup(group), scales, zero, outer))


GGUF_TYPES = {
    fmt.name: fmt
    for fmt in (
        _super_block("Q2_K", 2, 16, Integer(4, signed=False), "float"),
        _super_block("Q3_K", 3, 16, Integer(6), "none"),
        _block("Q4_0", 4),
        _block("Q4_1", 4, "float"),
        _super_block("Q4_K", 4, 32, Integer(6, signed=False), "float"),
        _block("Q5_0", 5),
        _block("Q5_1", 5, "float"),
        _super_block("Q5_K", 5, 32, Integer(6, signed=False), "float"),
        _super_block("Q6_K", 6, 16, Integer(8), "none"),
        _block("Q8_0", 8, balanced=True),
    )
}
"""Narrowest first."""


def parse_format(name: str) -> Format:
    """The format of weights with this name.

    Raises:
        InputError: there is none.
    """
    if known := GGUF_TYPES.get(name) or FLOAT_WEIGHTS.get(name) or parse_four_bit(name):
        return known
    match = _WEIGHT.fullmatch(name)
    if match is None:
        raise InputError(
            f"unknown format {name!r}; write for example int4-g64, int8-channel, int4-g64-asym, nf4-g64 or Q4_K"
        )
    by = PerTensor() if match["tensor"] else int(match["group"] or CHANNEL)
    return integer(int(match["bits"]), by, match["asym"] is None)


def parse_activation(name: str) -> Format:
    """The format of activations, keys and values with this name.

    Raises:
        InputError: there is none.
    """
    if name in FLOAT_ACTIVATIONS:
        return FLOAT_ACTIVATIONS[name]
    match = _FLOWING.fullmatch(name)
    if match is None:
        raise InputError(f"unknown activation format {name!r}; write for example a8-token, a4-g64 or fp8-tensor")
    grouped = PerGroup(int(match["group"])) if match["group"] else PerToken()
    return activation(int(match["bits"]), PerFeature() if match["channel"] else grouped, bool(match["full"]))
