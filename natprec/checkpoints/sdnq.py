"""The format that diffusers 0.40 and later load with the package sdnq, written and read by natprec alone.

    value = code · scale + zero_point      codes unsigned, or signed and without a zero point

A module's tensors are `weight` (codes), `scale` and, where there is one, `zero_point`. Codes of 8 bits are one to a
byte, in the shape of the weight, with the groups of a row in a dimension of their own; narrower ones are unsigned,
taken in the order of that shape, and put into bytes as `LAYOUT` says. Scales and zero points broadcast against the
codes, so that a convolution has one of each for an output channel. sdnq computes in float32 and changes no scale.

The layout was read off sdnq 0.2.8 (github.com/Disty0/sdnq, GPL-3.0), none of whose code is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from natprec.errors import ModelError
from natprec.formats import Format
from natprec.models.headers import read_stored
from natprec.models.layers import Layer, known_layer, layer_of
from natprec.models.weight_sites import Site
from natprec.quantizers import QuantizedTensor

METHOD = "sdnq"

Run = tuple[int, int, int]
"""Of a code by its number in a group of codes: its first bit, and how many bits follow one another."""

LAYOUT: dict[int, tuple[tuple[Run, ...], ...]] = {
    2: (((0, 0, 2), (1, 0, 2), (2, 0, 2), (3, 0, 2)),),
    3: (
        ((0, 0, 3), (3, 0, 3), (6, 0, 2)),
        ((1, 0, 3), (4, 0, 3), (7, 0, 2)),
        ((2, 0, 3), (5, 0, 3), (6, 2, 1), (7, 2, 1)),
    ),
    4: (((0, 0, 4), (1, 0, 4)),),
    5: (
        ((0, 0, 5), (5, 0, 3)),
        ((1, 0, 5), (6, 0, 3)),
        ((2, 0, 5), (7, 0, 3)),
        ((3, 0, 5), (5, 3, 2), (7, 4, 1)),
        ((4, 0, 5), (6, 3, 2), (7, 3, 1)),
    ),
    6: tuple(((byte, 0, 6), (3, 4 - 2 * byte, 2)) for byte in range(3)),
    7: tuple(((byte, 0, 7), (7, 6 - byte, 1)) for byte in range(7)),
}
"""Width → for each byte of a group of codes the runs of bits that it is made of, from its lowest bit up."""

SETTINGS: dict[str, Any] = {
    "quant_method": METHOD,
    "weights_dtype": "int8",
    "group_size": -1,
    "dequantize_fp32": True,
    "use_quantized_matmul": False,
    "use_quantized_matmul_conv": False,
    "use_svd": False,
    "use_hadamard": False,
    "use_codebook": False,
    "add_skip_keys": False,
    "quant_conv": True,
    "quant_embedding": True,
    "minimum_allowed_numel": 0,
    "minimum_allowed_channel_size": 0,
}
"""What is the same for all modules: `modules_quant_config` says the width and the groups of each."""


def group_of(bits: int) -> int:
    """Codes that are put into bytes together."""
    return 8 * len(LAYOUT[bits]) // bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Unsigned codes, uint8, to bytes: (groups, bytes), or (bytes,) where a group is one byte."""
    grouped = codes.reshape(-1, group_of(bits))
    packed = torch.zeros(len(grouped), len(LAYOUT[bits]), dtype=torch.uint8)
    for byte, runs in enumerate(LAYOUT[bits]):
        at = 0
        for code, first, count in runs:
            packed[:, byte] |= ((grouped[:, code] >> first) & (2**count - 1)) << at
            at += count
    return packed.flatten() if packed.shape[1] == 1 else packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`, flat."""
    own = packed.reshape(-1, len(LAYOUT[bits]))
    codes = torch.zeros(len(own), group_of(bits), dtype=torch.uint8)
    for byte, runs in enumerate(LAYOUT[bits]):
        at = 0
        for code, first, count in runs:
            codes[:, code] |= ((own[:, byte] >> at) & (2**count - 1)) << first
            at += count
    return codes.flatten()


def sdnq_tensors(layer: Layer, name: str, value: QuantizedTensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """One weight's tensors.

    Args:
        name: of its module; `dtype`: of scales; zero points are float32, so that they are exact.
    Raises:
        ModelError: a transposed convolution in groups, whose scales do not broadcast against its weight.
    """
    if layer.kind.transposed and layer.groups > 1:
        raise ModelError(
            f"{name!r} is a transposed convolution in groups, which sdnq cannot hold; use --engine natprec"
        )
    value, bits = value.to("cpu"), value.format.bits
    lowest = value.format.code_range[0]
    scale, codes = value.scale.float(), value.codes
    tensors = {f"{name}.scale": _beside(layer, scale).to(dtype).contiguous()}
    if value.zero_point is not None:
        tensors[f"{name}.zero_point"] = _beside(layer, (lowest - value.zero_point.float()) * scale).contiguous()
    placed = _placed(layer, codes, scale.shape[1])
    if bits == 8 and value.zero_point is None:
        return tensors | {f"{name}.weight": placed.contiguous()}
    unsigned = (placed.to(torch.int16) - lowest).to(torch.uint8)
    return tensors | {f"{name}.weight": unsigned.contiguous() if bits == 8 else pack(unsigned, bits)}


def _placed(layer: Layer, matrix: Tensor, groups: int) -> Tensor:
    """A matrix (rows, columns) in the shape of the module's weight, groups apart."""
    if layer.kind.dimensions:
        return layer.kind.stored(matrix, layer.weight.shape, layer.groups)
    return matrix if groups == 1 else matrix.unflatten(1, (groups, -1))


def _beside(layer: Layer, by_group: Tensor) -> Tensor:
    """What groups have, (rows, groups), so that it broadcasts against the codes."""
    if not layer.kind.dimensions:
        return by_group if by_group.shape[1] == 1 else by_group.unsqueeze(-1)
    shape = [1] * layer.weight.dim()
    shape[1 if layer.kind.transposed else 0] = -1
    return by_group.reshape(shape)


def sdnq_config(model: nn.Module, sites: list[Site], formats: Mapping[str, Format]) -> dict[str, Any]:
    """The `quantization_config` of the part's config.json.

    Args:
        formats: site → format of its weight; other modules stay as they are.
    """
    own = {use: formats[site.name] for site in sites if site.name in formats for use in site.uses}
    others = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if name not in own and layer_of(module, convolutions=True) is not None
    ]
    modules = {
        f"{name}.weight": {"weights_dtype": _type(fmt), "group_size": fmt.group_size or -1} for name, fmt in own.items()
    }
    return {**SETTINGS, "modules_to_not_convert": others, "modules_dtype_dict": {}, "modules_quant_config": modules}


def _type(fmt: Format) -> str:
    return f"{'int' if fmt.symmetric else 'uint'}{fmt.bits}"


class SdnqWeights:
    """A part's tensors as dense weights in float32, reconstructed one at a time.

    Attributes:
        names: of the tensors, in the model.
    """

    def __init__(self, described: Mapping[str, Any], files: Mapping[str, Path], model: nn.Module) -> None:
        """Nothing is read yet.

        Args:
            described: the `quantization_config`; `files`: tensor → the file that holds it.
        """
        self._files, self._model = files, model
        self._modules: dict[str, dict[str, Any]] = described.get("modules_quant_config") or {}
        leaves = {
            f"{name.removesuffix('.weight')}.{leaf}" for name in self._modules for leaf in ("scale", "zero_point")
        }
        self.names = [name for name in files if name not in leaves]

    def tensor(self, name: str) -> Tensor:
        """One dense tensor.

        Raises:
            ModelError: it is of a type that natprec does not write.
        """
        stored = read_stored(self._files[name], name)
        if name not in self._modules:
            return stored
        kind, module = str(self._modules[name].get("weights_dtype")), name.removesuffix(".weight")
        signed, digits = not kind.startswith("u"), kind.lstrip("uint")
        if digits not in {str(bits) for bits in range(2, 9)}:
            raise ModelError(
                f"weight {name!r} is stored as {kind}, which natprec does not write; load it with diffusers"
            )
        bits, weight = int(digits), known_layer(self._model.get_submodule(module)).weight
        scale = read_stored(self._files[f"{module}.scale"], f"{module}.scale").float()
        codes = stored if bits == 8 else unpack(stored, bits)
        values = codes.float() - (2 ** (bits - 1) if signed and bits < 8 else 0)
        groups = (weight.shape[0], scale.shape[1], -1) if weight.dim() == 2 and scale.dim() == 3 else weight.shape
        values = values.reshape(groups) * scale
        zero = f"{module}.zero_point"
        if zero in self._files:
            values = values + read_stored(self._files[zero], zero).float()
        return values.reshape(weight.shape)
